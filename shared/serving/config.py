"""The settings of the service. Imports neither torch nor FastAPI, so that --help answers at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shared.config import Device, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Precision
from shared.errors import UserError

__all__ = ["API_KEY_VARIABLE", "ServeConfig", "read_api_key"]

API_KEY_VARIABLE = "FOVEA_API_KEY"
"""The environment variable that may hold the API key; ``ServeConfig.api_key_file`` comes first."""


@dataclass(kw_only=True)
class ServeConfig:
    """How a bundle is served."""

    model: Path
    """Folder of the bundle."""
    device: Device = "auto"
    precision: Precision = "auto"
    host: str = "127.0.0.1"
    """Address to listen on. The default answers this machine only; 0.0.0.0 answers the network, and then an API key belongs with it."""
    port: NonNegativeInt = 8000
    """0 takes any free port and prints it."""
    max_upload_mb: PositiveFloat = 64.0
    """Megabytes (10^6 bytes) of one request, all its files together. Refused with 413 while it arrives, not after."""
    max_pixels: PositiveInt = 64_000_000
    """Pixels of one picture, read from its header before anything is decoded. Larger ones are refused with 413."""
    max_files: PositiveInt = 32
    """Files in one request. More are refused with 413."""
    timeout_s: PositiveFloat = 60.0
    """Seconds to receive a request, and again to answer it. What is late is dropped and answered 408 or 504."""
    queue_size: PositiveInt = 32
    """Requests in the house at once, arriving, waiting or being answered. One more is answered 429 with Retry-After.

    Bounds the memory too: at most this many times ``max_upload_mb`` of uploads is held."""
    batch_size: PositiveInt = 8
    """Samples, of one request or of several, that the model sees at once."""
    batch_wait_ms: PositiveFloat = 5.0
    """How long a first sample waits for others to share its batch."""
    api_key_file: Path | None = None
    """File whose first line is the API key that clients send as `Authorization: Bearer KEY`. Without it, the variable FOVEA_API_KEY;
    without either, anybody who reaches the port may ask."""
    shutdown_s: PositiveInt = 60
    """Seconds that requests already accepted get to finish after SIGTERM or Ctrl-C."""
    replicas: PositiveInt = 1
    """Copies of the model, each in its own process. More than one need Ray Serve: ``shared.scaling.serve``."""
    cpus_per_replica: PositiveFloat = 1.0
    """CPU cores that Ray reserves for each replica; fractions share a core."""
    gpus_per_replica: NonNegativeFloat = 0.0
    """GPUs that Ray reserves for each replica; fractions share one."""


def read_api_key(config: ServeConfig) -> str | None:
    """The key that clients must send, or None if there is none.

    Raises:
        UserError: if the key file cannot be read, or a key is set but empty: a service meant to be closed does not open by mistake.
    """
    if config.api_key_file is not None:
        source = str(config.api_key_file)
        try:
            key = next(iter(config.api_key_file.read_text().splitlines()), "").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source}: the API key cannot be read ({error}). Name a text file whose first line is the key.") from error
    elif API_KEY_VARIABLE in os.environ:
        source, key = f"environment variable {API_KEY_VARIABLE}", os.environ[API_KEY_VARIABLE].strip()
    else:
        return None
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(
            f"{source}: holds no usable API key, expected one line of printable ASCII. `openssl rand -hex 32` makes a good one."
        )
    return key

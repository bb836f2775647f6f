"""A real server on a loopback port, and pictures to send to it."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from shared.serving.app import create_app
from shared.serving.config import ServeConfig
from shared.serving.server import uvicorn_server
from tests.shared.serving.brightness import BrightnessPrediction, BrightnessPredictor

CONFIG = ServeConfig(model=Path(), batch_wait_ms=50)


@dataclass(frozen=True, kw_only=True)
class Running:
    url: str
    client: httpx.Client
    predictor: Any

    def post(self, *files: tuple[str, bytes], **options: Any) -> httpx.Response:
        return self.client.post("/v1/predictions", files=[("files", file) for file in files], **options)

    def metric(self, line: str) -> float:
        """The value of the metric whose name and labels are ``line``; 0 if it has not been counted."""
        found = [row for row in self.client.get("/metrics").text.splitlines() if row.startswith(f"{line} ")]
        return float(found[0].split()[-1]) if found else 0.0


@contextlib.contextmanager
def running(
    config: ServeConfig = CONFIG,
    predictor: Any = None,
    load: Callable[[], Any] | None = None,
    *,
    media_types: Sequence[str] = BrightnessPrediction.media_types,
) -> Iterator[Running]:
    predictor = predictor or BrightnessPredictor()
    app = create_app(load or (lambda: predictor), config, media_types=media_types)
    server = uvicorn_server(app, config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            wait_until(lambda: server.started and (load or client.get("/readyz").status_code == 200))
            yield Running(url=url, client=client, predictor=predictor)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listening.close()


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="package")
def service() -> Iterator[Running]:
    """With its own settings, and no key."""
    with running() as server:
        yield server


@pytest.fixture
def settings() -> Callable[..., ServeConfig]:
    return lambda **changes: replace(CONFIG, **changes)


def picture(bright: float = 0.25, size: tuple[int, int] = (40, 60), kind: str = "PNG") -> bytes:
    """Grey, with the topmost fraction ``bright`` of its rows bright."""
    image = np.full((*size, 3), 60, np.uint8)
    image[: round(bright * size[0])] = 220
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def film(frames: int) -> bytes:
    """A GIF whose n-th frame is one eighth brighter than the one before."""
    images = [Image.open(io.BytesIO(picture((number + 1) / 8))) for number in range(frames)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:])
    return buffer.getvalue()

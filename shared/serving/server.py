"""Runs the service until it is told to stop."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

import uvicorn
from fastapi import FastAPI

from shared.errors import UserError
from shared.inference.protocols import Prediction, Predictor
from shared.serving.app import create_app
from shared.serving.config import ServeConfig, read_api_key
from shared.serving.logs import configure_logging

__all__ = ["serve", "uvicorn_server"]

logger = logging.getLogger(__name__)


def serve(load: Callable[[], Predictor[Prediction]], config: ServeConfig, *, media_types: Sequence[str]) -> None:
    """Answers until SIGTERM or Ctrl-C; then accepts nothing new and finishes what it has, for up to ``config.shutdown_s``.

    It listens at once, and /readyz says 503 until ``load`` has returned.

    Args:
        load: returns the predictor, ready to answer at full speed.
        config: where to listen, limits, key.
        media_types: ``Prediction.media_types`` of this predictor.

    Raises:
        UserError: if the model is not there, the address cannot be listened on, the API key cannot be read, or ``load`` raised it.
    """
    if not config.model.is_dir():  # the loading says more, but only after the service has begun to log
        raise UserError(f"{config.model}: no such model folder. Name one that `train` or `convert` made.")
    if config.replicas > 1:
        raise UserError(f"replicas: found {config.replicas}, this server runs 1. More are for Ray Serve (shared.scaling.serve).")
    app = create_app(load, config, media_types=media_types)
    listening = _listen(config.host, config.port)
    configure_logging()
    server = uvicorn_server(app, config)

    def stop() -> None:
        server.should_exit = True

    app.state.service.on_error = stop
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    logger.info("listening", extra={"fields": {"url": url}})
    if not ipaddress.ip_address(host).is_loopback and read_api_key(config) is None:
        logger.warning("anybody who reaches this port may ask: no API key is set")
    print(f"Fovea answers at {url} (Ctrl-C stops it)", file=sys.stderr, flush=True)
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises the signal again once it has drained; a stop that was asked for is no failure, so the exit code is 0.
        signal.signal(signal.SIGTERM, lambda *_: None)
    with listening:
        server.run(sockets=[listening])
    if app.state.service.error is not None:
        raise app.state.service.error


def uvicorn_server(app: FastAPI, config: ServeConfig) -> uvicorn.Server:
    """Not yet running. Its own access log, which has the paths as the client sent them, is off."""
    return uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=config.shutdown_s)
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error}). Choose another --port, or stop what uses this one.") from error

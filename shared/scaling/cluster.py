"""A Ray that keeps quiet, for as long as it is needed."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import UserError

try:
    import ray
except ModuleNotFoundError as error:
    raise UserError(f'--engine ray needs Ray ({error.name} is not installed): pip install "fovea[scale]"') from error

__all__ = ["cluster"]


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray that keeps quiet: the one that is at hand, or the one that RAY_ADDRESS names, or one for as long as this lasts."""
    loggers = [logging.getLogger("ray.data"), logging.getLogger("ray")]
    levels = [logger.level for logger in loggers]
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        _check_reachable(address)
        dashboard = None if address else False
        try:
            with _quiet_start():
                ray.init(address=address or "local", include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # a start that takes Ray too long, on a busy machine, is a bare one
            reason = " ".join(str(error).split())
            raise UserError(f"Ray cannot be reached or started ({reason}). Check RAY_ADDRESS, or take --engine local.") from error
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if started:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Ray itself tries for many minutes before it says that nobody answers."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"RAY_ADDRESS: nobody answers at {address} ({error}). Start the cluster, or take --engine local.") from error


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Ray's own core takes its log level from the environment, and says on standard error that it did."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

"""The service on many replicas, by Ray Serve: the same application, with a model of its own in each replica."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application

from shared.inference.protocols import Prediction, Predictor
from shared.serving.app import create_app
from shared.serving.config import ServeConfig, read_api_key
from shared.serving.logs import configure_logging

__all__ = ["application", "serve"]

_NAME = "fovea"
_PROBES = 8
"""Requests beyond ``queue_size`` that Ray hands to a replica, so that it can answer probes, and 429 itself, while it is full."""


def application(load: Callable[[], Predictor[Prediction]], config: ServeConfig, *, media_types: Sequence[str]) -> Application:
    """The service as a Ray Serve application of ``config.replicas`` replicas, for ``ray.serve.run`` or a cluster's own tooling.

    A replica takes requests once its model is loaded. Limits, queue and batches are each replica's own; so are the numbers at /metrics,
    which are those of the replica that happens to answer; Ray counts requests over all replicas in metrics of its own.

    Args:
        load: returns the predictor; pickled, and called in each replica.
        config: ``replicas``, ``cpus_per_replica``, ``gpus_per_replica``; host, port and shutdown are Ray's business.
        media_types: ``Prediction.media_types`` of this predictor.
    """

    def build() -> FastAPI:
        configure_logging()
        predictor = load()
        return create_app(lambda: predictor, config, media_types=media_types)

    deployment = ray_serve.deployment(
        name=_NAME,
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica},
        max_ongoing_requests=config.queue_size + _PROBES,
        graceful_shutdown_timeout_s=config.shutdown_s,
    )
    return deployment(ray_serve.ingress(build)()).bind()


def serve(load: Callable[[], Predictor[Prediction]], config: ServeConfig, *, media_types: Sequence[str]) -> None:
    """Answers on ``config.host`` and ``config.port`` until SIGTERM or Ctrl-C, on the Ray cluster at hand or, without one, on this machine.

    Args:
        load: as for ``application``.
        config: as for ``application``, and where to listen.
        media_types: as for ``application``.

    Raises:
        UserError: if the API key cannot be read.
    """
    read_api_key(config)
    ray_serve.start(http_options={"host": config.host, "port": config.port})
    ray_serve.run(application(load, config, media_types=media_types), name=_NAME)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(
        f"Fovea answers at http://{config.host}:{config.port} with {config.replicas} replicas (Ctrl-C stops it)",
        file=sys.stderr,
        flush=True,
    )
    stop.wait()
    ray_serve.delete(_NAME)  # this application only: the cluster may serve others

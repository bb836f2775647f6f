"""The numbers of one service, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["Metrics"]


class Metrics:
    """Has its own registry, so that several services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("fovea_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry)
        self.duration = Histogram(
            "fovea_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=self.registry,
        )
        self.rejected = Counter("fovea_rejected", "Requests refused, and why.", ["reason"], registry=self.registry)
        self.unreadable = Counter(
            "fovea_failed_files", "Files or samples without an answer, by status.", ["status"], registry=self.registry
        )
        self.batch_size = Histogram(
            "fovea_batch_size", "Samples in one call of the model.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.batch_duration = Histogram("fovea_batch_duration_seconds", "One call of the model.", registry=self.registry)
        self._queue_depth = Gauge("fovea_queue_depth", "Samples that wait for the model.", registry=self.registry)
        self._places_taken = Gauge("fovea_places_taken", "Requests that arrive, wait or are being answered.", registry=self.registry)
        self.ready = Gauge("fovea_ready", "1 once the model is loaded.", registry=self.registry)

    def watch_queue(self, *, depth: Callable[[], int], taken: Callable[[], int]) -> None:
        """Asks for the samples that wait and the requests admitted, at each scrape."""
        self._queue_depth.set_function(depth)
        self._places_taken.set_function(taken)

    def observe_batch(self, samples: int, duration_s: float) -> None:
        """Counts one call of the model."""
        self.batch_size.observe(samples)
        self.batch_duration.observe(duration_s)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

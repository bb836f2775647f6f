"""A bounded queue in front of one model: requests are admitted or refused at once, and waiting samples are predicted in batches."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from math import ceil
from typing import Any

from shared.errors import InputError

__all__ = ["PredictionQueue", "QueueFullError"]

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """No place is free now; ``retry_after_s`` is a guess from the recent pace."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"no place is free, try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class PredictionQueue:
    """One worker thread that predicts what waits, in batches.

    Args:
        predict_batch: as ``Predictor.predict_batch``; called on the worker thread only.
        places: requests admitted at once.
        batch_size: samples in one call of ``predict_batch``.
        batch_wait_s: how long a first sample waits for others.
        observe: called after each batch with its number of samples and the seconds it took.
    """

    def __init__(
        self,
        predict_batch: Callable[[Sequence[Any]], list[Any]],
        *,
        places: int,
        batch_size: int,
        batch_wait_s: float,
        observe: Callable[[int, float], None],
    ) -> None:
        self._predict_batch = predict_batch
        self._places = places
        self._batch_size = batch_size
        self._batch_wait_s = batch_wait_s
        self._observe = observe
        self._taken = 0
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        self._seconds_per_sample = 0.0
        self._worker = threading.Thread(target=self._work, name="predictions", daemon=True)
        self._worker.start()

    @property
    def depth(self) -> int:
        """Samples that wait now."""
        return self._waiting.qsize()

    @property
    def taken(self) -> int:
        """Requests admitted now."""
        return self._taken

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Holds a place for one request, from before its body is read until it is answered.

        Raises:
            QueueFullError: if every place is taken.
        """
        with self._lock:
            if self._taken >= self._places:
                raise QueueFullError(max(1, ceil(self._seconds_per_sample * self._taken)))
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1

    def submit(self, source: Any) -> Future[Any]:
        """The prediction for ``source``, in time. Cancel the future, and a sample that has not begun is never predicted."""
        future: Future[Any] = Future()
        self._waiting.put((source, future))
        return future

    def close(self) -> None:
        """Finishes what waits, then ends the worker."""
        self._waiting.put(None)
        self._worker.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            alive = [(source, future) for source, future in batch if future.set_running_or_notify_cancel()]
            if alive:
                self._answer(alive)

    def _next_batch(self) -> list[tuple[Any, Future[Any]]]:
        """Blocks for a first sample, then gathers others for a moment. Empty when the queue is closed."""
        first = self._waiting.get()
        if first is None:
            return []
        batch = [first]
        deadline = time.monotonic() + self._batch_wait_s
        while len(batch) < self._batch_size:
            try:
                item = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                self._waiting.put(None)
                break
            batch.append(item)
        return batch

    def _answer(self, batch: list[tuple[Any, Future[Any]]]) -> None:
        begun = time.monotonic()
        try:
            predictions = self._predict_batch([source for source, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                # One bad sample must not lose the others: each is tried alone.
                for item in batch:
                    self._answer([item])
                return
            if not isinstance(error, InputError):
                logger.error("prediction failed", exc_info=error)
            batch[0][1].set_exception(error)
            return
        duration_s = time.monotonic() - begun
        with self._lock:
            self._seconds_per_sample = duration_s / len(batch)
        self._observe(len(batch), duration_s)
        for (_, future), prediction in zip(batch, predictions, strict=True):
            future.set_result(prediction)

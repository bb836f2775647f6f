"""The model behind the routes: loads it in the background, and answers uploads through the queue."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shared.errors import InputError
from shared.inference.protocols import Prediction, Predictor, Sample
from shared.serving.answers import Failure
from shared.serving.config import ServeConfig
from shared.serving.metrics import Metrics
from shared.serving.queue import PredictionQueue
from shared.serving.uploads import Upload, pixels

__all__ = ["Service"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Service:
    """One predictor and its queue.

    Args:
        load: returns the predictor, ready to answer at full speed.
        config: limits, and the size of queue and batch.
        metrics: where readiness, batches and failures are counted.
    """

    def __init__(self, load: Callable[[], Predictor[Prediction]], config: ServeConfig, metrics: Metrics) -> None:
        self._load = load
        self._config = config
        self._metrics = metrics
        self._closed = False
        self.predictor: Predictor[Prediction] | None = None
        """None until it is loaded."""
        self.queue: PredictionQueue | None = None
        self.error: Exception | None = None
        """Why it could not be loaded."""
        self.on_error: Callable[[], None] = lambda: None
        """Called, on the loading thread, when it could not be loaded."""

    def start(self) -> None:
        """Begins to load, and returns at once."""
        self._loading = threading.Thread(target=self._prepare, name="loading", daemon=True)
        self._loading.start()

    def close(self) -> None:
        """Ends the queue after what waits in it is done. Does not wait for a model that is still loading."""
        self._closed = True
        if self.queue is not None:
            self.queue.close()

    async def predict(
        self, uploads: Sequence[Upload], finish: Callable[[Upload, Sample, Any], T], *, single: bool = False
    ) -> list[T | Failure]:
        """One outcome for each sample of each upload, in order; whatever goes wrong with one leaves the others alone.

        Args:
            uploads: the files.
            finish: turns a prediction into its outcome, on a thread of its own.
            single: fail (406) a file that holds more than one sample.

        Cancelling drops the samples that the model has not begun.
        """
        # As many samples of one request are decoded at once as one batch holds: enough to fill it, and a bound on memory.
        window = asyncio.Semaphore(self._config.batch_size)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._predict_file(upload, finish, window, single)) for upload in uploads]
        outcomes = [outcome for task in tasks for outcome in task.result()]
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                self._metrics.unreadable.labels(outcome.status).inc()
        return outcomes

    async def _predict_file(
        self, upload: Upload, finish: Callable[[Upload, Sample, Any], T], window: asyncio.Semaphore, single: bool
    ) -> list[T | Failure]:
        assert self.predictor is not None
        size = await asyncio.to_thread(pixels, upload.content)
        if size is not None and size > self._config.max_pixels:
            detail = (
                f"{upload.name}: {size / 1e6:,.1f} megapixels, the limit is {self._config.max_pixels / 1e6:,.1f}. Send a smaller picture."
            )
            return [Failure(file=upload.name, sample="", status=413, detail=detail)]
        tasks: list[asyncio.Task[T | Failure]] = []
        broken: list[T | Failure] = []
        async with asyncio.TaskGroup() as group:
            try:
                samples = iter(await asyncio.to_thread(self.predictor.samples, upload.content, name=upload.name))
                while (sample := await asyncio.to_thread(next, samples, None)) is not None:
                    if single and tasks:
                        detail = f"{upload.name}: holds several samples, and one file can answer one. Ask for application/json."
                        return [Failure(file=upload.name, sample="", status=406, detail=detail)]
                    await window.acquire()
                    task = group.create_task(self._predict_sample(upload, sample, finish))
                    task.add_done_callback(lambda _: window.release())
                    tasks.append(task)
            except Exception as error:
                broken.append(_failure(error, upload, ""))
        if not tasks and not broken:
            broken.append(_failure(InputError(f"{upload.name}: holds nothing to predict."), upload, ""))
        return [task.result() for task in tasks] + broken

    async def _predict_sample(self, upload: Upload, sample: Sample, finish: Callable[[Upload, Sample, Any], T]) -> T | Failure:
        assert self.queue is not None
        try:
            source = await asyncio.to_thread(sample.read)
            prediction = await asyncio.wrap_future(self.queue.submit(source))
            return await asyncio.to_thread(finish, upload, sample, prediction)
        except Exception as error:
            return _failure(error, upload, sample.id)

    def _prepare(self) -> None:
        try:
            predictor = self._load()
        except Exception as error:
            self.error = error
            logger.error("the model could not be loaded", exc_info=error)
            self.on_error()
            return
        if self._closed:
            return
        waiting = PredictionQueue(
            predictor.predict_batch,
            places=self._config.queue_size,
            batch_size=self._config.batch_size,
            batch_wait_s=self._config.batch_wait_ms / 1000,
            observe=self._metrics.observe_batch,
        )
        self._metrics.watch_queue(depth=lambda: waiting.depth, taken=lambda: waiting.taken)
        self.predictor, self.queue = predictor, waiting
        self._metrics.ready.set(1)
        logger.info("ready")


def _failure(error: Exception, upload: Upload, sample: str) -> Failure:
    if isinstance(error, InputError):
        return Failure(file=upload.name, sample=sample, status=422, detail=str(error))
    logger.error("a file could not be predicted", exc_info=error)
    detail = f"{upload.name}: the service failed on this file. Report the request id to whoever runs the service."
    return Failure(file=upload.name, sample=sample, status=500, detail=detail)

"""The queue, alone: batches, refusals, dropped work, and one bad sample among good ones."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from shared.errors import InputError
from shared.serving.queue import PredictionQueue, QueueFullError


@pytest.fixture
def make() -> Iterator[Callable[..., PredictionQueue]]:
    with ExitStack() as stack:

        def build(predict: Callable[[Sequence[Any]], list[Any]], **changes: Any) -> PredictionQueue:
            settings = {"places": 4, "batch_size": 3, "batch_wait_s": 0.01, "observe": lambda samples, seconds: None, **changes}
            queue = PredictionQueue(predict, **settings)
            stack.callback(queue.close)
            return queue

        yield build


def double(sources: Sequence[int]) -> list[int]:
    return [2 * source for source in sources]


def test_each_sample_gets_its_own_answer_in_batches_of_bounded_size(make: Callable[..., PredictionQueue]) -> None:
    sizes = []
    queue = make(double, observe=lambda samples, seconds: sizes.append(samples))
    futures = [queue.submit(number) for number in range(10)]
    assert [future.result(timeout=20) for future in futures] == [2 * number for number in range(10)]
    queue.close()
    assert sum(sizes) == 10
    assert max(sizes) <= 3


def test_one_bad_sample_fails_alone(make: Callable[..., PredictionQueue]) -> None:
    def predict(sources: Sequence[int]) -> list[int]:
        if 13 in sources:
            raise InputError("13 is not for us")
        return double(sources)

    queue = make(predict, batch_wait_s=0.2)
    good, bad, other = (queue.submit(number) for number in (1, 13, 3))
    assert (good.result(timeout=20), other.result(timeout=20)) == (2, 6)
    with pytest.raises(InputError, match="13"):
        bad.result(timeout=20)


def test_cancelled_work_is_never_done(make: Callable[..., PredictionQueue]) -> None:
    gate, seen = threading.Event(), []

    def predict(sources: Sequence[int]) -> list[int]:
        seen.extend(sources)
        gate.wait(timeout=20)
        return double(sources)

    queue = make(predict, batch_size=1)
    first, second, third = (queue.submit(number) for number in (1, 2, 3))
    second.cancel()
    gate.set()
    assert (first.result(timeout=20), third.result(timeout=20)) == (2, 6)
    assert seen == [1, 3]


def test_places_are_given_out_and_taken_back(make: Callable[..., PredictionQueue]) -> None:
    queue = make(double, places=1)
    with queue.admit():
        assert queue.taken == 1
        with pytest.raises(QueueFullError) as refusal, queue.admit():
            pass
        assert refusal.value.retry_after_s >= 1
    with queue.admit():
        pass
    assert queue.taken == 0


def test_closing_finishes_what_waits(make: Callable[..., PredictionQueue]) -> None:
    queue = make(double)
    futures = [queue.submit(number) for number in range(20)]
    queue.close()
    assert all(future.done() for future in futures)

"""A resumed training sees the batches that an uninterrupted one would have seen."""

from typing import Any
from unittest.mock import patch

import pytest
import torch

from shared.training import loader as loader_module
from shared.training.loader import TrainingLoader
from tests.shared.training.tiny import Points


def make(*, seed: int = 0, variants: tuple[float, ...] = (1.0, 2.0, 3.0), workers: int = 0, count: int = 10) -> TrainingLoader:
    return TrainingLoader(
        Points(count), batch_size=4, seed=seed, variants=variants, vary=lambda batch, scale: batch["x"] * scale, workers=workers
    )


def epoch(loader: TrainingLoader) -> list[list[float]]:
    return [batch.flatten().tolist() for batch in loader]


def test_order_and_augmentation_depend_on_seed_and_epoch_alone() -> None:
    first, second = make(), make()
    torch.manual_seed(1)
    one = [epoch(first), epoch(first)]
    torch.manual_seed(2)
    two = [epoch(second), epoch(second)]
    assert one == two
    assert one[0] != one[1]
    assert epoch(make(seed=1)) != one[0]


def test_reading_leaves_the_random_state_of_the_training_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch(make())
    assert torch.equal(torch.get_rng_state(), before)


def test_every_sample_comes_once_in_each_variant_and_the_last_batch_may_be_smaller() -> None:
    loader = make(variants=(1.0,))
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    # The noise is 0.05 around index / 10; the mean of three is within 0.05 of it, so that rounding finds the index.
    found = sorted(round(float(value), 1) for batch in batches for value in batch.mean(dim=1))
    assert len(found) == 10
    assert len(make()) == len(list(make())) == 9


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("done", [0, 1, 3, 5, 8])
def test_resumed_at_any_batch_the_rest_is_the_same(done: int, workers: int) -> None:
    whole = make()
    epoch(whole)
    expected = epoch(whole), epoch(whole)
    resumed = make(workers=workers)
    resumed.resume(1, done)
    assert epoch(resumed) == expected[0][done:]
    assert epoch(resumed) == expected[1]


@pytest.mark.parametrize("count", [8, 10, 11])
def test_processes_share_the_samples_in_equal_parts(count: int) -> None:
    def keys(rank: int) -> list[tuple[int, int]]:
        with (
            patch.object(loader_module, "_parallel", return_value=True),
            patch.object(torch.distributed, "get_rank", return_value=rank),
            patch.object(torch.distributed, "get_world_size", return_value=2),
        ):
            return [key for batch in make(count=count)._batches(0) for key in batch]

    first, second = keys(0), keys(1)
    assert len(first) == len(second) == -(-count // 2)
    assert {index for index, _ in [*first, *second]} == set(range(count))
    shared: set[Any] = set(first) & set(second)
    assert len(shared) == count % 2  # where the parts cannot be equal, one sample is seen twice, so that no process waits for another

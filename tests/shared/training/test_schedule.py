"""The learning rate over a run."""

import pytest

from shared.training.config import FitConfig, ScheduleConfig
from shared.training.schedule import learning_rate_factor


def factors(steps: list[int], *, epochs: int = 10, steps_per_epoch: int = 10, **schedule: object) -> list[float]:
    factor = learning_rate_factor(FitConfig(epochs=epochs, schedule=ScheduleConfig(**schedule)), steps_per_epoch)  # type: ignore[arg-type]
    return [factor(step) for step in steps]


def test_constant_stays() -> None:
    assert factors([0, 50, 99]) == [1, 1, 1]


def test_warm_up_rises_in_equal_steps_to_the_whole_rate() -> None:
    assert factors([0, 1, 2, 3, 4], warmup=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_cosine_falls_from_one_by_way_of_a_half_to_zero() -> None:
    assert factors([0, 50, 100, 120], name="cosine") == pytest.approx([1, 0.5, 0, 0])
    assert factors([9, 10, 55, 100], name="cosine", warmup=10) == pytest.approx([1, 1, 0.5, 0])


def test_step_multiplies_by_gamma_every_so_many_epochs() -> None:
    assert factors([0, 19, 20, 39, 40], name="step", every=2, gamma=0.1) == pytest.approx([1, 1, 0.1, 0.1, 0.01])

"""How the learning rate changes over a run."""

from __future__ import annotations

import math
from collections.abc import Callable

from shared.training.config import FitConfig

__all__ = ["learning_rate_factor"]


def learning_rate_factor(config: FitConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor on ``config.optimizer.lr`` at an optimiser step, counted from 0."""
    schedule, total = config.schedule, config.epochs * max(steps_per_epoch, 1)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
        if schedule.name == "cosine":
            progress = min(1.0, max(0, step - schedule.warmup) / max(1, total - schedule.warmup))
            return warm * 0.5 * (1 + math.cos(math.pi * progress))
        if schedule.name == "step":
            return warm * schedule.gamma ** (step // max(steps_per_epoch, 1) // schedule.every)
        return warm

    return factor

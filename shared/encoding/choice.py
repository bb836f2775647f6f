"""Scores on held-out samples, and which penalty they speak for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Choice", "Score", "choose", "score_errors", "score_penalties"]

Score = Literal["negative_mse", "r2", "pearson"]
Choice = Literal["each", "common", "conservative"]
"""each: every target its own best. common: one for all targets, the best on average. conservative: for every target the largest penalty
that scores better than the best one less that one's standard deviation over folds."""

NUMBERS_AT_ONCE = 2**19 + 2**17
"""Errors of several penalties come from one product of matrices as long as there are no more: they fit into a cache."""

_TIE = 1e-10
"""Slope over log(alpha) by which equal scores go to the larger penalty (himalaya's rule)."""


def _negative_mse(_truth: Tensor, error: Tensor) -> Tensor:
    return -error.square().mean(dim=-2)


def _r2(truth: Tensor, error: Tensor) -> Tensor:
    residual = error.square().mean(dim=-2)
    spread = truth.var(dim=-2, correction=0)
    return torch.where(spread > 0, 1 - residual / torch.where(spread > 0, spread, 1), 0)


def _pearson(truth: Tensor, error: Tensor) -> Tensor:
    predicted = truth - error
    first, second = truth - truth.mean(dim=-2, keepdim=True), predicted - predicted.mean(dim=-2, keepdim=True)
    scale = first.norm(dim=-2) * second.norm(dim=-2)
    return torch.where(scale > 0, (first * second).sum(dim=-2) / torch.where(scale > 0, scale, 1), 0)


_SCORES: dict[Score, Callable[[Tensor, Tensor], Tensor]] = {"negative_mse": _negative_mse, "r2": _r2, "pearson": _pearson}


def score_errors(truth: Tensor, errors: Tensor, score: Score) -> Tensor:
    """From true responses [m, v] and errors (true less predicted) [..., m, v] to scores [..., v]; higher is better.

    r2 and pearson of a constant target are 0.
    """
    return _SCORES[score](truth, errors)


def score_penalties(errors: Callable[[slice], Tensor], penalties: int, truth: Tensor, score: Score) -> Tensor:
    """[penalties, v]: scores of true responses [m, v], where ``errors`` gives those of some penalties, [g, m, v]."""
    together = max(1, NUMBERS_AT_ONCE // truth.numel())
    parts = (slice(start, start + together) for start in range(0, penalties, together))
    return torch.cat([score_errors(truth, errors(part), score) for part in parts])


def choose(scores: Tensor, alphas: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """The chosen penalty's index [v], and its cross-validated score [v].

    Args:
        scores: [folds, alphas, v].
        alphas: the grid.
    """
    mean = scores.double().mean(dim=0) + _TIE * alphas.double().log()[:, None]
    if choice == "common":
        index = mean.mean(dim=1).argmax().expand(mean.shape[1])
    elif choice == "each":
        index = mean.argmax(dim=0)
    else:
        best = mean.argmax(dim=0, keepdim=True)
        spread = scores.double().std(dim=0, correction=0).gather(0, best)
        enough = (mean > mean.gather(0, best) - spread).scatter(0, best, True)
        index = torch.where(enough, alphas.double()[:, None], -1).argmax(dim=0)
    return index, mean.gather(0, index[None])[0]

"""How far a figure would move with other cases: bootstrap intervals, over patients where frames share them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["Interval", "bootstrap_interval", "paired_difference"]

Statistic = Callable[[NDArray], float]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and where it lies with the given confidence. Without bounds where there are fewer than two cases to resample."""

    estimate: float
    low: float | None
    high: float | None
    confidence: float

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.estimate:.3f}"
        return f"{self.estimate:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap_interval(
    values: ArrayLike,
    *,
    statistic: Statistic = lambda cases: float(np.mean(cases)),
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval (Efron, "Better Bootstrap Confidence Intervals", JASA 1987).

    The same seed gives the same answer. Falls back to plain percentiles where the correction does not exist (a statistic that hardly
    changes from case to case).

    Args:
        values: [N, ...], one entry per case, such as Dice per frame, or a curve per frame.
        statistic: takes [M, ...] resampled cases, returns the figure; their mean unless given.
        groups: [N], the patient (video, centre) of each case. Whole groups are then resampled, because frames of one patient resemble
            each other and an interval over frames would be too narrow.
        confidence: between 0 and 1.
        resamples: number of resampled data sets; 0 leaves the bounds out.

    Raises:
        ValueError: if there are no cases, or ``groups`` has another length.
    """
    cases = np.asarray(values, dtype=np.float64)
    if not cases.size:
        raise ValueError("no cases to resample: score at least one")
    members = _members(groups, len(cases))

    def figure(chosen: NDArray[np.intp]) -> float:
        return statistic(cases[np.concatenate([members[index] for index in chosen])])

    everything = np.arange(len(members))
    estimate = figure(everything)
    if len(members) < 2 or not resamples:
        return Interval(estimate=estimate, low=None, high=None, confidence=confidence)
    low, high = _bounds(everything, figure, confidence=confidence, resamples=resamples, seed=seed)
    return Interval(estimate=estimate, low=low, high=high, confidence=confidence)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Interval:
    """Interval for the mean of ``first - second``, two models' scores on the same cases [N]. Above 0 throughout: the first is better.

    Other arguments and errors as ``bootstrap_interval``; also ValueError if the two differ in length.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired scores must be of the same cases, got {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, groups=groups, confidence=confidence, resamples=resamples, seed=seed)


def _members(groups: Sequence[Hashable] | None, count: int) -> list[NDArray[np.intp]]:
    """The indices of each group's cases, groups in order of appearance."""
    if groups is None:
        return list(np.arange(count)[:, None])
    if len(groups) != count:
        raise ValueError(f"groups must name the group of each of {count} cases, got {len(groups)}")
    indices: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        indices.setdefault(group, []).append(index)
    return [np.asarray(found) for found in indices.values()]


def _bounds(
    everything: NDArray[np.intp], figure: Callable[[NDArray[np.intp]], float], *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        corrected = stats.bootstrap(
            (everything,),
            figure,
            vectorized=False,
            confidence_level=confidence,
            n_resamples=resamples,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = corrected.confidence_interval
    if not np.isfinite([low, high]).all():
        tail = 100 * (1 - confidence) / 2
        low, high = np.percentile(corrected.bootstrap_distribution, [tail, 100 - tail])
    return float(low), float(high)

"""How well slides are classified: AUC, F1, accuracy and balanced accuracy, with intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from shared.metrics.intervals import Interval, bootstrap_interval

__all__ = ["SlideScores", "slide_intervals", "slide_scores"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SlideScores:
    """Figures from 0 to 1; None where the slides cannot give it."""

    auc: float | None
    """Area under the receiver operating characteristic, one class against the rest, averaged over the classes that can be told from others
    here; None if all slides are of one class."""
    f1_macro: float
    """F1 averaged over the classes."""
    f1_micro: float
    """F1 of all decisions together, which equals the accuracy. The ACMIL program prints this one as F1."""
    accuracy: float
    balanced_accuracy: float
    """Share found of each class, averaged over the classes that there are."""


def slide_scores(probabilities: ArrayLike, labels: ArrayLike) -> SlideScores:
    """Scores of S slides.

    Args:
        probabilities: [S, C]; the highest of a row is the answer.
        labels: int [S], 0 to C - 1.

    Raises:
        ValueError: if there are no slides, or the shapes do not fit.
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels).astype(np.intp)
    if values.ndim != 2 or not len(values) or truth.shape != values.shape[:1]:
        raise ValueError(f"probabilities [S, C] and labels [S] of at least one slide are needed, not {values.shape} and {truth.shape}")
    classes = values.shape[1]
    answers = values.argmax(1)
    found = np.bincount(truth[answers == truth], minlength=classes)
    true, said = np.bincount(truth, minlength=classes), np.bincount(answers, minlength=classes)
    known = (true + said) > 0
    areas = [area for number in range(classes) if (area := _area(values[:, number], truth == number)) is not None]
    return SlideScores(
        auc=float(np.mean(areas)) if areas else None,
        f1_macro=float(np.mean(2 * found[known] / (true + said)[known])),
        f1_micro=float(found.sum() / len(truth)),
        accuracy=float(found.sum() / len(truth)),
        balanced_accuracy=float(np.mean(found[true > 0] / true[true > 0])),
    )


def slide_intervals(
    probabilities: ArrayLike, labels: ArrayLike, *, patients: Sequence[Hashable], resamples: int, seed: int
) -> dict[str, Interval]:
    """Each figure of ``slide_scores`` with its 95 % interval, over patients; 0 resamples leave the bounds out."""
    values = np.asarray(probabilities, dtype=np.float64)
    cases = np.column_stack([values, np.asarray(labels)])
    point = slide_scores(values, labels)
    intervals = {}
    for field in fields(SlideScores):
        estimate = getattr(point, field.name)
        if estimate is None:
            continue
        if not resamples:
            intervals[field.name] = Interval(estimate=estimate, low=None, high=None, confidence=0.95)
            continue

        def figure(chosen: Floats, name: str = field.name) -> float:
            value = getattr(slide_scores(chosen[:, :-1], chosen[:, -1]), name)
            return 0.5 if value is None else value  # a resample of one class says nothing about ranks

        intervals[field.name] = bootstrap_interval(cases, statistic=figure, groups=patients, resamples=resamples, seed=seed)
    return intervals


def _area(scores: Floats, positive: NDArray[np.bool_]) -> float | None:
    """The chance that a positive one scores higher than a negative one, ties counting half."""
    count = int(positive.sum())
    if count in (0, len(positive)):
        return None
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(positive) - count)))

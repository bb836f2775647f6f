"""Scores of a binary mask against the truth, in any number of dimensions: pixels, surfaces, objects, and whole frames.

Every score is defined on empty masks too, and each docstring says how. The benchmark's threshold-free scores are in ``saliency``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, optimize, stats

__all__ = [
    "Confusion",
    "Detection",
    "ObjectMatch",
    "SurfaceDistances",
    "confusion",
    "detection",
    "match_objects",
    "surface_distances",
    "youden_threshold",
]

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of pixels (voxels, frames) and the ratios made of them. Add two to pool them: ``sum(confusions, Confusion())``.

    A ratio of nothing (0 / 0) is 1 where prediction and truth agree everywhere and 0 elsewhere, so an empty frame left empty scores 1,
    a false alarm on an empty frame scores 0, and a mean over frames is never NaN.
    """

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    true_negatives: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            true_positives=self.true_positives + other.true_positives,
            false_positives=self.false_positives + other.false_positives,
            false_negatives=self.false_negatives + other.false_negatives,
            true_negatives=self.true_negatives + other.true_negatives,
        )

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), also called F1."""
        return self._ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), also called the Jaccard index."""
        return self._ratio(self.true_positives, self.true_positives + self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        """TP / (TP + FP): how much of the prediction is right."""
        return self._ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN), also called recall: how much of the truth is found."""
        return self._ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP): how much of the background is left alone."""
        return self._ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all."""
        right = self.true_positives + self.true_negatives
        return self._ratio(right, right + self.false_positives + self.false_negatives)

    def _ratio(self, part: int, whole: int) -> float:
        if whole:
            return part / whole
        return float(self.false_positives + self.false_negatives == 0)


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """Distances between two surfaces, in the unit of the spacing. Both 0 where both masks are empty, both infinite where one is."""

    hausdorff_95: float
    """The larger of the two directions' 95th percentiles (linear interpolation), as in MONAI."""
    average: float
    """Mean over the points of both surfaces of the distance to the other one (average symmetric surface distance)."""


@dataclass(frozen=True, kw_only=True)
class ObjectMatch:
    """Objects of one case, matched one to one."""

    found: int
    missed: int
    false_alarms: int
    dice: tuple[float, ...]
    """Of each matched pair, highest first."""

    @property
    def recall(self) -> float | None:
        """Found objects over true ones; None where there is none to find."""
        true = self.found + self.missed
        return self.found / true if true else None

    @property
    def precision(self) -> float | None:
        """Found objects over predicted ones; None where none was predicted."""
        predicted = self.found + self.false_alarms
        return self.found / predicted if predicted else None


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well one number per frame tells the frames with a finding from those without."""

    positives: int
    negatives: int
    threshold: float
    sensitivity: float | None
    """Share of the positive frames at or above the threshold; None without a positive frame."""
    specificity: float | None
    """Share of the negative frames below the threshold; None without a negative frame."""
    roc_auc: float | None
    """Chance that a positive frame scores above a negative one, ties counted half; None unless there are frames of both kinds."""


def confusion(prediction: ArrayLike, truth: ArrayLike) -> Confusion:
    """Counts where two masks agree and where not.

    Args:
        prediction, truth: bool arrays of one shape, any number of axes.

    Raises:
        ValueError: if a mask is not bool or the shapes differ.
    """
    prediction, truth = _checked(prediction, truth)
    both, predicted, true = (int(np.count_nonzero(mask)) for mask in (prediction & truth, prediction, truth))
    return Confusion(
        true_positives=both,
        false_positives=predicted - both,
        false_negatives=true - both,
        true_negatives=truth.size - predicted - true + both,
    )


def surface_distances(prediction: ArrayLike, truth: ArrayLike, *, spacing: float | Sequence[float] = 1.0) -> SurfaceDistances:
    """Hausdorff distance (95th percentile) and average distance between the surfaces of two masks.

    A surface is the pixels of a mask with a face neighbour outside it; pixels at the border of the image count.

    Args:
        prediction, truth: bool arrays of one shape, any number of axes.
        spacing: size of a pixel, one number or one per axis, in the unit wanted for the answer (millimetres; 1 gives pixels).

    Raises:
        ValueError: if a mask is not bool, the shapes differ, or the spacing has another number of axes.
    """
    prediction, truth = _checked(prediction, truth)
    sampling = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (truth.ndim,))
    if not prediction.any() and not truth.any():
        return SurfaceDistances(hausdorff_95=0.0, average=0.0)
    if not prediction.any() or not truth.any():
        return SurfaceDistances(hausdorff_95=math.inf, average=math.inf)

    # Nothing outside the box around both masks can be nearest, and small masks in large volumes are the usual case.
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    first, second = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (prediction, truth))
    there = ndimage.distance_transform_edt(~second, sampling=sampling)[first]
    back = ndimage.distance_transform_edt(~first, sampling=sampling)[second]
    return SurfaceDistances(
        hausdorff_95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        average=float((there.sum() + back.sum()) / (there.size + back.size)),
    )


def match_objects(prediction: ArrayLike, truth: ArrayLike, *, minimum_dice: float = 0.1, minimum_size: int = 1) -> ObjectMatch:
    """Which objects were found: connected components (face neighbours), paired so that the sum of the pairs' Dice is largest.

    Args:
        prediction, truth: bool arrays of one shape, any number of axes.
        minimum_dice: a pair counts as found only above this Dice.
        minimum_size: smaller objects are dropped on both sides, in pixels.

    Raises:
        ValueError: if a mask is not bool or the shapes differ.
    """
    prediction, truth = _checked(prediction, truth)
    predicted, predicted_sizes = _objects(prediction, minimum_size)
    true, true_sizes = _objects(truth, minimum_size)
    pairs = np.bincount(
        (true * (predicted_sizes.size + 1) + predicted).ravel(), minlength=(true_sizes.size + 1) * (predicted_sizes.size + 1)
    ).reshape(true_sizes.size + 1, predicted_sizes.size + 1)
    dice = 2 * pairs[1:, 1:] / (true_sizes[:, None] + predicted_sizes[None, :])
    matched = dice[optimize.linear_sum_assignment(dice, maximize=True)]
    matched = np.sort(matched[matched > minimum_dice])[::-1]
    return ObjectMatch(
        found=matched.size,
        missed=true_sizes.size - matched.size,
        false_alarms=predicted_sizes.size - matched.size,
        dice=tuple(matched.tolist()),
    )


def detection(scores: ArrayLike, positive: ArrayLike, *, threshold: float) -> Detection:
    """Scores frames (or cases) that are called positive when their score is at or above ``threshold``.

    Args:
        scores: [N], any finite numbers, higher for a finding.
        positive: bool [N], the truth.

    Raises:
        ValueError: if the lengths differ, ``positive`` is not bool, or a score is not finite.
    """
    scores, positive = _checked_scores(scores, positive)
    called = scores >= threshold
    positives = int(positive.sum())
    negatives = positive.size - positives
    auc = None
    if positives and negatives:
        ranks = stats.rankdata(scores)
        auc = float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return Detection(
        positives=positives,
        negatives=negatives,
        threshold=threshold,
        sensitivity=float(called[positive].mean()) if positives else None,
        specificity=float((~called[~positive]).mean()) if negatives else None,
        roc_auc=auc,
    )


def youden_threshold(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """The threshold with the largest sensitivity + specificity (Youden, "Index for rating diagnostic tests", Cancer 1950).

    Halfway between the two scores that it separates; of several equally good ones, the middle of the widest gap. None unless there are
    frames of both kinds and some threshold does better than calling all frames alike. Arguments and errors as ``detection``.
    """
    scores, positive = _checked_scores(scores, positive)
    values = np.unique(scores)
    if positive.all() or not positive.any() or values.size < 2:
        return None
    found = np.array([(scores[positive] >= value).mean() for value in values[1:]])
    spared = np.array([(scores[~positive] < value).mean() for value in values[1:]])
    gain = found + spared
    if gain.max() <= 1:
        return None
    gaps = np.where(gain >= gain.max() - 1e-12, np.diff(values), -1.0)
    best = int(gaps.argmax())
    return float((values[best] + values[best + 1]) / 2)


def _checked(prediction: ArrayLike, truth: ArrayLike) -> tuple[Mask, Mask]:
    masks = np.asarray(prediction), np.asarray(truth)
    if masks[0].shape != masks[1].shape:
        raise ValueError(f"prediction and truth must have one shape, got {masks[0].shape} and {masks[1].shape}")
    for name, mask in zip(("prediction", "truth"), masks, strict=True):
        if mask.dtype != np.bool_:
            raise ValueError(f"{name} must be bool, got {mask.dtype}: compare it with a threshold first")
    return masks


def _checked_scores(scores: ArrayLike, positive: ArrayLike) -> tuple[NDArray[np.float64], Mask]:
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ValueError(f"scores and positive must be two lists of one length, got {scores.shape} and {positive.shape}")
    if positive.dtype != np.bool_:
        raise ValueError(f"positive must be bool, got {positive.dtype}")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold values that are not finite")
    return scores, positive


def _objects(mask: Mask, minimum_size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Labels 1..n of the objects that are large enough (0 elsewhere), and their n sizes."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = sizes >= minimum_size
    renumbered = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.intp)
    return renumbered[labels], sizes[kept]

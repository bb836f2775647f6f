"""The scores of the polyp and camouflaged-object benchmarks: a grey map against a mask, over all 256 grey levels.

As in the evaluation of Fan et al., "PraNet", MICCAI 2020, section 3.1. Before scoring, each map is stretched to its own minimum and
maximum, so these figures compare with published tables but say nothing about a fixed threshold: for that see ``segmentation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

__all__ = [
    "THRESHOLDS",
    "BenchmarkScores",
    "ImageScores",
    "ThresholdCurves",
    "benchmark_scores",
    "grey_levels",
    "mean_absolute_error",
    "object_similarity",
    "region_similarity",
    "s_measure",
    "stretch",
    "summarise",
    "threshold_curves",
    "weighted_f",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

THRESHOLDS: Floats = np.arange(255, -1, -1) / 255
"""1, 254/255, ..., 0: the order of every curve. A pixel is foreground where the stretched map is at or above the threshold."""

EPSILON = float(np.finfo(np.float64).eps)
GREY_LEVEL_SLACK = 1e-4
"""In grey levels: a float map that was made from 8-bit levels misses them by about 1e-5, and must still count as at the threshold."""


@dataclass(frozen=True, kw_only=True)
class ThresholdCurves:
    """Scores of one image's binary maps, [256] each, in the order of ``THRESHOLDS``; or their mean over images.

    Published rule: all but ``e_measure`` are 0 wherever no foreground pixel is hit, so also where an empty frame is rightly left empty.
    """

    precision: Floats
    """TP / (TP + FP)."""
    sensitivity: Floats
    """TP / (TP + FN)."""
    specificity: Floats
    """TN / (TN + FP); also 0 where the truth has no background."""
    dice: Floats
    """2 TP / (2 TP + FP + FN), which is also F1."""
    iou: Floats
    """TP / (TP + FP + FN)."""
    e_measure: Floats
    """Enhanced alignment (Fan et al., "Enhanced-alignment Measure for Binary Foreground Map Evaluation", IJCAI 2018, equations 2 to 6).

    The sum over pixels is divided by their number less one, as in the authors' program: a perfect map scores slightly above 1.
    """


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """What one image adds to the benchmark."""

    curves: ThresholdCurves
    weighted_f: float
    s_measure: float
    mean_absolute_error: float


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """A data set's line in the table. ``mean_*`` is the mean over thresholds of the curve averaged over images, ``max_*`` its maximum.

    So mean_dice is not the Dice score at threshold 0.5. The paper prints mean_dice, mean_iou, weighted_f, s_measure, max_e, MAE.
    """

    images: int
    mean_dice: float
    max_dice: float
    mean_iou: float
    max_iou: float
    weighted_f: float
    s_measure: float
    mean_e: float
    max_e: float
    mean_absolute_error: float
    mean_precision: float
    mean_sensitivity: float
    mean_specificity: float


def benchmark_scores(prediction: ArrayLike, truth: ArrayLike) -> ImageScores:
    """All scores of one image.

    Args:
        prediction: [H, W], uint8 grey levels as saved in a PNG (thresholds are then exact), or floats of any range.
        truth: bool [H, W]; the published rule for an 8-bit mask file is ``mask > 128``.

    Raises:
        ValueError: if the shapes differ or are not two-dimensional, ``truth`` is not bool, or ``prediction`` is not finite.
    """
    prediction, mask = _checked(prediction, truth)
    probability = stretch(prediction)
    return ImageScores(
        curves=threshold_curves(prediction, mask),
        weighted_f=weighted_f(probability, mask),
        s_measure=s_measure(probability, mask),
        mean_absolute_error=mean_absolute_error(probability, mask),
    )


def summarise(images: Sequence[ImageScores]) -> BenchmarkScores:
    """The data set's scores; curves are averaged over images before their mean or maximum is taken.

    Raises:
        ValueError: if there are no images.
    """
    if not images:
        raise ValueError("no images to summarise: score at least one")

    def curve(name: str) -> Floats:
        return np.mean([getattr(image.curves, name) for image in images], axis=0)

    dice, iou, e_measure = curve("dice"), curve("iou"), curve("e_measure")
    return BenchmarkScores(
        images=len(images),
        mean_dice=float(dice.mean()),
        max_dice=float(dice.max()),
        mean_iou=float(iou.mean()),
        max_iou=float(iou.max()),
        weighted_f=float(np.mean([image.weighted_f for image in images])),
        s_measure=float(np.mean([image.s_measure for image in images])),
        mean_e=float(e_measure.mean()),
        max_e=float(e_measure.max()),
        mean_absolute_error=float(np.mean([image.mean_absolute_error for image in images])),
        mean_precision=float(curve("precision").mean()),
        mean_sensitivity=float(curve("sensitivity").mean()),
        mean_specificity=float(curve("specificity").mean()),
    )


def stretch(prediction: NDArray) -> Floats:
    """The map with its minimum at 0 and its maximum at 1. A constant map stays as it is (uint8: divided by 255; floats: clipped)."""
    low, high = prediction.min(), prediction.max()
    if low == high:
        return prediction / 255.0 if prediction.dtype == np.uint8 else np.clip(prediction.astype(np.float64), 0.0, 1.0)
    return (prediction.astype(np.float64) - low) / (float(high) - float(low))


def grey_levels(probability: NDArray) -> NDArray[np.uint8]:
    """The stretched map as the benchmark's programs save it for scoring: 0 to 255, halves rounded up."""
    return np.floor(255 * stretch(probability) + 0.5).astype(np.uint8)


def threshold_curves(prediction: ArrayLike, truth: ArrayLike) -> ThresholdCurves:
    """The six curves of one image from two histograms of grey levels, one of each class. Arguments and errors as ``benchmark_scores``."""
    prediction, mask = _checked(prediction, truth)
    levels = _levels(prediction)
    all_pixels = np.bincount(levels.ravel(), minlength=256)
    foreground = np.bincount(levels[mask], minlength=256)
    tp = np.cumsum(foreground[::-1]).astype(np.float64)
    fp = np.cumsum((all_pixels - foreground)[::-1]).astype(np.float64)
    fn, tn = tp[-1] - tp, fp[-1] - fp
    hit = tp > 0

    def ratio(numerator: Floats, denominator: Floats) -> Floats:
        return np.divide(numerator, denominator, out=np.zeros(256), where=hit & (denominator > 0))

    return ThresholdCurves(
        precision=ratio(tp, tp + fp),
        sensitivity=ratio(tp, tp + fn),
        specificity=ratio(tn, tn + fp),
        dice=ratio(2 * tp, 2 * tp + fp + fn),
        iou=ratio(tp, tp + fp + fn),
        e_measure=_e_measure(tp, fp, fn, tn),
    )


def weighted_f(probability: Floats, truth: Mask) -> float:
    """Weighted F with beta 1 (Margolin et al., "How to Evaluate Foreground Maps?", CVPR 2014, equations 10 to 17).

    Errors are smoothed over neighbouring foreground, and background errors weigh more the farther they lie from the foreground. Where
    two foreground pixels are equally near, programs choose differently, which moves the score by up to about 1e-4.

    Args:
        probability: [H, W], 0 to 1.
        truth: bool [H, W]. If it is empty the score is 0 (the published program fails there).
    """
    if not truth.any():
        return 0.0
    error = np.abs(probability - truth)
    distance, nearest = ndimage.distance_transform_edt(~truth, return_indices=True)

    # Smoothed errors matter on the foreground only, and the kernel reaches three pixels beyond it.
    rows, columns = (slice(max(axis.start - 3, 0), axis.stop + 3) for axis in ndimage.find_objects(truth.astype(np.uint8))[0])
    box = (rows, columns)
    spread = error[nearest[0][box], nearest[1][box]]
    for axis in (0, 1):
        spread = ndimage.correlate1d(spread, _GAUSSIAN, axis=axis, mode="constant")
    foreground_error = np.minimum(error[box], spread)[truth[box]]

    background = ~truth
    false_alarm = float((error[background] * (2.0 - np.exp(np.log(0.5) / 5.0 * distance[background]))).sum())
    hits = float(truth.sum() - foreground_error.sum())
    recall = 1.0 - float(foreground_error.mean())
    precision = hits / (EPSILON + hits + false_alarm)
    return 2.0 * recall * precision / (EPSILON + recall + precision)


def s_measure(probability: Floats, truth: Mask) -> float:
    """Structure measure, alpha 0.5 (Fan et al., "Structure-measure: A New Way to Evaluate Foreground Maps", ICCV 2017, equation 1).

    Args:
        probability: [H, W], 0 to 1.
        truth: bool [H, W]. Empty: one minus the mean probability; full: the mean probability.
    """
    share = truth.mean()
    if share == 0:
        return float(1.0 - probability.mean())
    if share == 1:
        return float(probability.mean())
    return max(0.0, 0.5 * object_similarity(probability, truth) + 0.5 * region_similarity(probability, truth))


def object_similarity(probability: Floats, truth: Mask) -> float:
    """The object-aware half of the structure measure (Fan et al. 2017, equations 5 to 8). Arguments as ``s_measure``."""

    def similarity(values: Floats) -> float:
        if not values.size:
            return 0.0
        mean, deviation = values.mean(), values.std(ddof=1) if values.size > 1 else 0.0
        return float(2.0 * mean / (mean * mean + 1.0 + deviation + EPSILON))

    share = float(truth.mean())
    return share * similarity(probability[truth]) + (1.0 - share) * similarity(1.0 - probability[~truth])


def region_similarity(probability: Floats, truth: Mask) -> float:
    """The region-aware half (Fan et al. 2017, equations 2 to 4): four blocks around the truth's centroid, weighted by area.

    Arguments as ``s_measure``; the truth must not be empty. The centroid's own row and column belong to the upper and left blocks.
    """
    height, width = truth.shape
    # One-based mean, rounded half up: one-based because the authors' program is, and n + 0.5 must go the same way as theirs.
    row = int(np.floor((truth.sum(axis=1) @ np.arange(1, height + 1)) / truth.sum() + 0.5))
    column = int(np.floor((truth.sum(axis=0) @ np.arange(1, width + 1)) / truth.sum() + 0.5))
    total = 0.0
    for rows in (slice(0, row), slice(row, height)):
        for columns in (slice(0, column), slice(column, width)):
            block = truth[rows, columns]
            if block.size:
                total += block.size / truth.size * _block_similarity(probability[rows, columns], block)
    return total


def mean_absolute_error(probability: Floats, truth: Mask) -> float:
    """Mean over pixels of the difference between the map (0 to 1) and the mask."""
    return float(np.abs(probability - truth).mean())


_GAUSSIAN = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5.0**2))
_GAUSSIAN /= _GAUSSIAN.sum()


def _checked(prediction: ArrayLike, truth: ArrayLike) -> tuple[NDArray, Mask]:
    prediction, mask = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != mask.shape or mask.ndim != 2 or not mask.size:
        raise ValueError(f"prediction and truth must be two images of one size, got {prediction.shape} and {mask.shape}")
    if mask.dtype != np.bool_:
        raise ValueError(f"truth must be bool, got {mask.dtype}: compare an 8-bit mask with 128 first")
    if prediction.dtype != np.uint8:
        prediction = prediction.astype(np.float64)
        if not np.isfinite(prediction).all():
            raise ValueError("prediction holds values that are not finite")
    return prediction, mask


def _levels(prediction: NDArray) -> NDArray[np.intp]:
    """The highest k for which the stretched map is at least k/255. Whole numbers throughout for uint8, so that no rounding decides."""
    if prediction.dtype == np.uint8 and prediction.min() < prediction.max():
        low, high = int(prediction.min()), int(prediction.max())
        table = np.clip((np.arange(256) - low) * 255 // (high - low), 0, 255)
        return table[prediction]
    return np.floor(stretch(prediction) * 255 + GREY_LEVEL_SLACK).astype(np.intp)


def _e_measure(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    """Enhanced alignment from counts: a binary map and a mask have only four kinds of pixel, and all of a kind score alike."""
    pixels = tp[-1] + fp[-1]
    predicted, true = (tp + fp) / pixels, (tp[-1]) / pixels
    if true == 0:
        enhanced = fn + tn
    elif true == 1:
        enhanced = tp + fp
    else:
        enhanced = np.zeros(256)
        for count, map_value, mask_value in ((tp, 1, 1), (fp, 1, 0), (fn, 0, 1), (tn, 0, 0)):
            a, b = map_value - predicted, mask_value - true
            alignment = 2 * a * b / (a * a + b * b + EPSILON)
            enhanced += count * (alignment + 1) ** 2 / 4
    return enhanced / (pixels - 1 + EPSILON)


def _block_similarity(probability: Floats, truth: Mask) -> float:
    """Structural similarity of one block (Fan et al. 2017, equation 2), variances over N - 1."""
    x, y = probability.mean(), truth.mean()
    degrees = probability.size - 1 + EPSILON
    dx, dy = probability - x, truth - y
    x_variance, y_variance, covariance = (float((a * b).sum()) / degrees for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    numerator = 4.0 * x * y * covariance
    denominator = (x * x + y * y) * (x_variance + y_variance)
    if numerator != 0:
        return float(numerator / (denominator + EPSILON))
    return 1.0 if denominator == 0 else 0.0

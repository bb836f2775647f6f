"""Glioma regions as BraTS scores them: whole tumour, tumour core, enhancing tumour; from label maps of several data sets, and back.

Each region holds the next: whole tumour (WT) is everything, tumour core (TC) all but oedema, enhancing tumour (ET) a part of the core.
Menze et al., "The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS)", IEEE TMI 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import InputError
from shared.metrics.intervals import Interval, bootstrap_interval
from shared.metrics.segmentation import confusion, surface_distances

__all__ = [
    "BRATS",
    "BRATS_2015",
    "BRATS_2023",
    "MSD_BRAIN_TUMOUR",
    "REGIONS",
    "RegionMeans",
    "RegionScores",
    "TumourCodes",
    "brats_codes",
    "region_scores",
    "summarise_regions",
    "tumour_labels",
    "tumour_regions",
]

REGIONS = ("WT", "TC", "ET")
"""In the order of every array of regions, and of a network's outputs."""


@dataclass(frozen=True, kw_only=True)
class TumourCodes:
    """What the values of a label map mean; 0 is always background."""

    name: str
    oedema: int
    core: tuple[int, ...]
    """Necrosis and other tumour that does not enhance. Where regions become labels, all of it gets the first."""
    enhancing: int

    @property
    def values(self) -> tuple[int, ...]:
        """All values that may occur."""
        return tuple(sorted((0, self.oedema, *self.core, self.enhancing)))


BRATS = TumourCodes(name="BraTS 2017 to 2021", oedema=2, core=(1,), enhancing=4)
BRATS_2023 = TumourCodes(name="BraTS 2023", oedema=2, core=(1,), enhancing=3)
BRATS_2015 = TumourCodes(name="BraTS 2015", oedema=2, core=(1, 3), enhancing=4)
"""1 is necrosis and 3 other tumour that does not enhance; joined since 2017."""
MSD_BRAIN_TUMOUR = TumourCodes(name="Medical Segmentation Decathlon, task 1", oedema=1, core=(2,), enhancing=3)


@dataclass(frozen=True, kw_only=True)
class RegionScores:
    """One region of one case. Where neither mask holds anything, that is right: Dice 1."""

    region: str
    true_ml: float
    predicted_ml: float
    dice: float
    """2 TP / (2 TP + FP + FN), not smoothed; 1 where both masks are empty, 0 where one is."""
    sensitivity: float
    """TP / (TP + FN); 1 where the truth is empty (published)."""
    specificity: float
    """TN / (TN + FP); 1 where the truth fills the volume."""
    hausdorff_95_mm: float | None
    """As ``segmentation.surface_distances``, the larger of the two directions' percentiles; None where a mask is empty, so that means leave
    it out, as in the reversible U-Net's evaluation (which takes the percentile of both directions together: never larger)."""
    challenge_hausdorff_95_mm: float
    """The same, but 0 where both masks are empty and the diagonal of the volume where one is (373.13 mm for BraTS), as in the challenge."""


@dataclass(frozen=True, kw_only=True)
class RegionMeans:
    """One region over all cases."""

    region: str
    dice: Interval
    sensitivity: Interval
    specificity: Interval
    hausdorff_95_mm: Interval | None
    """Of the cases that have it."""
    hausdorff_95_cases: int
    challenge_hausdorff_95_mm: Interval
    """Of all cases."""


def tumour_regions(labels: ArrayLike, codes: TumourCodes, *, name: str = "the label map") -> NDArray[np.bool_]:
    """The three regions of a label map, bool [3, X, Y, Z] in the order of ``REGIONS``; each holds the next.

    Args:
        labels: whole numbers of any shape; floats that are whole numbers are taken, because some files store labels so.
        codes: what they mean; see ``brats_codes`` where the year is not known.
        name: what the message calls them.

    Raises:
        InputError: if a value occurs that has no meaning.
    """
    values = np.asarray(labels)
    _check_values(values, codes, name)
    enhancing = values == codes.enhancing
    core = np.isin(values, (*codes.core, codes.enhancing))
    return np.stack([values != 0, core, enhancing])


def tumour_labels(regions: ArrayLike, codes: TumourCodes) -> NDArray[np.uint8]:
    """A label map [X, Y, Z] from regions, painted one over the other: WT as oedema, TC as core, ET as enhancing tumour.

    So a region counts also where it sticks out of the larger one that should hold it, as in the published evaluation.

    Args:
        regions: bool [3, X, Y, Z] in the order of ``REGIONS``, such as a network's three probabilities compared with a threshold.
        codes: those of the case, so that enhancing tumour keeps its value.

    Raises:
        ValueError: if there are not three masks.
    """
    masks = np.asarray(regions)
    if masks.dtype != np.bool_ or masks.ndim < 2 or len(masks) != len(REGIONS):
        raise ValueError(f"regions must be three bool masks ({', '.join(REGIONS)}), got {masks.dtype} {masks.shape}")
    labels = np.zeros(masks.shape[1:], np.uint8)
    for mask, value in zip(masks, (codes.oedema, codes.core[0], codes.enhancing), strict=True):
        labels[mask] = value
    return labels


def brats_codes(labels: ArrayLike, *, name: str = "the label map") -> TumourCodes:
    """Which of ``BRATS`` and ``BRATS_2023`` a case follows: whether enhancing tumour is 4 or 3; ``BRATS`` where there is none.

    A Decathlon file cannot be told from BraTS 2023 by its values: use ``MSD_BRAIN_TUMOUR`` for those.

    Raises:
        InputError: if both occur, or another value.
    """
    values = np.asarray(labels)
    codes = BRATS_2023 if (values == BRATS_2023.enhancing).any() else BRATS
    if codes is BRATS_2023 and (values == BRATS.enhancing).any():
        raise InputError(
            f"{name}: holds the values 3 and 4, and enhancing tumour is 4 until 2021 and 3 since 2023. If it is of BraTS 2015 or before, "
            "where 3 is tumour that does not enhance, say so."
        )
    _check_values(values, codes, name)
    return codes


def region_scores(prediction: ArrayLike, truth: ArrayLike, *, spacing_mm: Sequence[float]) -> tuple[RegionScores, ...]:
    """Scores of the three regions of one case.

    Args:
        prediction, truth: bool [3, X, Y, Z] in the order of ``REGIONS``.
        spacing_mm: size of a voxel along each axis of the array.

    Raises:
        ValueError: if they are not three bool volumes of one shape.
    """
    predicted, true = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != true.shape or true.ndim != 4 or len(true) != len(REGIONS):
        raise ValueError(f"prediction and truth must be of one shape [3, X, Y, Z], got {predicted.shape} and {true.shape}")
    return tuple(_scores(*masks, spacing_mm) for masks in zip(REGIONS, predicted, true, strict=True))


def summarise_regions(
    cases: Sequence[Sequence[RegionScores]],
    *,
    patients: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[RegionMeans, ...]:
    """Means over cases of each region, with intervals over patients.

    Args:
        cases: what ``region_scores`` gave for each.
        patients: whose each case is; all different unless given.
        confidence, resamples, seed: see ``intervals.bootstrap_interval``.

    Raises:
        ValueError: if there are no cases, or ``patients`` has another length.
    """
    if not cases:
        raise ValueError("no cases to summarise: score at least one")
    owners = list(range(len(cases))) if patients is None else list(patients)

    def mean(values: Sequence[float | None]) -> Interval | None:
        known = [(value, owner) for value, owner in zip(values, owners, strict=True) if value is not None]
        if not known:
            return None
        groups = [owner for _, owner in known]
        return bootstrap_interval([value for value, _ in known], groups=groups, confidence=confidence, resamples=resamples, seed=seed)

    def mean_of_all(values: Sequence[float]) -> Interval:
        found = mean(values)
        assert found is not None, "every case has this figure"
        return found

    return tuple(
        RegionMeans(
            region=scores[0].region,
            dice=mean_of_all([score.dice for score in scores]),
            sensitivity=mean_of_all([score.sensitivity for score in scores]),
            specificity=mean_of_all([score.specificity for score in scores]),
            hausdorff_95_mm=mean([score.hausdorff_95_mm for score in scores]),
            hausdorff_95_cases=sum(score.hausdorff_95_mm is not None for score in scores),
            challenge_hausdorff_95_mm=mean_of_all([score.challenge_hausdorff_95_mm for score in scores]),
        )
        for scores in zip(*cases, strict=True)
    )


def _scores(region: str, predicted: NDArray[np.bool_], true: NDArray[np.bool_], spacing_mm: Sequence[float]) -> RegionScores:
    counts = confusion(predicted, true)
    negatives = counts.true_negatives + counts.false_positives
    positives = counts.true_positives + counts.false_negatives
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    distance = surface_distances(predicted, true, spacing=spacing_mm).hausdorff_95
    both = bool(positives and counts.true_positives + counts.false_positives)
    diagonal = math.hypot(*(size * spacing for size, spacing in zip(true.shape, spacing_mm, strict=True)))
    return RegionScores(
        region=region,
        true_ml=positives * voxel_ml,
        predicted_ml=(counts.true_positives + counts.false_positives) * voxel_ml,
        dice=counts.dice,
        sensitivity=counts.sensitivity if positives else 1.0,
        specificity=counts.true_negatives / negatives if negatives else 1.0,
        hausdorff_95_mm=distance if both else None,
        challenge_hausdorff_95_mm=distance if math.isfinite(distance) else diagonal,
    )


def _check_values(values: NDArray[Any], codes: TumourCodes, name: str) -> None:
    strange = [value for value in np.unique(values).tolist() if value not in codes.values]
    if strange:
        raise InputError(
            f"{name}: holds the value{'s' if len(strange) > 1 else ''} {', '.join(f'{value:g}' for value in strange[:5])}, and labels of "
            f"{codes.name} are {', '.join(map(str, codes.values))}. Check that it is a label map, and of this data set."
        )

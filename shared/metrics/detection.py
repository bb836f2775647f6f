"""Which patients' tumours and which single lesions are found, as AGUNet and Raidionics report it.

Bouget et al., "Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms", Frontiers in Radiology 2021.
Every figure is defined as in the authors' validation program, whose conventions differ from those in ``segmentation``: ratios have 1e-6 in
the denominator, and the Dice of two empty masks is 0, not 1. Thresholds are chosen in ``operating_point``, averages over patients and folds
are in ``cohort``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from shared.metrics.lesions import connected_components
from shared.metrics.segmentation import SurfaceDistances, surface_distances

__all__ = [
    "EPSILON",
    "MINIMUM_DICE",
    "SMALLEST_OBJECT",
    "MatchedObjects",
    "ObjectScores",
    "PatientCounts",
    "PatientScores",
    "TrueObject",
    "VoxelScores",
    "is_called",
    "object_scores",
    "patient_counts",
    "score_patient",
    "voxel_scores",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EPSILON = 1e-6
"""In the denominators."""
SMALLEST_OBJECT = 50
"""Voxels (tiny_objects_removal_threshold); smaller components do not count as objects on either side."""
MINIMUM_DICE = 0.1
"""A pair of objects counts as a match above this."""


@dataclass(frozen=True, kw_only=True)
class VoxelScores:
    """Agreement of two masks; all 0 where nothing overlaps, also where both are empty."""

    dice: float
    """2 TP / (2 TP + FP + FN)."""
    recall: float
    """TP / (TP + FN + 1e-6)."""
    precision: float
    """TP / (TP + FP + 1e-6)."""
    f1: float
    """2 TP / (2 TP + FP + FN + 1e-6)."""


@dataclass(frozen=True, kw_only=True)
class MatchedObjects:
    """Mean and standard deviation (over N) over the matched pairs of objects of a patient; 0 without a pair.

    Where one or both masks hold no object, the means of recall, precision and F1 are those of ``ObjectScores`` (published).
    """

    dice: tuple[float, float]
    recall: tuple[float, float]
    precision: tuple[float, float]
    f1: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TrueObject:
    """One lesion of the truth."""

    voxels: int
    dice: float
    """With the object matched to it; 0 if it was missed."""


@dataclass(frozen=True, kw_only=True)
class ObjectScores:
    """Objects of one patient, matched one to one so that the sum of the pairs' Dice is largest.

    Without objects on either side recall, precision and F1 are 1; with objects in the truth alone 0, 1 and 0.5; in the prediction alone
    1, 0 and 0.5. Whether there are objects is asked after small ones are dropped.
    """

    true_objects: tuple[TrueObject, ...]
    """Largest first."""
    predicted: int
    """Number of objects of the prediction."""
    found: int
    """Number of pairs."""
    recall: float
    precision: float
    f1: float
    matched: MatchedObjects


@dataclass(frozen=True, kw_only=True)
class PatientScores:
    """One scan of one patient."""

    patient: str
    """Intervals are over patients: scans with the same entry are resampled together."""
    fold: int
    """Of the cross-validation: the model that did not see this patient."""
    true_ml: float
    predicted_ml: float
    voxel_ml: float
    voxels: VoxelScores
    objects: ObjectScores
    distances: SurfaceDistances | None
    """In mm; None where a mask is empty, so that averages leave it out as published."""


@dataclass(frozen=True, kw_only=True)
class PatientCounts:
    """How many patients were called rightly; each counts once.

    A patient with a tumour who was given a mask somewhere else is one false negative, and not a false positive as well.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def recall(self) -> float:
        """TP / (TP + FN + 1e-6), also called sensitivity."""
        return self.true_positives / (self.true_positives + self.false_negatives + EPSILON)

    @property
    def precision(self) -> float:
        """TP / (TP + FP + 1e-6)."""
        return self.true_positives / (self.true_positives + self.false_positives + EPSILON)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN + 1e-6)."""
        return 2 * self.true_positives / (2 * self.true_positives + self.false_positives + self.false_negatives + EPSILON)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP); 1 without patients who have no tumour."""
        negatives = self.true_negatives + self.false_positives
        return self.true_negatives / negatives if negatives else 1.0

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all; 0 without patients."""
        right = self.true_positives + self.true_negatives
        every = right + self.false_positives + self.false_negatives
        return right / every if every else 0.0

    @property
    def balanced_accuracy(self) -> float:
        """Mean of recall and specificity."""
        return (self.recall + self.specificity) / 2


def voxel_scores(prediction: ArrayLike, truth: ArrayLike) -> VoxelScores:
    """Scores of two bool masks of one shape. Raises ValueError if they are not."""
    predicted, true = _checked(prediction, truth)
    return _ratios(*(float(np.count_nonzero(mask)) for mask in (predicted & true, predicted, true)))


def object_scores(
    prediction: ArrayLike, truth: ArrayLike, *, smallest_object: int = SMALLEST_OBJECT, minimum_dice: float = MINIMUM_DICE
) -> ObjectScores:
    """Which objects were found: components connected by faces, matched by the Hungarian method on their Dice.

    Args:
        prediction, truth: bool [X, Y, Z].
        smallest_object: in voxels; smaller ones are dropped on both sides.
        minimum_dice: a pair counts only above this.

    Raises:
        ValueError: if the masks are not bool volumes of one shape.
    """
    predicted, true = _checked(prediction, truth)
    predicted_map, predicted_sizes = connected_components(predicted, neighbours=6, minimum_voxels=smallest_object)
    true_map, true_sizes = connected_components(true, neighbours=6, minimum_voxels=smallest_object)
    shape = len(true_sizes) + 1, len(predicted_sizes) + 1
    both = (true_map > 0) & (predicted_map > 0)
    shared = np.bincount(np.ravel_multi_index((true_map[both], predicted_map[both]), shape), minlength=shape[0] * shape[1])
    shared = shared.reshape(shape)[1:, 1:]
    dice = 2 * shared / (true_sizes[:, None] + predicted_sizes)
    rows, columns = optimize.linear_sum_assignment(dice, maximize=True)
    good = dice[rows, columns] > minimum_dice
    rows, columns = rows[good], columns[good]

    best = np.zeros(len(true_sizes))
    best[rows] = dice[rows, columns]
    recall, precision, f1 = _found(len(rows), len(true_sizes), len(predicted_sizes))
    pairs = [
        _ratios(float(shared[row, column]), float(predicted_sizes[column]), float(true_sizes[row]))
        for row, column in zip(rows, columns, strict=True)
    ]
    if len(true_sizes) and len(predicted_sizes):
        matched = MatchedObjects(**{name: _mean_and_deviation([getattr(pair, name) for pair in pairs]) for name in _RATIOS})
    else:
        matched = MatchedObjects(dice=(0.0, 0.0), recall=(recall, 0.0), precision=(precision, 0.0), f1=(f1, 0.0))
    return ObjectScores(
        true_objects=tuple(TrueObject(voxels=int(size), dice=float(value)) for size, value in zip(true_sizes, best, strict=True)),
        predicted=len(predicted_sizes),
        found=len(rows),
        recall=recall,
        precision=precision,
        f1=f1,
        matched=matched,
    )


def score_patient(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    patient: str,
    fold: int = 0,
    spacing_mm: Sequence[float],
    smallest_object: int = SMALLEST_OBJECT,
    minimum_dice: float = MINIMUM_DICE,
) -> PatientScores:
    """Everything about one scan: voxels, objects, surfaces, volumes.

    Args:
        prediction, truth: bool [X, Y, Z].
        patient, fold: see ``PatientScores``.
        spacing_mm: size of a voxel along each axis of the array.
        smallest_object, minimum_dice: see ``object_scores``.

    Raises:
        ValueError: if the masks are not bool volumes of one shape.
    """
    predicted, true = _checked(prediction, truth)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return PatientScores(
        patient=patient,
        fold=fold,
        true_ml=np.count_nonzero(true) * voxel_ml,
        predicted_ml=np.count_nonzero(predicted) * voxel_ml,
        voxel_ml=voxel_ml,
        voxels=voxel_scores(predicted, true),
        objects=object_scores(predicted, true, smallest_object=smallest_object, minimum_dice=minimum_dice),
        distances=surface_distances(predicted, true, spacing=spacing_mm) if predicted.any() and true.any() else None,
    )


def patient_counts(patients: Sequence[PatientScores], *, minimum_ml: float = 0.0, minimum_dice: float | None = None) -> PatientCounts:
    """How many patients were called rightly, under one of the three published conditions.

    "All" is the default: a patient has a tumour if the truth holds any volume, and is called if the prediction does. "Positive" is a
    ``minimum_ml``: both volumes count only above it. "TP" is a ``minimum_dice`` besides: a patient with a tumour is found only if the Dice
    is above it (patients without are called as before).
    """
    has, called = is_called(patients, minimum_ml=minimum_ml, minimum_dice=minimum_dice)
    return PatientCounts(
        true_positives=int((has & called).sum()),
        false_positives=int((~has & called).sum()),
        false_negatives=int((has & ~called).sum()),
        true_negatives=int((~has & ~called).sum()),
    )


def is_called(patients: Sequence[PatientScores], *, minimum_ml: float = 0.0, minimum_dice: float | None = None) -> tuple[Mask, Mask]:
    """Which patients have a tumour and which are called, bool [N] each, by the rules of ``patient_counts``."""
    has = np.array([patient.true_ml > minimum_ml for patient in patients], dtype=bool)
    called = np.array([patient.predicted_ml > minimum_ml for patient in patients], dtype=bool)
    if minimum_dice is None:
        return has, called
    outlined = np.array([patient.voxels.dice > minimum_dice for patient in patients], dtype=bool)
    return has, np.where(has, outlined, called)


_RATIOS = ("dice", "recall", "precision", "f1")


def _found(found: int, true: int, predicted: int) -> tuple[float, float, float]:
    """Recall, precision and F1 of objects."""
    if not true or not predicted:
        recall, precision = float(not true), float(not predicted)
        return recall, precision, (recall + precision) / 2
    return found / true, found / predicted, 2 * found / (true + predicted)


def _ratios(both: float, predicted: float, true: float) -> VoxelScores:
    return VoxelScores(
        dice=2 * both / (predicted + true) if both else 0.0,
        recall=both / (true + EPSILON),
        precision=both / (predicted + EPSILON),
        f1=2 * both / (predicted + true + EPSILON),
    )


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return (float(np.mean(values)), float(np.std(values))) if values else (0.0, 0.0)


def _checked(prediction: ArrayLike, truth: ArrayLike) -> tuple[Mask, Mask]:
    masks = np.asarray(prediction), np.asarray(truth)
    if masks[0].shape != masks[1].shape or masks[0].ndim != 3:
        raise ValueError(f"prediction and truth must be two volumes of one shape, got {masks[0].shape} and {masks[1].shape}")
    for name, mask in zip(("prediction", "truth"), masks, strict=True):
        if mask.dtype != np.bool_:
            raise ValueError(f"{name} must be bool, got {mask.dtype}: compare it with a threshold first")
    return masks

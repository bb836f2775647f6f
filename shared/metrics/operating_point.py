"""At which probability a voxel is tumour, and from which Dice on a patient counts as found: chosen together, as AGUNet's authors do.

Bouget et al., "Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms", Frontiers in Radiology 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shared.metrics.detection import EPSILON

__all__ = ["DICE_CUTOFFS", "THRESHOLDS", "OperatingPoint", "PatientSweep", "best_operating_point", "sweep_patient"]

THRESHOLDS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the probability; a voxel is tumour at or above it."""
DICE_CUTOFFS: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""A patient is found above it."""


@dataclass(frozen=True, kw_only=True)
class PatientSweep:
    """One scan at each of several thresholds of the probability."""

    true_ml: float
    dice: tuple[float, ...]
    predicted_ml: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The probability threshold and the Dice cut-off with the best compromise between finding tumours and outlining them."""

    threshold: float
    minimum_dice: float
    mean_dice: float
    """Of the patients found."""
    recall: float
    """Of patients."""

    @property
    def score(self) -> float:
        """What was maximised: the mean of the two."""
        return (self.mean_dice + self.recall) / 2


def sweep_patient(
    probability: ArrayLike, truth: ArrayLike, *, spacing_mm: Sequence[float], thresholds: Sequence[float] = THRESHOLDS
) -> PatientSweep:
    """Dice and volume of the prediction at each threshold, in one pass over the voxels.

    Args:
        probability: floats [X, Y, Z]; a voxel is tumour at or above a threshold.
        truth: bool [X, Y, Z].
        spacing_mm: size of a voxel along each axis of the array.
        thresholds: increasing.

    Raises:
        ValueError: if the shapes differ, the truth is not bool, the thresholds do not increase, or a probability is not a number.
    """
    values, true = np.asarray(probability), np.asarray(truth)
    if values.shape != true.shape or true.dtype != np.bool_:
        raise ValueError(f"probability and a bool truth must have one shape, got {values.shape} and {true.dtype} {true.shape}")
    if values.dtype.kind != "f" or np.isnan(values).any():
        raise ValueError(f"probability must be floats without NaN, got {values.dtype}")
    # In the precision of the probabilities: a stored 0.7 is at the threshold 0.7, though float32 rounds it down.
    limits = np.asarray(thresholds, dtype=values.dtype)
    if not limits.size or (np.diff(limits) <= 0).any():
        raise ValueError(f"thresholds must increase, got {list(thresholds)}")
    reached = np.searchsorted(limits, values.ravel(), side="right")
    counts = np.bincount(2 * reached + true.ravel(), minlength=2 * limits.size + 2).reshape(-1, 2)
    above = counts[::-1].cumsum(axis=0)[::-1][1:]
    hits, predicted = above[:, 1], above.sum(axis=1)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    volume = int(counts[:, 1].sum())
    return PatientSweep(
        true_ml=volume * voxel_ml,
        dice=tuple((2 * hits / np.maximum(predicted + volume, 1)).tolist()),
        predicted_ml=tuple((predicted * voxel_ml).tolist()),
    )


def best_operating_point(
    sweeps: Sequence[PatientSweep],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    dice_cutoffs: Sequence[float] = DICE_CUTOFFS,
    minimum_ml: float = 0.0,
) -> OperatingPoint:
    """The published "optimal" pair: maximises (mean Dice of the patients found + recall of patients) / 2.

    A patient is found if the true volume is above ``minimum_ml`` and the Dice above the cut-off. Of equally good pairs, the lowest
    threshold and then the lowest cut-off is taken. To be chosen on validation patients, and used on others.

    Args:
        sweeps: of each patient, at these thresholds.
        thresholds, dice_cutoffs: what is tried, increasing.
        minimum_ml: patients with less than this are not positive.

    Raises:
        ValueError: if there is no positive patient, or a sweep has another number of thresholds.
    """
    positive = [sweep.dice for sweep in sweeps if sweep.true_ml > minimum_ml]
    if not positive:
        raise ValueError(f"no patient has a tumour of more than {minimum_ml:g} ml: nothing to optimise for")
    if {len(dice) for dice in positive} != {len(thresholds)}:
        raise ValueError(f"each sweep must have {len(thresholds)} thresholds, got {sorted({len(dice) for dice in positive})}")
    dice = np.array(positive)
    points = []
    for index, threshold in enumerate(thresholds):
        for cutoff in dice_cutoffs:
            found = dice[dice[:, index] > cutoff, index]
            recall = found.size / (len(dice) + EPSILON)
            mean = float(found.mean()) if found.size else 0.0
            points.append(OperatingPoint(threshold=float(threshold), minimum_dice=float(cutoff), mean_dice=mean, recall=recall))
    return max(points, key=lambda point: point.score)

"""A cohort's table: averages over patients and cross-validation folds, detection of patients, recall by tumour volume, with intervals.

The averages are AGUNet's (see ``detection``); the intervals are added, and are always over patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.metrics.detection import PatientCounts, PatientScores, is_called, patient_counts
from shared.metrics.intervals import Interval, bootstrap_interval

__all__ = [
    "VOLUME_EDGES_ML",
    "CohortScores",
    "Figure",
    "FoldFigure",
    "VolumeBin",
    "lesion_recall_by_volume",
    "patient_recall_by_volume",
    "recall_by_volume",
    "summarise_cohort",
]

Floats = NDArray[np.float64]
Value = Callable[[PatientScores], float | None]

VOLUME_EDGES_ML = (0.0, 1.0, 3.0, 10.0, 30.0, math.inf)
"""Meningiomas below 3 ml are the ones that are missed (Bouget et al. 2021, abstract)."""


@dataclass(frozen=True, kw_only=True)
class FoldFigure:
    """One fold's part of a figure."""

    fold: int
    mean: float
    deviation: float
    """Over N - 1; 0 for a single scan, and for a figure that a fold has only one of."""
    count: int
    """Scans that it is made of, and its weight."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the table."""

    mean: float
    """Of the folds, weighted by their scans."""
    deviation: float
    """Pooled: the root of the folds' variances weighted by N - 1. Where a fold has only one value: of the folds around the mean."""
    count: int
    folds: tuple[FoldFigure, ...]
    interval: Interval
    """Of the mean, by resampling patients."""

    def __str__(self) -> str:
        return str(self.interval)


@dataclass(frozen=True, kw_only=True)
class CohortScores:
    """A cohort's table. A figure is None where no scan has it."""

    patients: PatientCounts
    """Over all folds."""
    patient_recall: Figure
    patient_precision: Figure
    patient_f1: Figure
    patient_specificity: Figure
    patient_balanced_accuracy: Figure
    dice: Figure
    """Of all scans; 0 for those without tumour."""
    dice_found: Figure | None
    """Of the true positives ("Dice-TP")."""
    voxel_recall: Figure
    voxel_precision: Figure
    object_recall: Figure
    object_precision: Figure
    object_f1: Figure
    hausdorff_95_mm: Figure | None
    """Of the scans in which neither mask is empty, as is the next."""
    average_surface_mm: Figure | None


@dataclass(frozen=True, kw_only=True)
class VolumeBin:
    """Tumours of one range of volumes."""

    low_ml: float
    """Included."""
    high_ml: float
    """Not included."""
    count: int
    found: int
    recall: Interval | None
    """None without a tumour of this volume."""


def summarise_cohort(
    patients: Sequence[PatientScores],
    *,
    minimum_ml: float = 0.0,
    minimum_dice: float | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> CohortScores:
    """The table of a cohort.

    Args:
        patients: scans, from any number of folds.
        minimum_ml, minimum_dice: when a patient has a tumour and is called, see ``detection.patient_counts``.
        confidence, resamples, seed: see ``intervals.bootstrap_interval``.

    Raises:
        ValueError: if there are no scans.
    """
    if not patients:
        raise ValueError("no scans to summarise: score at least one")

    def interval(values: ArrayLike, statistic: Callable[[NDArray], float], scans: Sequence[PatientScores]) -> Interval:
        groups = [scan.patient for scan in scans]
        return bootstrap_interval(values, statistic=statistic, groups=groups, confidence=confidence, resamples=resamples, seed=seed)

    def over_scans(value: Value, among: Sequence[PatientScores] = patients) -> Figure | None:
        scans = [scan for scan in among if value(scan) is not None]
        if not scans:
            return None
        values = np.array([value(scan) for scan in scans], dtype=np.float64)
        folds = [_fold(number, values[np.array([scan.fold == number for scan in scans])]) for number in _folds(scans)]
        freedom = sum(fold.count - 1 for fold in folds)
        variance = sum((fold.count - 1) * fold.deviation**2 for fold in folds) / freedom if freedom else 0.0
        return _figure(folds, math.sqrt(variance), interval(values, lambda cases: float(cases.mean()), scans))

    def over_all(value: Callable[[PatientScores], float]) -> Figure:
        figure = over_scans(value)
        assert figure is not None, "every scan has this figure"
        return figure

    has, called = is_called(patients, minimum_ml=minimum_ml, minimum_dice=minimum_dice)
    numbers = _folds(patients)
    fold_index = np.array([numbers.index(scan.fold) for scan in patients])
    kinds = 4 * fold_index + 2 * has + called

    def over_folds(ratio: Callable[[PatientCounts], float]) -> Figure:
        def weighted(cases: NDArray) -> float:
            counts = np.bincount(cases.astype(np.intp), minlength=4 * len(numbers)).reshape(-1, 4)
            return math.fsum(ratio(_counts(fold)) * int(fold.sum()) for fold in counts) / len(cases)

        table = np.bincount(kinds, minlength=4 * len(numbers)).reshape(-1, 4)
        folds = [
            FoldFigure(fold=number, mean=ratio(_counts(row)), deviation=0.0, count=int(row.sum()))
            for number, row in zip(numbers, table, strict=True)
        ]
        mean = weighted(kinds)
        variance = sum(fold.count * (fold.mean - mean) ** 2 for fold in folds) / len(patients)
        return _figure(folds, math.sqrt(variance), interval(kinds, weighted, patients))

    found = [scan for scan, both in zip(patients, has & called, strict=True) if both]
    return CohortScores(
        patients=patient_counts(patients, minimum_ml=minimum_ml, minimum_dice=minimum_dice),
        patient_recall=over_folds(lambda counts: counts.recall),
        patient_precision=over_folds(lambda counts: counts.precision),
        patient_f1=over_folds(lambda counts: counts.f1),
        patient_specificity=over_folds(lambda counts: counts.specificity),
        patient_balanced_accuracy=over_folds(lambda counts: counts.balanced_accuracy),
        dice=over_all(lambda scan: scan.voxels.dice),
        dice_found=over_scans(lambda scan: scan.voxels.dice, found),
        voxel_recall=over_all(lambda scan: scan.voxels.recall),
        voxel_precision=over_all(lambda scan: scan.voxels.precision),
        object_recall=over_all(lambda scan: scan.objects.recall),
        object_precision=over_all(lambda scan: scan.objects.precision),
        object_f1=over_all(lambda scan: scan.objects.f1),
        hausdorff_95_mm=over_scans(lambda scan: scan.distances.hausdorff_95 if scan.distances else None),
        average_surface_mm=over_scans(lambda scan: scan.distances.average if scan.distances else None),
    )


def patient_recall_by_volume(
    patients: Sequence[PatientScores],
    *,
    minimum_dice: float | None = None,
    edges_ml: Sequence[float] = VOLUME_EDGES_ML,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[VolumeBin, ...]:
    """Of the scans with a tumour, by all its volume together: how many were called (or outlined better than ``minimum_dice``)."""
    has, called = is_called(patients, minimum_ml=0.0, minimum_dice=minimum_dice)
    scans = [(scan, bool(was)) for scan, true, was in zip(patients, has, called, strict=True) if true]
    return recall_by_volume(
        [scan.true_ml for scan, _ in scans],
        [was for _, was in scans],
        patients=[scan.patient for scan, _ in scans],
        edges_ml=edges_ml,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def lesion_recall_by_volume(
    patients: Sequence[PatientScores],
    *,
    edges_ml: Sequence[float] = VOLUME_EDGES_ML,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[VolumeBin, ...]:
    """Of all single lesions of the truth that are not too small to count, by their own volume: how many were matched."""
    lesions = [(scan, lesion) for scan in patients for lesion in scan.objects.true_objects]
    return recall_by_volume(
        [lesion.voxels * scan.voxel_ml for scan, lesion in lesions],
        [lesion.dice > 0 for _, lesion in lesions],
        patients=[scan.patient for scan, _ in lesions],
        edges_ml=edges_ml,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def recall_by_volume(
    volumes_ml: Sequence[float],
    found: Sequence[bool],
    *,
    patients: Sequence[Hashable] | None = None,
    edges_ml: Sequence[float] = VOLUME_EDGES_ML,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[VolumeBin, ...]:
    """Recall in each range of volumes, with how many tumours it rests on.

    Args:
        volumes_ml: [N], of each tumour.
        found: [N], whether it was.
        patients: [N], whose it is; intervals are then over patients.
        edges_ml: increasing; a tumour belongs to the range that it is at or above the lower edge of.
        confidence, resamples, seed: see ``intervals.bootstrap_interval``.

    Raises:
        ValueError: if the lengths differ, the edges do not increase, or a volume lies outside of them.
    """
    volumes, hits, edges = np.asarray(volumes_ml, dtype=np.float64), np.asarray(found, dtype=bool), np.asarray(edges_ml, dtype=np.float64)
    if volumes.shape != hits.shape or volumes.ndim != 1:
        raise ValueError(f"volumes and found must be two lists of one length, got {volumes.shape} and {hits.shape}")
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges_ml must increase, got {list(edges_ml)}")
    if not ((volumes >= edges[0]) & (volumes < edges[-1])).all():
        raise ValueError(f"volumes must lie between {edges[0]:g} and {edges[-1]:g} ml, got {volumes.min():g} to {volumes.max():g}")
    owners = list(range(len(volumes))) if patients is None else list(patients)
    bins = []
    for low, high in pairwise(edges.tolist()):
        within = np.flatnonzero((volumes >= low) & (volumes < high))
        recall = None
        if within.size:
            groups = [owners[index] for index in within]
            recall = bootstrap_interval(hits[within], groups=groups, confidence=confidence, resamples=resamples, seed=seed)
        bins.append(VolumeBin(low_ml=low, high_ml=high, count=int(within.size), found=int(hits[within].sum()), recall=recall))
    return tuple(bins)


def _figure(folds: Sequence[FoldFigure], deviation: float, interval: Interval) -> Figure:
    count = sum(fold.count for fold in folds)
    mean = math.fsum(fold.mean * fold.count for fold in folds) / count
    return Figure(mean=mean, deviation=deviation, count=count, folds=tuple(folds), interval=interval)


def _fold(number: int, values: Floats) -> FoldFigure:
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return FoldFigure(fold=number, mean=float(values.mean()), deviation=deviation, count=len(values))


def _folds(patients: Sequence[PatientScores]) -> list[int]:
    return sorted({scan.fold for scan in patients})


def _counts(row: NDArray[np.intp]) -> PatientCounts:
    """From the counts of 2 * (has a tumour) + (called)."""
    true_negatives, false_positives, false_negatives, true_positives = (int(count) for count in row)
    return PatientCounts(
        true_positives=true_positives,
        false_positives=false_positives,
        false_negatives=false_negatives,
        true_negatives=true_negatives,
    )

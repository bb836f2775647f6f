"""Scores on labelled volumes: each class plainly, and patients and objects as the paper counts them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.agunet.config import AGUNetEvaluateConfig
from apps.agunet.inference import AGUNetPredictor
from shared.metrics.cohort import VolumeBin, lesion_recall_by_volume, patient_recall_by_volume, summarise_cohort
from shared.metrics.detection import PatientScores, score_patient
from shared.metrics.intervals import Interval
from shared.segmentation.config import EvaluateVolumesConfig
from shared.segmentation.evaluation import CohortTable, ScoredCase, evaluate_volumes
from shared.segmentation.prediction import VolumePrediction

__all__ = ["evaluate"]

PAPER = {"Dice": "0.816", "patient F1": "0.956", "patient precision": "0.98", "patient recall": "0.93"}
"""Of the article's abstract: 600 volumes of meningiomas, five-fold cross-validation."""


def evaluate(config: AGUNetEvaluateConfig) -> int:
    """Scores a bundle; the exit code is 3 if some cases could not be used."""
    return evaluate_volumes(AGUNetPredictor, config, extra=_patient, summary=_cohort)


def _patient(prediction: VolumePrediction, truth: NDArray[np.uint8], patient: str) -> PatientScores:
    return score_patient(prediction.mask, truth != 0, patient=patient, spacing_mm=prediction.volume.spacing_mm)


def _cohort(cases: Sequence[ScoredCase], config: EvaluateVolumesConfig) -> CohortTable:
    """Everything that is labelled against everything that should be, whatever the class; as the paper, which has one class."""
    patients: list[PatientScores] = [case.extra for case in cases]
    resampling: dict[str, Any] = {"resamples": max(config.bootstrap, 1), "seed": config.seed}
    cohort = summarise_cohort(patients, **resampling)
    figures = {
        "Dice": cohort.dice,
        "Dice, true positives": cohort.dice_found,
        "patient F1": cohort.patient_f1,
        "patient precision": cohort.patient_precision,
        "patient recall": cohort.patient_recall,
        "patient specificity": cohort.patient_specificity,
        "object F1": cohort.object_f1,
        "object precision": cohort.object_precision,
        "object recall": cohort.object_recall,
        "HD95 (mm)": cohort.hausdorff_95_mm,
    }
    shown = {name: None if one is None else _without_interval(one.interval, config) for name, one in figures.items()}
    rows: list[list[Any]] = [[name, interval, PAPER.get(name)] for name, interval in shown.items()]
    by_volume = {"patients": patient_recall_by_volume(patients, **resampling), "lesions": lesion_recall_by_volume(patients, **resampling)}
    for what, bins in by_volume.items():
        for one in bins:
            if one.count:
                sizes = f"{one.low_ml:g} to {one.high_ml:g} ml" if math.isfinite(one.high_ml) else f"{one.low_ml:g} ml and more"
                rows.append([f"recall of {what}, {sizes} ({one.found} of {one.count})", _without_interval(one.recall, config), None])
    plain = {**asdict(cohort), "recall_by_volume": {what: [_bin(one) for one in bins] for what, bins in by_volume.items()}}
    return CohortTable(
        title="By patients and objects, as the paper counts them (objects below 50 voxels left out)",
        columns=["figure", "here (95 % interval)", "paper, meningioma"],
        rows=rows,
        plain=plain if config.bootstrap else _without_intervals(plain),
    )


def _without_interval(interval: Interval, config: EvaluateVolumesConfig) -> Interval:
    """The estimate alone where no bootstrap was asked for: one resample makes no interval."""
    return interval if config.bootstrap else replace(interval, low=None, high=None)


def _without_intervals(value: Any) -> Any:
    """The same for whatever holds them as plain numbers."""
    if isinstance(value, dict):
        kept = {key: _without_intervals(inner) for key, inner in value.items()}
        return kept | {"low": None, "high": None} if "estimate" in kept else kept
    return [_without_intervals(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _bin(one: VolumeBin) -> dict[str, Any]:
    """JSON has no infinity."""
    return {**asdict(one), "high_ml": one.high_ml if math.isfinite(one.high_ml) else None}

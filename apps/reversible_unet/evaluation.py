"""Scores on labelled volumes: each region plainly, and as the BraTS challenge scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.reversible_unet.config import ReversibleEvaluateConfig
from apps.reversible_unet.inference import ReversibleUNetPredictor
from shared.metrics.regions import REGIONS, RegionScores, region_scores, summarise_regions
from shared.segmentation.config import EvaluateVolumesConfig
from shared.segmentation.evaluation import CohortTable, ScoredCase, evaluate_volumes
from shared.segmentation.prediction import VolumePrediction

__all__ = ["evaluate"]


def evaluate(config: ReversibleEvaluateConfig) -> int:
    """Scores a bundle; the exit code is 3 if some cases could not be used. Nested regions are scored as the challenge does, too."""
    return evaluate_volumes(ReversibleUNetPredictor, config, extra=_regions, summary=_challenge)


def _regions(prediction: VolumePrediction, truth: NDArray[np.uint8], patient: str) -> tuple[RegionScores, ...] | None:
    """None unless the classes are the three regions of BraTS."""
    del patient  # the summary groups by it
    classes = prediction.classes
    if not classes.task.overlapping or len(classes.names) != len(REGIONS):
        return None
    predicted, true = (np.stack(list(classes.masks(labels).values())) for labels in (prediction.labels, truth))
    return region_scores(predicted, true, spacing_mm=prediction.volume.spacing_mm)


def _challenge(cases: Sequence[ScoredCase], config: EvaluateVolumesConfig) -> CohortTable | None:
    known = [case for case in cases if case.extra is not None]
    columns = ["region", "Dice", "sensitivity", "specificity", "HD95 (mm)", "HD95 of all cases (mm)"]
    if not known:
        return None
    means = summarise_regions(
        [case.extra for case in known], patients=[case.patient for case in known], resamples=config.bootstrap, seed=config.seed
    )
    rows: list[list[Any]] = [
        [mean.region, mean.dice, mean.sensitivity, mean.specificity, mean.hausdorff_95_mm, mean.challenge_hausdorff_95_mm] for mean in means
    ]
    title = "Regions as BraTS scores them: an empty one that is left empty has Dice 1 and distance 0, a wrong one the volume's diagonal"
    return CohortTable(title=title, columns=columns, rows=rows, plain={mean.region: asdict(mean) for mean in means})

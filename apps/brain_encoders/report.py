"""The reports of a training and of an inference run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.brain_encoders.prediction import brain_picture
from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace
from shared.inference.run import Outcome
from shared.reports.figures import read_metrics, training_curves
from shared.reports.html import Report

if TYPE_CHECKING:
    from apps.brain_encoders.data import Parts
    from apps.brain_encoders.inference import BrainEncoderPredictor
    from apps.brain_encoders.study import Study

__all__ = ["region_rows", "write_inference_report", "write_training_report"]

SHOWN = 12


def write_training_report(folder: Path, predictor: BrainEncoderPredictor, study: Study, parts: Parts, metrics: Mapping[str, float]) -> Path:
    """``folder/report.html``: curves, validation correlations on the brain and by region, and what regions looked at."""
    report = Report(f"Training of {predictor.about['name']}")
    report.facts({name.replace("_", " "): value for name, value in metrics.items()})
    if predictor.settings.model.name != "ridge":
        report.section("Curves")
        curves = training_curves(read_metrics(folder / "metrics.csv", x="epoch"), x_label="Epoch")
        report.figure(curves, caption=f"The weights are those of epoch {predictor.facts['best_epoch']}.")
    report.section("Validation images")
    picture = brain_picture(predictor.brain.correlation, study.space, limit=1.0, height=240)
    report.figure(picture, caption="Correlation of predicted and measured responses, from -1 (blue) to 1 (red), over validation images.")
    rows = region_rows(predictor.brain.correlation, study.regions)
    report.table(["region", "units", "mean correlation", "median"], rows, caption="By region; units may be in several.")
    if predictor.settings.queries:
        report.section("Where regions look")
        route = predictor.predict(parts.validation[0]).image, predictor.routes(parts.validation[0])
        from shared.explain.overlay import heat

        report.gallery([(heat(route[0], values), name) for name, values in list(route[1].items())[:SHOWN]])
    path = folder / "report.html"
    report.write(path)
    return path


def write_inference_report(outcome: Outcome, about: Mapping[str, Any], space: SurfaceSpace | VolumeSpace | TableSpace) -> Path:
    """``report.html`` in the output folder: mean responses by region, the brains of the first pictures, and what could not be used."""
    report = Report("Predicted brain responses")
    report.facts({"pictures": len(outcome.rows), "units": sum(space.hemispheres), "not usable": len(outcome.failures)})
    report.text(f"Model: {about['name']}. Responses of all units: the .npy files; by region: predictions.jsonl.")
    if outcome.failures:
        report.section("Inputs that could not be used")
        report.table(["input", "reason"], list(outcome.failures.items()), caption="None of these changed the other results.")
    if outcome.rows:
        names = [name for name in outcome.rows[0]["mean_response"] if not name.endswith("all")][:SHOWN]
        rows = [[_name(row), *(row["mean_response"][name] for name in names)] for row in outcome.rows]
        report.section("Mean response by region")
        report.table(["picture", *names], rows, caption="In the units that the encoder was trained on.")
        shown = outcome.rows[:SHOWN]
        report.section("Pictures" if len(shown) == len(outcome.rows) else f"The first {SHOWN} pictures")
        maps = [(_name(row), np.load(outcome.folder / row["files"]["responses"])) for row in shown]
        limit = float(np.percentile(abs(np.concatenate([values for _, values in maps])), 98))
        report.gallery([(brain_picture(values, space, limit=limit), name) for name, values in maps])
    path = outcome.folder / "report.html"
    report.write(path)
    return path


def region_rows(values: np.ndarray, regions: Mapping[str, np.ndarray]) -> list[list[Any]]:
    """Region, units, mean and median of the known values of a map [V]; all units first."""
    rows: list[list[Any]] = []
    for name, mask in {"all": np.ones(len(values), dtype=bool), **regions}.items():
        known = values[mask][np.isfinite(values[mask])]
        if len(known):
            rows.append([name, int(mask.sum()), float(known.mean()), float(np.median(known))])
    return rows


def _name(row: Mapping[str, Any]) -> str:
    return f"{Path(row['input']).name} {row['sample']}".strip()

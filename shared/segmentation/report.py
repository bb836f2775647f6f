"""The reports of a training and of an inference run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import InputError
from shared.explain.overlay import AGREEMENT_COLORS
from shared.inference.run import Outcome
from shared.reports.figures import read_metrics, training_curves
from shared.reports.html import Link, Report
from shared.reports.slices import agreement
from shared.segmentation.cases import read_labelled
from shared.segmentation.predictor import VolumePredictor

if TYPE_CHECKING:
    from shared.segmentation.training import Trained

__all__ = ["write_inference_report", "write_training_report"]

SHOWN = 24
VALIDATION_SHOWN = 8


def write_training_report(folder: Path, trained: Trained, predictor: VolumePredictor) -> Path:
    """``folder/report.html``: curves, validation figures, and some validation volumes with what was found in them."""
    report = Report(f"Training of {predictor.name}")
    dice = {f"validation Dice, {name}": value for name, value in trained.dice.items()}
    report.facts({**dice, "threshold": trained.threshold, "volumes to train on": len(trained.volumes[0])})
    report.section("Curves")
    curves = training_curves(read_metrics(folder / "metrics.csv", x="epoch"), x_label="Epoch")
    report.figure(curves, caption=f"The weights are those of epoch {trained.run.epoch}. Dice is on the network's voxels, at 0.5.")
    report.section("Validation volumes")
    pictures = []
    for one in trained.volumes[1][:VALIDATION_SHOWN]:
        try:
            image, truth = read_labelled(one, predictor.classes)
            pictures.append((agreement(image, predictor.predict(image).labels, truth.values), one.name))
        except InputError:
            continue  # said at the start of the training
    report.gallery(pictures, legend=AGREEMENT_COLORS)
    path = folder / "report.html"
    report.write(path)
    return path


def write_inference_report(outcome: Outcome, about: Mapping[str, Any]) -> Path:
    """``report.html`` of the output folder: the measurements of all volumes, with links to the page of each, and pictures."""
    found = sum(bool(row["found"]) for row in outcome.rows)
    report = Report("Segmented volumes", details={"Model": about["name"], "Version": about["version"]})
    report.facts({"volumes": len(outcome.rows), "something found in": found, "unusable inputs": len(outcome.failures)})
    if outcome.failures:
        report.section("Inputs that could not be used")
        report.table(["input", "reason"], list(outcome.failures.items()), caption="None of these changed the other results.")
    if outcome.rows:
        parts = "lesions" if "lesions" in outcome.rows[0] else "parts"
        report.section("Measurements")
        rows = [
            [
                _linked(row),
                row[parts],
                row["volume_ml"],
                row["largest_diameter_mm"],
                row["mean_probability"],
                row["mean_uncertainty_inside"],
            ]
            for row in outcome.rows
        ]
        columns = ["volume", parts, "all (ml)", "largest diameter (mm)", "mean probability", "mean uncertainty"]
        report.table(columns, rows, caption="Volumes together; the diameter of the largest part, in any direction.", decimals=2)
        shown = outcome.rows[:SHOWN]
        report.section("Volumes" if len(outcome.rows) <= SHOWN else f"The first {SHOWN} volumes")
        report.gallery([(outcome.folder / row["files"]["overlay"], f"{_name(row)}: {row['volume_ml']:.2f} ml") for row in shown])
    path = outcome.folder / "report.html"
    report.write(path)
    return path


def _name(row: Mapping[str, Any]) -> str:
    return Path(row["files"]["overlay"]).name.removesuffix("_overlay.png")


def _linked(row: Mapping[str, Any]) -> Link | str:
    page = row["files"].get("report")
    return Link(text=_name(row), path=page) if page else _name(row)

"""The reports of a training and of an inference run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.pranet.data import read_pair
from shared.explain.overlay import AGREEMENT_COLORS, overlay
from shared.imaging import Pair
from shared.inference.run import Outcome
from shared.reports.figures import read_metrics, training_curves
from shared.reports.html import Report

if TYPE_CHECKING:
    from apps.pranet.inference import PraNetPredictor
    from shared.training.fit import Run

__all__ = ["write_inference_report", "write_training_report"]

SHOWN = 24


def write_training_report(
    folder: Path, run: Run, predictor: PraNetPredictor, validation: list[Pair], metrics: Mapping[str, float | None]
) -> Path:
    """``folder/report.html``: curves, validation figures, and the validation frames, worst first."""
    report = Report(f"Training of {predictor.about['name']}")
    report.facts({name.replace("_", " "): value for name, value in metrics.items()})
    report.section("Curves")
    curves = training_curves(read_metrics(folder / "metrics.csv", x="epoch"), x_label="Epoch")
    report.figure(curves, caption=f"The weights are those of epoch {run.epoch}.")
    report.section("Validation frames")
    frames = []
    for pair in validation[:SHOWN]:
        image, truth = read_pair(pair)
        frames.append((overlay(image, predictor.predict(image).mask, truth=truth), pair.stem))
    report.gallery(frames, legend=AGREEMENT_COLORS)
    path = folder / "report.html"
    report.write(path)
    return path


def write_inference_report(outcome: Outcome, about: Mapping[str, Any]) -> Path:
    """``report.html`` in the output folder: how many frames show a polyp, the overlays of the first, and what could not be used."""
    frames, found = len(outcome.rows), sum(row["polyp"] for row in outcome.rows)
    report = Report("Polyps found")
    report.facts({"frames": frames, "with a polyp": found, "without": frames - found, "not usable": len(outcome.failures)})
    report.text(f"Model: {about['name']}. All measurements: predictions.jsonl.")
    if outcome.failures:
        report.section("Inputs that could not be used")
        report.table(["input", "reason"], list(outcome.failures.items()), caption="None of these changed the other results.")
    if outcome.rows:
        report.section("Frames" if len(outcome.rows) <= SHOWN else f"The first {SHOWN} frames")
        shown = outcome.rows[:SHOWN]
        report.gallery([(outcome.folder / row["files"]["overlay"], _caption(row)) for row in shown])
    path = outcome.folder / "report.html"
    report.write(path)
    return path


def _caption(row: Mapping[str, Any]) -> str:
    name = f"{Path(row['input']).name} {row['sample']}".strip()
    return f"{name}: {'polyp' if row['polyp'] else 'no polyp'}, confidence {row['confidence']:.2f}"

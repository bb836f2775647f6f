"""The reports of a training and of an inference run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.inference.run import Outcome
from shared.reports.figures import read_metrics, training_curves
from shared.reports.html import Report

if TYPE_CHECKING:
    from apps.acmil.inference import ACMILPredictor
    from shared.training.fit import Run

__all__ = ["write_inference_report", "write_training_report"]

SHOWN = 24


def write_training_report(
    folder: Path, run: Run, predictor: ACMILPredictor, metrics: Mapping[str, Mapping[str, float | None]], counts: Mapping[str, int]
) -> Path:
    """``folder/report.html``: how many slides, figures of validation and held-out slides, and curves."""
    report = Report(f"Training of {predictor.about['name']}")
    report.facts({f"slides: {part}": count for part, count in counts.items()})
    report.section("Scores")
    names = list(next(iter(metrics.values())))
    rows = [[part, *(one[name] for name in names)] for part, one in metrics.items()]
    report.table(
        ["slides", *(name.replace("_", " ") for name in names)],
        rows,
        caption="The validation slides chose the epoch, so that their figures flatter; held-out slides (test) had no part in it. "
        "F1 as the ACMIL program prints it is the micro one, which equals the accuracy.",
    )
    report.section("Curves")
    curves = training_curves(read_metrics(folder / "metrics.csv", x="epoch"), x_label="Epoch")
    report.figure(
        curves,
        caption=f"The weights are those of epoch {run.epoch}. Diversity is how alike the branches look: 1 if all look at the same tiles. "
        "Evenness is 0 if a single tile has all the attention, 1 if all tiles have the same.",
    )
    path = folder / "report.html"
    report.write(path)
    return path


def write_inference_report(outcome: Outcome, about: Mapping[str, Any]) -> Path:
    """``report.html`` in the output folder: the answers, the first slides' most attended tiles, and what could not be used."""
    report = Report("Slides classified")
    classes = about["settings"]["classes"]
    counts = {name: sum(row["prediction"] == name for row in outcome.rows) for name in classes}
    report.facts({"slides": len(outcome.rows), **counts, "not usable": len(outcome.failures)})
    report.text(f"Model: {about['name']}. Attention shows what the network used for its answer, not where disease is.")
    if outcome.failures:
        report.section("Inputs that could not be used")
        report.table(["input", "reason"], list(outcome.failures.items()), caption="None of these changed the other results.")
    if outcome.rows:
        report.section("Answers")
        header = ["slide", "answer", *(f"probability of {name}" for name in classes), "tiles", "top ten tiles"]
        cells = [
            [
                Path(row["input"]).name,
                row["prediction"],
                *row["probabilities"].values(),
                row["tiles"],
                row["attention_share_of_top_10_tiles"],
            ]
            for row in outcome.rows
        ]
        report.table(header, cells, caption="All measurements: predictions.jsonl.")
    shown = [row for row in outcome.rows if "top" in row["files"]][:SHOWN]
    if shown:
        report.section("What was looked at most")
        report.text("Upper row: all branches together; below, each branch. The highest attention is on the left.")
        report.gallery([(outcome.folder / row["files"]["top"], f"{Path(row['input']).name}: {row['prediction']}") for row in shown])
    path = outcome.folder / "report.html"
    report.write(path)
    return path

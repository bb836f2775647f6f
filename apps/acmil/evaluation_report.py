"""The table on the terminal and the HTML report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from apps.acmil.figures import concentration_curves, confusion_matrix
from apps.acmil.paper import reported_scores
from shared.reports.figures import bars_with_intervals
from shared.reports.html import Report

if TYPE_CHECKING:
    from apps.acmil.evaluation import Evaluation, ModelScores

__all__ = ["print_table", "write_evaluation_report"]

COLUMNS = {"auc": "AUC", "f1_macro": "F1 (macro)", "f1_micro": "F1 (micro)", "balanced_accuracy": "balanced accuracy"}
WORST = 12


def print_table(found: Evaluation) -> None:
    """The figures with their intervals, the baseline's, a trivial answer's, and what others report for this data set."""
    table = Table(title=found.data, title_justify="left")
    for column in ("answer of", *COLUMNS.values()):
        table.add_column(column, no_wrap=True, overflow="fold")
    for row in _rows(found):
        table.add_row(*row)
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table)  # a narrow terminal would cut digits off
    if found.difference is not None:
        print(f"model minus baseline, in the probability of the true class: {found.difference}")
    for one in reported_scores(found.data):
        print(f"reported: {one.method} on {one.encoder}: {one.metric} {one.value} ({one.source})")
    print("In parentheses: 95 % intervals over patients. The ACMIL program prints the micro F1, which equals the accuracy.")


def write_evaluation_report(path: Path, found: Evaluation) -> Path:
    """Figures, tables, and the slides that were judged worst."""
    report = Report(f"Evaluation of {found.model.name}")
    patients = len({case.slide.patient for case in found.model.cases})
    report.facts({"slides": len(found.model.cases), "patients": patients, "AUC": found.model.figures.get("auc")})
    report.section("Scores")
    report.table(["answer of", *COLUMNS.values()], [list(row) for row in _rows(found)], caption=_EXPLANATION)
    bars = [(model.name, COLUMNS[name], value) for model in _models(found) for name, value in model.figures.items() if name in COLUMNS]
    report.figure(
        bars_with_intervals(
            [label for _, label, _ in bars],
            [value.estimate for _, _, value in bars],
            low=[value.low for _, _, value in bars],
            high=[value.high for _, _, value in bars],
            groups=[name for name, _, _ in bars],
        ),
        caption="Whiskers: 95 % intervals over patients.",
    )
    if reported := reported_scores(found.data):
        rows = [[one.method, one.encoder, one.metric, one.value, one.source] for one in reported]
        report.table(
            ["method", "encoder", "figure", "value", "source"], rows, caption="What others report: other encoders, other divisions."
        )
    report.section("Which class is taken for which")
    report.figure(confusion_matrix(found.model.cases, found.classes), caption="Slides of each class by what the model says.")
    report.section("How much of the attention a few tiles have")
    curves = {model.name: [case.attention for case in model.cases] for model in _models(found)}
    report.figure(
        concentration_curves(curves),
        caption="The share of attention that the highest-ranked tiles of a slide have, mean over slides; the paper's measure of how many "
        "tiles a decision rests on. A curve that is at 1 at once belongs to a network that looks at a handful of tiles.",
    )
    report.section("The slides judged worst")
    worst = sorted(found.model.cases, key=lambda case: float(case.probability[case.slide.label]))[:WORST]
    report.table(
        ["slide", "label", "answer", "probability of the label"],
        [_line(case, found.classes) for case in worst],
        caption="Look at these: apps.acmil infer makes their heat maps.",
    )
    if found.failures:
        report.table(["slide that could not be used", "reason"], list(found.failures.items()), caption="Left out of every score.")
    report.write(path)
    return path


_EXPLANATION = (
    "AUC: one class against the rest, averaged over the classes. Intervals are over patients, because slides of one patient resemble each "
    "other. The ACMIL program prints the micro F1, which equals the accuracy."
)


def _models(found: Evaluation) -> list[ModelScores]:
    return [model for model in (found.model, found.baseline) if model is not None]


def _rows(found: Evaluation) -> Iterator[tuple[str, ...]]:
    for model in _models(found):
        yield model.name, *(str(model.figures[name]) if name in model.figures else "" for name in COLUMNS)
    for answer, value in found.trivial.items():
        yield f"trivial: {answer}", "0.500", "", "", f"{value:.3f}"


def _line(case, classes: tuple[str, ...]) -> list[str]:
    said = classes[int(np.argmax(case.probability))]
    return [case.slide.name, case.slide.label_name, said, f"{float(case.probability[case.slide.label]):.3f}"]

"""The table on the terminal and the HTML report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from apps.pranet.data import read_pair
from apps.pranet.paper import published_scores
from shared.explain.overlay import AGREEMENT_COLORS, overlay
from shared.imaging import Pair
from shared.reports.figures import bars_with_intervals, reliability_diagram, score_against_size, score_distribution
from shared.reports.html import Report

if TYPE_CHECKING:
    from apps.pranet.evaluation import ModelScores, SetScores
    from apps.pranet.inference import PraNetPredictor

__all__ = ["print_table", "write_evaluation_report"]

COLUMNS = ("test set", "answer of", "mDice", "mIoU", "wF", "S", "maxE", "MAE", "Dice")
DETECTION_COLUMNS = ("test set", "frames with / without a polyp", "sensitivity", "specificity", "AUC", "calibration error")
WORST = 12
"""Frames of each set that the report shows."""


def print_table(scores: Sequence[SetScores]) -> None:
    """The paper's table, set by set: the model, the baseline, the paper's figures, and answers that need no network."""
    for one in scores:
        table = Table(title=one.name, title_justify="left")
        for column in COLUMNS[1:]:
            table.add_column(column, no_wrap=True, overflow="fold")
        for row in _rows(one):
            table.add_row(*row[1:])
        needed = Console(width=1000).measure(table).maximum
        Console(width=max(Console().width, needed)).print(table)  # a narrow terminal would cut digits off
        if one.difference is not None:
            print(f"model minus baseline in plain Dice: {one.difference}")
    print(
        "mDice to MAE as in the paper: over 256 thresholds, each map stretched. Dice: at the bundle's thresholds, with its 95 % interval."
    )


def write_evaluation_report(
    path: Path, scores: Sequence[SetScores], predictor: PraNetPredictor, sets: Mapping[str, Sequence[Pair]]
) -> Path:
    """Figures, tables, and the worst frames of each set first."""
    name = predictor.about["name"]
    report = Report(f"Evaluation of {name}")
    report.facts({f"plain Dice, {one.name}": one.model.dice for one in scores})
    report.section("Scores")
    report.table(list(COLUMNS), [list(row) for one in scores for row in _rows(one)], caption=_EXPLANATION)
    bars = [(one.name, answer, dice) for one in scores for answer, dice in _bars(one)]
    report.figure(
        bars_with_intervals(
            [bar[0] for bar in bars],
            [bar[2][0] for bar in bars],
            low=[bar[2][1] for bar in bars],
            high=[bar[2][2] for bar in bars],
            groups=[bar[1] for bar in bars],
        ),
        caption="Plain Dice beside answers that need no network.",
    )
    report.section("Frame by frame")
    report.figure(
        score_distribution({one.name: [case.counts.dice for case in one.model.cases] for one in scores}), caption="Dice of each frame."
    )
    cases = [case for one in scores for case in one.model.cases]
    if any(case.truth_area_fraction > 0 for case in cases):
        sizes, values = [case.truth_area_fraction for case in cases], [case.counts.dice for case in cases]
        report.figure(score_against_size(sizes, values), caption="Small polyps are the hard ones.")
    report.section("Detection and calibration")
    report.table(DETECTION_COLUMNS, [_detection(one) for one in scores], caption="Frames told apart by their confidence.")
    calibration = {one.name: one.model.calibration for one in scores}
    report.figure(reliability_diagram(calibration), caption="Probability of a pixel against how often it was polyp.")
    for one in scores:
        pairs = {pair.stem: pair for pair in sets[one.name]}
        worst = sorted(one.model.cases, key=lambda case: case.counts.dice)[:WORST]
        report.section(f"{one.name}: the {len(worst)} worst frames")
        report.gallery(
            [(_picture(pairs[case.name], predictor), f"{case.name}: Dice {case.counts.dice:.2f}") for case in worst],
            legend=AGREEMENT_COLORS,
        )
        if one.failures:
            report.table(["frame that could not be used", "reason"], list(one.failures.items()), caption="Left out of every score.")
    report.write(path)
    return path


_EXPLANATION = (
    "The paper's metrics stretch every map to its own full range and average over 256 thresholds; frames without a polyp are left out "
    "of them. Plain Dice is taken at the bundle's thresholds over all frames and is 1 for an empty frame left empty."
)


def _rows(one: SetScores) -> Iterator[tuple[str, ...]]:
    for answer, model in (("this model", one.model), ("baseline", one.baseline)):
        if model is not None:
            scores = model.benchmark
            six = (scores.mean_dice, scores.mean_iou, scores.weighted_f, scores.s_measure, scores.max_e, scores.mean_absolute_error)
            yield one.name, answer, *(f"{value:.3f}" for value in six), str(model.dice)
    paper = published_scores(one.name)
    if paper is not None:
        six = (paper.mean_dice, paper.mean_iou, paper.weighted_f, paper.s_measure, paper.max_e, paper.mean_absolute_error)
        yield one.name, "PraNet (paper)", *(f"{value:.3f}" for value in six), ""
        for answer, dice in (("U-Net (paper)", paper.unet_mean_dice), ("U-Net++ (paper)", paper.unetpp_mean_dice)):
            yield one.name, answer, f"{dice:.3f}", "", "", "", "", "", ""
    for answer, dice in one.trivial.items():
        yield one.name, f"trivial: {answer}", "", "", "", "", "", "", f"{dice:.3f}"


def _bars(one: SetScores) -> Iterator[tuple[str, tuple[float, float | None, float | None]]]:
    for answer, model in (("this model", one.model), ("baseline", one.baseline)):
        if model is not None:
            yield answer, (model.dice.estimate, model.dice.low, model.dice.high)
    for answer, dice in one.trivial.items():
        yield answer, (dice, None, None)


def _detection(one: SetScores) -> list[str]:
    model: ModelScores = one.model
    found = model.detection
    shares = ("" if value is None else f"{value:.3f}" for value in (found.sensitivity, found.specificity, found.roc_auc))
    return [one.name, f"{found.positives} / {found.negatives}", *shares, f"{model.calibration.expected_calibration_error:.4f}"]


def _picture(pair: Pair, predictor: PraNetPredictor) -> NDArray[np.uint8]:
    image, truth = read_pair(pair)
    return overlay(image, predictor.predict(image).mask, truth=truth)

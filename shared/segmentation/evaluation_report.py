"""The HTML report of an evaluation: scores beside trivial answers, then the worst cases."""

from __future__ import annotations

from pathlib import Path

from shared.explain.overlay import AGREEMENT_COLORS
from shared.reports.figures import bars_with_intervals, score_distribution
from shared.reports.html import Report
from shared.reports.slices import agreement
from shared.reports.volume_figures import bland_altman
from shared.segmentation.cases import read_labelled
from shared.segmentation.evaluation import Evaluation, score_rows
from shared.segmentation.predictor import VolumePredictor

__all__ = ["write_evaluation_report"]

WORST = 8


def write_evaluation_report(path: Path, evaluation: Evaluation, predictor: VolumePredictor) -> Path:
    """Figures, tables, and the worst cases first."""
    report = Report(f"Evaluation of {predictor.name}", subtitle=f"{len(evaluation.model.cases)} cases")
    report.facts({"mean Dice": evaluation.model.dice, **{f"Dice, {name}": one for name, one in evaluation.model.class_dice.items()}})
    report.section("Scores")
    columns, rows = score_rows(evaluation)
    report.table(
        columns,
        rows,
        caption="On the volumes' own voxels; 95 % intervals over patients. HD95 of the cases where both masks hold something.",
    )
    models = [model for model in (evaluation.model, evaluation.baseline) if model is not None]
    bars = [(name, model.name, dice) for model in models for name, dice in model.class_dice.items()]
    report.figure(
        bars_with_intervals(
            [name for name, _, _ in bars],
            [dice.estimate for _, _, dice in bars],
            low=[dice.low for _, _, dice in bars],
            high=[dice.high for _, _, dice in bars],
            groups=[model for _, model, _ in bars],
        ),
        caption="Dice of each class.",
    )
    for table in evaluation.tables:
        report.table(list(table.columns), [list(row) for row in table.rows], caption=table.title)
    report.section("Case by case")
    report.figure(
        score_distribution(
            {f"{model.name}, {name}": [case.classes[name].dice for case in model.cases] for model in models for name in model.class_dice},
            label="Dice per case",
        ),
        caption="Dice of each case.",
    )
    pairs = [scores for case in evaluation.model.cases for scores in case.classes.values()]
    if len(pairs) > 1:
        figure = bland_altman([one.predicted_ml for one in pairs], [one.true_ml for one in pairs])
        report.figure(figure, caption="Volumes of all classes: how far the prediction is from the truth.")
    worst = sorted(evaluation.model.cases, key=lambda case: case.dice)[:WORST]
    report.section(f"The {len(worst)} worst cases")
    pictures = []
    for case in worst:
        image, truth = read_labelled(evaluation.volumes[case.name], predictor.classes)
        pictures.append((agreement(image, predictor.predict(image).labels, truth.values), f"{case.name}: mean Dice {case.dice:.2f}"))
    report.gallery(pictures, legend=AGREEMENT_COLORS)
    if evaluation.failures:
        report.table(["case that could not be used", "reason"], list(evaluation.failures.items()), caption="Left out of every score.")
    report.write(path)
    return path

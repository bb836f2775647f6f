"""Scores on labelled volumes, on the volumes' own voxels: each class plainly, with intervals over patients, beside trivial answers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from shared.errors import InputError, UserError
from shared.files import write_json, write_text
from shared.imaging.volumes import Volume
from shared.inference.run import SOME_FAILED
from shared.metrics.intervals import Interval, bootstrap_interval, paired_difference
from shared.metrics.segmentation import confusion, surface_distances
from shared.segmentation.cases import LabelledVolume, group_of, labelled_volumes, read_labelled
from shared.segmentation.config import EvaluateVolumesConfig
from shared.segmentation.prediction import VolumePrediction
from shared.segmentation.predictor import Options, VolumePredictor
from shared.segmentation.trivial import TRIVIAL

__all__ = ["ClassScores", "CohortTable", "ScoredCase", "ScoredModel", "evaluate_volumes"]


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One class of one case, on the volume's own voxels."""

    true_ml: float
    predicted_ml: float
    dice: float
    """2 TP / (2 TP + FP + FN); 1 where there is none and none was found."""
    sensitivity: float
    specificity: float
    hausdorff_95_mm: float | None
    """The larger of the two directions' 95th percentiles; None where a mask is empty."""
    surface_mm: float | None
    """Average symmetric surface distance; None where a mask is empty."""


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """One case as one model answered it."""

    name: str
    patient: str
    classes: dict[str, ClassScores]
    extra: Any = None
    """What the app's own metrics are made of."""

    @property
    def dice(self) -> float:
        """Mean over the classes."""
        return float(np.mean([scores.dice for scores in self.classes.values()]))


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """One model on all cases."""

    name: str
    cases: list[ScoredCase]
    dice: Interval
    """Mean over classes, then cases."""
    class_dice: dict[str, Interval]
    class_hausdorff_95_mm: dict[str, Interval | None]
    """Of the cases that have it."""
    class_surface_mm: dict[str, Interval | None]
    volume_error_ml: dict[str, Interval]
    """Predicted minus true."""


@dataclass(frozen=True, kw_only=True)
class CohortTable:
    """What an app adds: a table for the terminal and the report, and the same as plain numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    plain: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was found."""

    model: ScoredModel
    baseline: ScoredModel | None
    difference: Interval | None
    """Model minus baseline in mean Dice, case by case."""
    trivial: dict[str, float]
    """Mean Dice of answers that need no network."""
    volumes: dict[str, LabelledVolume]
    tables: list[CohortTable]
    failures: dict[str, str] = field(default_factory=dict)
    """Cases that could not be used, and why."""


Extra = Callable[[VolumePrediction, NDArray[np.uint8], str], Any]
"""A prediction, the true label map and the patient -> what the app's own metrics are made of."""
Summary = Callable[[Sequence[ScoredCase], EvaluateVolumesConfig], CohortTable | None]
"""All cases of one model -> the app's own table; None where its metrics are not of these classes."""


def evaluate_volumes(
    predictor_class: type[VolumePredictor], config: EvaluateVolumesConfig, *, extra: Extra | None = None, summary: Summary | None = None
) -> int:
    """Scores, prints tables, and writes metrics.json, cases.csv and report.html; the exit code is 3 if some cases could not be used."""
    from shared.segmentation.evaluation_report import write_evaluation_report

    options = Options(batch_size=config.batch_size, tta=config.tta)
    predictor, baseline = (
        None if folder is None else predictor_class.load(folder, device=config.device, precision=config.precision, options=options)
        for folder in (config.model, config.baseline)
    )
    assert predictor is not None
    if baseline is not None and baseline.classes.task.labels != predictor.classes.task.labels:
        raise UserError(f"{config.baseline}: has other classes than {config.model}; only bundles of one task can be compared.")
    volumes = labelled_volumes(config.data, predictor.settings.task)
    evaluation = _scored(volumes, predictor, baseline, config, extra, summary)
    write_json(config.output / "metrics.json", _plain(evaluation))
    write_text(config.output / "cases.csv", _table_of_cases(evaluation))
    _print(evaluation)
    report = write_evaluation_report(config.output / "report.html", evaluation, predictor)
    print(f"Figures and pictures: {report}")
    for name, reason in evaluation.failures.items():
        print(f"not scored: {name}: {reason}")
    return SOME_FAILED if evaluation.failures else 0


def score_case(prediction: VolumePrediction, truth: NDArray[np.uint8], *, name: str, patient: str, extra: Extra | None) -> ScoredCase:
    """Scores of one case; truth: [X, Y, Z] on the volume's own voxels."""
    predicted, true = prediction.classes.masks(prediction.labels), prediction.classes.masks(truth)
    return ScoredCase(
        name=name,
        patient=patient,
        classes={what: _class_scores(predicted[what], true[what], prediction.volume) for what in prediction.classes.names},
        extra=None if extra is None else extra(prediction, truth, patient),
    )


def _class_scores(predicted: NDArray[np.bool_], true: NDArray[np.bool_], volume: Volume) -> ClassScores:
    counts, both = confusion(predicted, true), bool(predicted.any() and true.any())
    distances = surface_distances(predicted, true, spacing=volume.spacing_mm) if both else None
    return ClassScores(
        true_ml=float(true.sum()) * volume.voxel_ml,
        predicted_ml=float(predicted.sum()) * volume.voxel_ml,
        dice=counts.dice,
        sensitivity=counts.sensitivity,
        specificity=counts.specificity,
        hausdorff_95_mm=None if distances is None else distances.hausdorff_95,
        surface_mm=None if distances is None else distances.average,
    )


def _scored(
    volumes: Sequence[LabelledVolume],
    predictor: VolumePredictor,
    baseline: VolumePredictor | None,
    config: EvaluateVolumesConfig,
    extra: Extra | None,
    summary: Summary | None,
) -> Evaluation:
    failures: dict[str, str] = {}
    cases: dict[str, list[ScoredCase]] = {"model": [], "baseline": []}
    trivial: dict[str, list[float]] = {answer: [] for answer in TRIVIAL}
    used: dict[str, LabelledVolume] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for one in progress.track(volumes, description="scoring"):
            patient = group_of(config.group_pattern, one.name)
            try:
                image, truth = read_labelled(one, predictor.classes)
                answers = {"model": predictor.predict(image)}
                if baseline is not None:
                    answers["baseline"] = baseline.predict(image)
            except InputError as error:
                failures[one.name] = str(error)
                continue
            used[one.name] = one
            for who, prediction in answers.items():
                cases[who].append(score_case(prediction, truth.values, name=one.name, patient=patient, extra=extra))
            true = predictor.classes.masks(truth.values)
            for answer, function in TRIVIAL.items():
                mask = function(image)
                trivial[answer].append(float(np.mean([confusion(mask, each).dice for each in true.values()])))
    if not used:
        raise UserError(f"{config.data}: not one of {len(volumes)} cases could be used, the first: {next(iter(failures.values()))}")
    model = _model(predictor.name, cases["model"], config)
    other = _model(baseline.name, cases["baseline"], config) if baseline is not None else None
    tables = [summary(each.cases, config) for each in (model, other) if each is not None] if summary else []
    return Evaluation(
        model=model,
        baseline=other,
        difference=None if other is None else _difference(model, other, config),
        trivial={answer: float(np.mean(values)) for answer, values in trivial.items()},
        volumes=used,
        tables=[table for table in tables if table is not None],
        failures=failures,
    )


def _model(name: str, cases: list[ScoredCase], config: EvaluateVolumesConfig) -> ScoredModel:
    classes = list(cases[0].classes)

    def over(value: Callable[[ClassScores], float | None]) -> dict[str, Interval | None]:
        return {what: _interval([(value(case.classes[what]), case.patient) for case in cases], config) for what in classes}

    def over_all(value: Callable[[ClassScores], float]) -> dict[str, Interval]:
        return {what: interval for what, interval in over(value).items() if interval is not None}

    dice = _interval([(case.dice, case.patient) for case in cases], config)
    assert dice is not None
    return ScoredModel(
        name=name,
        cases=cases,
        dice=dice,
        class_dice=over_all(lambda scores: scores.dice),
        class_hausdorff_95_mm=over(lambda scores: scores.hausdorff_95_mm),
        class_surface_mm=over(lambda scores: scores.surface_mm),
        volume_error_ml=over_all(lambda scores: scores.predicted_ml - scores.true_ml),
    )


def _interval(values: Sequence[tuple[float | None, str]], config: EvaluateVolumesConfig) -> Interval | None:
    known = [(value, patient) for value, patient in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    numbers = [value for value, _ in known]
    if not config.bootstrap:
        return Interval(estimate=float(np.mean(numbers)), low=None, high=None, confidence=0.95)
    return bootstrap_interval(numbers, groups=[patient for _, patient in known], resamples=config.bootstrap, seed=config.seed)


def _difference(model: ScoredModel, baseline: ScoredModel, config: EvaluateVolumesConfig) -> Interval:
    difference = paired_difference(
        [case.dice for case in model.cases],
        [case.dice for case in baseline.cases],
        groups=[case.patient for case in model.cases],
        resamples=config.bootstrap,
        seed=config.seed,
    )
    return difference if config.bootstrap else replace(difference, low=None, high=None)


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    """As metrics.json keeps it."""

    def intervals(of: Mapping[str, Interval | None]) -> dict[str, Any]:
        return {name: None if interval is None else asdict(interval) for name, interval in of.items()}

    def model(one: ScoredModel | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return {
            "name": one.name,
            "cases": len(one.cases),
            "dice": asdict(one.dice),
            "class_dice": intervals(one.class_dice),
            "class_hausdorff_95_mm": intervals(one.class_hausdorff_95_mm),
            "class_surface_mm": intervals(one.class_surface_mm),
            "volume_error_ml": intervals(one.volume_error_ml),
        }

    tables = dict(zip(("model", "baseline"), (table.plain for table in evaluation.tables), strict=False))
    return {
        "model": model(evaluation.model),
        "baseline": model(evaluation.baseline),
        "dice_difference": None if evaluation.difference is None else asdict(evaluation.difference),
        "trivial_dice": evaluation.trivial,
        "cohort": tables,
        "failures": evaluation.failures,
    }


def _table_of_cases(evaluation: Evaluation) -> str:
    text = io.StringIO()
    columns = list(ClassScores.__dataclass_fields__)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "case", "patient", "class", *columns])
    for who, model in (("model", evaluation.model), ("baseline", evaluation.baseline)):
        for case in model.cases if model is not None else ():
            for what, scores in case.classes.items():
                values = (getattr(scores, column) for column in columns)
                writer.writerow([who, case.name, case.patient, what, *("" if value is None else f"{value:.6g}" for value in values)])
    return text.getvalue()


def score_rows(evaluation: Evaluation) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of scores: each model by class, then the trivial answers."""
    rows: list[list[Any]] = []
    for model in (evaluation.model, evaluation.baseline):
        if model is None:
            continue
        for what, dice in model.class_dice.items():
            rows.append(
                [model.name, what, dice, model.class_hausdorff_95_mm[what], model.class_surface_mm[what], model.volume_error_ml[what]]
            )
        if len(model.class_dice) > 1:
            rows.append([model.name, "mean", model.dice, None, None, None])
    rows += [[f"trivial: {answer}", "mean", dice, None, None, None] for answer, dice in evaluation.trivial.items()]
    return ["answer of", "class", "Dice", "HD95 (mm)", "surface distance (mm)", "volume error (ml)"], rows


def _print(evaluation: Evaluation) -> None:
    columns, rows = score_rows(evaluation)
    tables = [(f"{len(evaluation.model.cases)} cases", columns, rows)]
    tables += [(table.title, list(table.columns), [list(row) for row in table.rows]) for table in evaluation.tables]
    for title, names, lines in tables:
        table = Table(title=title, title_justify="left")
        for name in names:
            table.add_column(name, no_wrap=True, overflow="fold")
        for line in lines:
            table.add_row(*(_shown(cell) for cell in line))
        needed = Console(width=1000).measure(table).maximum
        Console(width=max(Console().width, needed)).print(table)  # a narrow terminal would cut digits off
    if evaluation.difference is not None:
        print(f"model minus baseline in mean Dice: {evaluation.difference}")


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)

"""Scores on labelled slides, with intervals over patients."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from apps.acmil.bags import BagFile, list_bags
from apps.acmil.config import EvaluateConfig
from apps.acmil.data import LabelledSlide, first_folder, labelled_slides, read_labels
from apps.acmil.evaluation_report import print_table, write_evaluation_report
from apps.acmil.inference import ACMILPredictor, read_input
from apps.acmil.metrics import slide_intervals, slide_scores
from shared.errors import InputError, UserError
from shared.files import write_json, write_text
from shared.imaging.slides import find_slides
from shared.inference.run import SOME_FAILED
from shared.metrics.intervals import Interval, paired_difference

__all__ = ["Case", "Evaluation", "ModelScores", "evaluate"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One slide as one model answered it."""

    slide: LabelledSlide
    probability: NDArray[np.float32]
    """[C]."""
    attention: NDArray[np.float32]
    """[N]: the mean of the branches'."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """One model on all slides."""

    name: str
    figures: dict[str, Interval]
    """By the names of ``metrics.SlideScores``."""
    cases: list[Case]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was found."""

    data: str
    classes: tuple[str, ...]
    model: ModelScores
    baseline: ModelScores | None
    difference: Interval | None
    """Model minus baseline: the probability that each gives the true class, slide by slide."""
    trivial: dict[str, float]
    """Balanced accuracy of answers that need no network."""
    failures: dict[str, str]
    """Slides that could not be used, and why."""


def evaluate(config: EvaluateConfig) -> int:
    """Scores, prints the table and writes metrics.json, slides.csv and report.html; the exit code is 3 if some slides could not be used."""
    options = {"mpp": config.mpp, "encoder_weights": config.encoder_weights}
    predictor = ACMILPredictor.load(config.model, device=config.device, precision=config.precision, **options)
    slides = _slides(config, predictor.settings.classes)
    failures: dict[str, str] = {}
    cases = _cases(predictor, slides, failures)
    if not cases:
        raise UserError(f"{config.data}: not one of {len(slides)} slides could be used, the first: {next(iter(failures.values()))}")
    model = _scores(predictor, cases, config)
    baseline = difference = None
    if config.baseline is not None:
        other = ACMILPredictor.load(config.baseline, device=config.device, precision=config.precision, **options)
        if other.settings.classes != predictor.settings.classes:
            raise UserError(
                f"{config.baseline}: tells {', '.join(other.settings.classes)} apart, not {', '.join(predictor.settings.classes)}."
            )
        baseline = _scores(other, _cases(other, [case.slide for case in cases], failures), config)
        difference = _difference(model, baseline, config)
    labels = [case.slide.label for case in cases]
    common = np.bincount(labels, minlength=len(predictor.settings.classes)).argmax()
    constant = np.eye(len(predictor.settings.classes))[[common] * len(labels)]
    found = Evaluation(
        data=config.data.resolve().name,
        classes=predictor.settings.classes,
        model=model,
        baseline=baseline,
        difference=difference,
        trivial={"always the most common class": slide_scores(constant, labels).balanced_accuracy},
        failures=failures,
    )
    write_json(config.output / "metrics.json", _plain(found))
    write_text(config.output / "slides.csv", _table(found))
    print_table(found)
    report = write_evaluation_report(config.output / "report.html", found)
    print(f"Figures: {report}")
    for name, reason in failures.items():
        print(f"not scored: {name}: {reason}")
    return SOME_FAILED if failures else 0


def _slides(config: EvaluateConfig, classes: Sequence[str]) -> list[LabelledSlide]:
    """The labelled slides of a folder: their bags, or else themselves."""
    table = config.labels or config.data / "labels.csv"
    rows = [row for row in read_labels(table) if config.split is None or row.split.lower() == config.split.lower()]
    if not rows:
        raise UserError(f"{table}: no slide's column split says {config.split!r}.")
    folder = config.bags or first_folder(config.data, ("bags", "features", "h5_files"))
    if not folder.exists() and (config.data / "slides").is_dir():
        sources = [BagFile(slide=file.stem.rsplit("/", 1)[-1], path=file.path) for file in find_slides([config.data / "slides"])]
    else:
        sources = list_bags(folder)
    return labelled_slides(rows, sources, classes=classes, table=table)[0]


def _cases(predictor: ACMILPredictor, slides: Sequence[LabelledSlide], failures: dict[str, str]) -> list[Case]:
    cases = []
    for slide in track(slides, "scoring", console=Console(stderr=True), transient=True):
        try:
            given = read_input(slide.source.path, name=str(slide.source), mpp=predictor.mpp, group=slide.source.group)
            probability, _, attention = predictor.answer(predictor.bag_of(given).features)
        except InputError as error:
            failures[slide.name] = str(error)
            continue
        cases.append(Case(slide=slide, probability=probability, attention=attention.mean(0)))
    return cases


def _scores(predictor: ACMILPredictor, cases: list[Case], config: EvaluateConfig) -> ModelScores:
    figures = slide_intervals(
        [case.probability for case in cases],
        [case.slide.label for case in cases],
        patients=[case.slide.patient for case in cases],
        resamples=config.bootstrap,
        seed=config.seed,
    )
    return ModelScores(name=predictor.about["name"], figures=figures, cases=cases)


def _difference(model: ModelScores, baseline: ModelScores, config: EvaluateConfig) -> Interval:
    theirs = {case.slide.name: case for case in baseline.cases}
    both = [case for case in model.cases if case.slide.name in theirs]
    ours = [float(case.probability[case.slide.label]) for case in both]
    other = [float(theirs[case.slide.name].probability[case.slide.label]) for case in both]
    patients = [case.slide.patient for case in both]
    return paired_difference(ours, other, groups=patients, resamples=max(config.bootstrap, 1), seed=config.seed)


def _plain(found: Evaluation) -> dict[str, Any]:
    """As metrics.json keeps it."""

    def model(one: ModelScores) -> dict[str, Any]:
        patients = len({case.slide.patient for case in one.cases})
        figures = {name: asdict(value) for name, value in one.figures.items()}
        return {"name": one.name, **figures, "slides": len(one.cases), "patients": patients}

    return {
        "data": found.data,
        "classes": list(found.classes),
        "model": model(found.model),
        "baseline": None if found.baseline is None else model(found.baseline),
        "difference_in_probability_of_the_true_class": None if found.difference is None else asdict(found.difference),
        "trivial_balanced_accuracy": found.trivial,
        "failures": found.failures,
    }


def _table(found: Evaluation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "slide", "patient", "label", *(f"probability_{name}" for name in found.classes), "tiles"])
    for one in (found.model, found.baseline):
        for case in one.cases if one is not None else ():
            values = [f"{value:.6f}" for value in case.probability]
            writer.writerow([one.name, case.slide.name, case.slide.patient, case.slide.label_name, *values, len(case.attention)])
    return text.getvalue()

"""Scores on labelled frames: the paper's six metrics as it computes them, and plain ones with intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from apps.pranet.config import EvaluateConfig
from apps.pranet.data import labelled_frames, read_pair
from apps.pranet.evaluation_report import print_table, write_evaluation_report
from apps.pranet.inference import PolypPrediction, PraNetPredictor
from apps.pranet.trivial import TRIVIAL
from shared.errors import InputError, UserError
from shared.files import write_json, write_text
from shared.imaging import Pair
from shared.inference.run import SOME_FAILED
from shared.metrics.calibration import Reliability, reliability
from shared.metrics.intervals import Interval, bootstrap_interval, paired_difference
from shared.metrics.saliency import BenchmarkScores, ImageScores, benchmark_scores, grey_levels, summarise
from shared.metrics.segmentation import Confusion, Detection, confusion, detection

__all__ = ["Case", "ModelScores", "SetScores", "evaluate", "score_set"]


LabelledFrame = tuple[str, NDArray[np.uint8], NDArray[np.bool_]]
"""Stem, RGB frame [H, W, 3], true mask [H, W]."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One frame as one model answered it."""

    name: str
    truth_area_fraction: float
    confidence: float
    counts: Confusion
    """At the bundle's thresholds, in pixels of the frame."""
    benchmark: ImageScores
    reliability: Reliability


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """One model on one test set."""

    benchmark: BenchmarkScores
    """As the paper computes them; without frames that show no polyp, which its weighted F does not define."""
    dice: Interval
    """Mean over all frames of the plain Dice; 1 for an empty frame left empty."""
    iou: Interval
    detection: Detection
    calibration: Reliability
    cases: list[Case]


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """Everything about one test set."""

    name: str
    model: ModelScores
    baseline: ModelScores | None
    difference: Interval | None
    """Model minus baseline in plain Dice, frame by frame."""
    trivial: dict[str, float]
    """Mean plain Dice of answers that need no network."""
    failures: dict[str, str] = field(default_factory=dict)
    """Frames that could not be used, and why."""


def evaluate(config: EvaluateConfig) -> int:
    """Scores, prints the table and writes metrics.json, cases.csv and report.html; the exit code is 3 if some frames could not be used."""
    predictor = PraNetPredictor.load(config.model, device=config.device, precision=config.precision)
    baseline = None if config.baseline is None else PraNetPredictor.load(config.baseline, device=config.device, precision=config.precision)
    sets = _test_sets(config.data)
    scores = []
    with Progress(console=Console(stderr=True)) as progress:
        for name, pairs in sets.items():
            task = progress.add_task(name, total=len(pairs))
            scores.append(score_set(name, pairs, predictor, baseline, config, advance=lambda done, task=task: progress.advance(task, done)))
    write_json(config.output / "metrics.json", {one.name: _plain(one) for one in scores})
    write_text(config.output / "cases.csv", _table_of_cases(scores))
    print_table(scores)
    report = write_evaluation_report(config.output / "report.html", scores, predictor, sets)
    print(f"Figures and pictures: {report}")
    failures = {name: reason for one in scores for name, reason in one.failures.items()}
    for name, reason in failures.items():
        print(f"not scored: {name}: {reason}")
    return SOME_FAILED if failures else 0


def score_set(
    name: str,
    pairs: Sequence[Pair],
    predictor: PraNetPredictor,
    baseline: PraNetPredictor | None,
    config: EvaluateConfig,
    *,
    advance: Any = lambda done: None,
) -> SetScores:
    """Scores one test set.

    Raises:
        UserError: if not a single frame of it could be used.
    """
    failures: dict[str, str] = {}
    cases: list[Case] = []
    baseline_cases: list[Case] = []
    trivial: dict[str, list[float]] = {answer: [] for answer in TRIVIAL}
    with ThreadPoolExecutor(2) as pool:
        for chunk in _chunks(pairs, config.batch_size):
            frames = _read(chunk, failures, pool)
            for cases_of, model in ((cases, predictor), (baseline_cases, baseline)):
                if model is not None and frames:
                    predictions = model.predict_batch([image for _, image, _ in frames])
                    cases_of.extend(pool.map(_case, [stem for stem, _, _ in frames], predictions, [truth for _, _, truth in frames]))
            for answer, function in TRIVIAL.items():
                trivial[answer] += [confusion(function(image), truth).dice for _, image, truth in frames]
            advance(len(chunk))
    if not cases:
        raise UserError(f"{name}: not one of its {len(pairs)} frames could be used, the first: {next(iter(failures.values()))}")
    return SetScores(
        name=name,
        model=_model_scores(cases, predictor, config),
        baseline=None if baseline is None else _model_scores(baseline_cases, baseline, config),
        difference=None if baseline is None else _difference(cases, baseline_cases, config),
        trivial={answer: float(np.mean(values)) for answer, values in trivial.items()},
        failures=failures,
    )


def _test_sets(data: Path) -> dict[str, list[Pair]]:
    """The frames by test set: the folder itself, or its sub-folders that hold images/ and masks/."""
    if not data.is_dir():
        raise UserError(f"{data}: no such folder. Give one with images/ and masks/, or one of such folders.")
    if (data / "TestDataset").is_dir():
        data = data / "TestDataset"
    if (data / "images").is_dir() or (data / "masks").is_dir():
        return {data.resolve().name: labelled_frames(data)}
    folders = sorted(folder for folder in data.iterdir() if (folder / "images").is_dir())
    if not folders:
        raise UserError(f"{data}: holds neither images/ and masks/ nor folders with these.")
    return {folder.name: labelled_frames(folder) for folder in folders}


def _chunks(pairs: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _read(
    chunk: Sequence[Pair], failures: dict[str, str], pool: ThreadPoolExecutor
) -> list[tuple[str, NDArray[np.uint8], NDArray[np.bool_]]]:
    frames = []
    for pair, future in [(pair, pool.submit(read_pair, pair)) for pair in chunk]:
        try:
            frames.append((pair.stem, *future.result()))
        except InputError as error:
            failures[str(pair.image)] = str(error)
    return frames


def _case(name: str, prediction: PolypPrediction, truth: NDArray[np.bool_]) -> Case:
    return Case(
        name=name,
        truth_area_fraction=float(truth.mean()),
        confidence=prediction.confidence,
        counts=confusion(prediction.mask, truth),
        benchmark=benchmark_scores(grey_levels(prediction.probability), truth),
        reliability=reliability(prediction.probability, truth),
    )


def _model_scores(cases: list[Case], predictor: PraNetPredictor, config: EvaluateConfig) -> ModelScores:
    positive = [case for case in cases if case.truth_area_fraction > 0]
    threshold = predictor.settings.detection_threshold
    first, *others = (case.reliability for case in cases)
    return ModelScores(
        benchmark=summarise([case.benchmark for case in positive or cases]),
        dice=_interval([case.counts.dice for case in cases], config),
        iou=_interval([case.counts.iou for case in cases], config),
        detection=detection(
            [case.confidence for case in cases],
            [case.truth_area_fraction > 0 for case in cases],
            threshold=predictor.threshold if threshold is None else threshold,
        ),
        calibration=sum(others, first),
        cases=cases,
    )


def _interval(values: list[float], config: EvaluateConfig) -> Interval:
    if not config.bootstrap:
        return Interval(estimate=float(np.mean(values)), low=None, high=None, confidence=0.95)
    return bootstrap_interval(values, resamples=config.bootstrap, seed=config.seed)


def _difference(cases: list[Case], baseline: list[Case], config: EvaluateConfig) -> Interval:
    ours, theirs = [case.counts.dice for case in cases], [case.counts.dice for case in baseline]
    return paired_difference(ours, theirs, resamples=max(config.bootstrap, 1), seed=config.seed)


def _plain(scores: SetScores) -> dict[str, Any]:
    """As metrics.json keeps it."""

    def model(one: ModelScores) -> dict[str, Any]:
        return {
            "benchmark": asdict(one.benchmark),
            "dice": asdict(one.dice),
            "iou": asdict(one.iou),
            "detection": asdict(one.detection),
            "expected_calibration_error": one.calibration.expected_calibration_error,
            "frames": len(one.cases),
        }

    return {
        "model": model(scores.model),
        "baseline": None if scores.baseline is None else model(scores.baseline),
        "dice_difference": None if scores.difference is None else asdict(scores.difference),
        "trivial_dice": scores.trivial,
        "failures": scores.failures,
    }


def _table_of_cases(scores: Sequence[SetScores]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "model", "frame", "dice", "iou", "sensitivity", "specificity", "confidence", "truth_area_fraction"])
    for one in scores:
        for name, model in (("model", one.model), ("baseline", one.baseline)):
            for case in model.cases if model is not None else ():
                counts = case.counts
                values = (counts.dice, counts.iou, counts.sensitivity, counts.specificity, case.confidence, case.truth_area_fraction)
                writer.writerow([one.name, name, case.name, *(f"{value:.6f}" for value in values)])
    return text.getvalue()

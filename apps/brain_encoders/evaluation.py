"""Scores on held-out images as the field has them: correlation, R2, noise ceilings, 2V2, permutation tests; by unit and by region."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from apps.brain_encoders.config import EvaluateConfig
from apps.brain_encoders.data import read_study
from apps.brain_encoders.ensemble import combine, layer_weights
from apps.brain_encoders.evaluation_report import print_table, write_evaluation_report
from apps.brain_encoders.inference import BrainEncoderPredictor
from apps.brain_encoders.study import Study, checked, content_key, keep_units
from apps.brain_encoders.tables import region_table, unit_table
from apps.brain_encoders.trivial import trivial_predictions
from shared.encoding.splits import check_leakage
from shared.errors import InputError, UserError
from shared.files import write_json, write_text
from shared.imaging import read_image
from shared.inference.run import SOME_FAILED
from shared.metrics.encoding import RegionScore, noise_normalised, pearson, pearson_over_voxels, r2, region_summary, two_v_two
from shared.metrics.noise_ceiling import noise_ceiling, signal_to_noise
from shared.metrics.permutation import block_permutations, false_discovery_rate, permutation_test

__all__ = [
    "ModelScores",
    "StudyScores",
    "check_unseen",
    "encoder_names",
    "evaluate",
    "score",
    "study_ceiling",
    "test_pictures",
    "units_of",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelScores:
    """One answer to the test images."""

    name: str
    correlation: NDArray[np.float64]
    """[V]"""
    r2: NDArray[np.float64]
    normalised: NDArray[np.float64]
    """[V]: share of the explainable variance, 0 to 1; NaN where nothing is explainable, or no ceiling is known."""
    adjusted_p: NDArray[np.float64] | None
    """[V], false discovery rate over units; None without permutations."""
    two_v_two: float
    pattern_correlation: float
    """Mean over images of the correlation across units ("Pearson" of Oota et al.)."""
    regions: list[RegionScore]
    """Of the correlation."""
    normalised_regions: list[RegionScore]

    def summary(self) -> dict[str, Any]:
        """Numbers for metrics.json."""
        known = self.normalised[np.isfinite(self.normalised)]
        return {
            "correlation": float(self.correlation.mean()),
            "median_correlation": float(np.median(self.correlation)),
            "r2": float(self.r2.mean()),
            "noise_normalised": float(known.mean()) if len(known) else None,
            "median_noise_normalised": float(np.median(known)) if len(known) else None,
            "units_without_ceiling": int(np.isnan(self.normalised).sum()),
            "two_v_two": self.two_v_two,
            "pattern_correlation": self.pattern_correlation,
            "units_above_chance": None if self.adjusted_p is None else int((self.adjusted_p < 0.05).sum()),
            "regions": [asdict(row) for row in self.regions],
            "noise_normalised_regions": [asdict(row) for row in self.normalised_regions],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyScores:
    """Everything about one study."""

    study: Study
    images: list[Path]
    measured: NDArray[np.float32]
    """[N, V]"""
    predicted: NDArray[np.float32]
    """[N, V], of the first model, or of the ensemble if there are several."""
    models: list[ModelScores]
    trivial: dict[str, float]
    """Mean correlation of answers that need no network."""
    ceiling: NDArray[np.float64] | None
    """[V], in R2."""
    truth: dict[str, float] = field(default_factory=dict)
    """Of a phantom: how close estimates came."""
    failures: dict[str, str] = field(default_factory=dict)


def evaluate(config: EvaluateConfig) -> int:
    """Scores, prints the table and writes metrics.json, units.csv, regions.csv, maps and report.html; 3 if some images failed."""
    predictors = [BrainEncoderPredictor.load(path, device=config.device, precision=config.precision) for path in config.model]
    study = checked(read_study(config.data, subject=config.subject), bad_units="drop", allow_repeats=config.allow_repeats)
    study = units_of(study, predictors[0], config.model[0])
    for path, predictor in zip(config.model, predictors, strict=True):
        if predictor.brain.space.names() != predictors[0].brain.space.names():
            raise UserError(f"{path}: predicts other units than {config.model[0]}. Evaluate them one by one.")
        check_unseen(path, predictor.brain.fitted, study, allow_repeats=config.allow_repeats)
    scores = score(study, dict(zip(encoder_names(config.model), predictors, strict=True)), config)
    write_json(config.output / "metrics.json", _plain(scores))
    last = scores.models[-1]
    maps = {"correlation": last.correlation, "r2": last.r2}
    if scores.ceiling is not None:
        maps |= {"noise_ceiling": scores.ceiling, "noise_normalised": last.normalised}
    significance = {} if last.adjusted_p is None else {"adjusted_p": last.adjusted_p}
    write_text(config.output / "units.csv", unit_table(study.space, {**maps, **significance}))
    kinds = [("correlation", "regions"), ("noise_normalised", "normalised_regions")]
    write_text(
        config.output / "regions.csv",
        region_table((model.name, kind, getattr(model, rows)) for model in scores.models for kind, rows in kinds),
    )
    study.space.write(np.stack(list(maps.values())), config.output, "scores", formats=("gifti", "nifti", "cifti"), maps=list(maps))
    print_table(scores)
    report = write_evaluation_report(config.output, scores, predictors[0])
    print(f"Figures and maps: {report}")
    for name, reason in scores.failures.items():
        print(f"not scored: {name}: {reason}")
    return SOME_FAILED if scores.failures else 0


def score(study: Study, predictors: dict[str, BrainEncoderPredictor], config: EvaluateConfig) -> StudyScores:
    """Scores bundles of the study's units, and their ensemble if there are several.

    Raises:
        UserError: if there are fewer than three test images.
    """
    used, pictures, failures = test_pictures(study)
    measured, ceiling = study.mean_responses(used), study_ceiling(study, used)
    answers = {}
    for name, predictor in predictors.items():
        answers[name] = np.concatenate(
            [predictor.responses(predictor.to_input(picture)[None]) for picture in track(pictures, name, transient=True)]
        )
    if len(answers) > 1:
        weights = layer_weights(np.stack([one.brain.correlation for one in predictors.values()]), sharpness=config.sharpness)
        answers["ensemble"] = combine(np.stack(list(answers.values())), weights).astype(np.float32)
    models = [_scored(name, measured, answer, ceiling, study, config) for name, answer in answers.items()]
    train = study.part(test=False)
    trivial = trivial_predictions([study.images[index] for index in train], study.mean_responses(train), [study.images[i] for i in used])
    predicted = list(answers.values())[-1]
    return StudyScores(
        study=study,
        images=[study.images[index] for index in used],
        measured=measured,
        predicted=predicted,
        models=models,
        trivial={name: float(pearson(measured, answer).mean()) for name, answer in trivial.items()},
        ceiling=ceiling,
        truth=_against_truth(study, used, predicted, ceiling),
        failures=failures,
    )


def _scored(
    name: str,
    measured: NDArray[np.float32],
    predicted: NDArray[np.float32],
    ceiling: NDArray[np.float64] | None,
    study: Study,
    config: EvaluateConfig,
) -> ModelScores:
    correlation = pearson(measured, predicted)
    normalised = np.full(len(correlation), np.nan) if ceiling is None else noise_normalised(correlation, ceiling)
    adjusted = None
    if config.permutations:
        orders = block_permutations(len(measured), 1, permutations=config.permutations, seed=config.seed)
        adjusted = false_discovery_rate(permutation_test(measured, predicted, orders=orders, block=1))
    regions = {"all": np.ones(len(correlation), dtype=bool), **study.regions}
    return ModelScores(
        name=name,
        correlation=correlation,
        r2=r2(measured, predicted),
        normalised=normalised,
        adjusted_p=adjusted,
        two_v_two=two_v_two(measured, predicted),
        pattern_correlation=float(pearson_over_voxels(measured, predicted).mean()),
        regions=region_summary(correlation, regions),
        normalised_regions=region_summary(normalised, regions) if ceiling is not None else [],
    )


def test_pictures(study: Study) -> tuple[NDArray[np.intp], list[NDArray[np.uint8]], dict[str, str]]:
    """The test images that can be read, by number and as pictures; and those that cannot, with the reason.

    Raises:
        UserError: if fewer than three are left.
    """
    test = study.part(test=True)
    if len(test) < 3:
        raise UserError(f"{study.root}: {len(test)} test images; at least 3 are needed for a correlation. Mark some with split test.")
    used, pictures, failures = [], [], {}
    for index in test:
        try:
            pictures.append(read_image(study.images[index]))
            used.append(index)
        except InputError as error:
            failures[str(study.images[index])] = str(error)
    if len(pictures) < 3:
        raise UserError(
            f"{study.root}: {len(failures)} of {len(test)} test images could not be used, the first: {next(iter(failures.values()))}"
        )
    return np.array(used), pictures, failures


def check_unseen(model: Path, fitted: Collection[str], study: Study, *, allow_repeats: bool) -> None:
    """That the study's test images are new to an encoder.

    Args:
        model: the bundle.
        fitted: pictures that it was fitted to, by ``content_key``.

    Raises:
        UserError: if some are not, and that is not allowed.
    """
    named = {content_key(study.images[index]): study.images[index].name for index in study.part(test=True)}
    try:
        check_leakage([named.get(key, key) for key in fitted], list(named.values()), allow_repeats=allow_repeats)
    except UserError as error:
        raise UserError(f"{model} on {study.root}: {error} (the option allow_repeats)") from error


def study_ceiling(study: Study, used: NDArray[np.intp]) -> NDArray[np.float64] | None:
    """[V]: the publisher's, or from the presentations of the test images, if each was presented equally often and more than once."""
    if study.ceiling is not None:
        return study.ceiling
    repeats = study.presentations(used)
    return None if repeats is None else noise_ceiling(signal_to_noise(repeats).ratio, len(repeats))


def _against_truth(
    study: Study, used: NDArray[np.intp], predicted: NDArray[np.float32], ceiling: NDArray[np.float64] | None
) -> dict[str, float]:
    """Of a phantom: correlation with the signal without noise, over units that have one; and how far the estimated ceilings are off."""
    if not {"signal", "signal_share"} <= study.truth.keys():
        return {}
    share = study.truth["signal_share"]
    has = share > 0
    found = {"correlation_with_true_signal": float(pearson(study.truth["signal"][used], predicted)[has].mean())}
    presentations = study.presentations(used)
    if ceiling is not None and presentations is not None:
        spread = share * study.truth["signal"][used].var(axis=0)
        true = spread / (spread + (1 - share) / len(presentations))
        found["mean_true_ceiling"], found["mean_estimated_ceiling"] = float(true[has].mean()), float(ceiling[has].mean())
    return found


def units_of(study: Study, predictor: BrainEncoderPredictor, source: Path) -> Study:
    """The study of the units that the bundle predicts.

    Raises:
        UserError: if it lacks some.
    """
    wanted, present = predictor.brain.space.names(), study.space.names()
    if wanted == present:
        return study
    place = {name: index for index, name in enumerate(present)}
    missing = [name for name in wanted if name not in place]
    if missing or study.space.kind != predictor.brain.space.kind:
        unit = " ".join(missing[0]) if missing else study.space.kind
        raise UserError(
            f"{source}: predicts {len(wanted):,} units, and {study.root} lacks {len(missing):,} of them ({unit}). Is it of another subject?"
        )
    kept = np.zeros(len(present), dtype=bool)
    kept[[place[name] for name in wanted]] = True
    return keep_units(study, kept)


def encoder_names(paths: Sequence[Path]) -> list[str]:
    """A name for each bundle: of its folder, or of the run that it is the model of; numbered where they are the same."""
    names = [(path.resolve().parent if path.resolve().name == "model" else path.resolve()).name for path in paths]
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names, start=1)]


def _plain(scores: StudyScores) -> dict[str, Any]:
    """As metrics.json keeps it."""
    return {
        "study": scores.study.name,
        "images": len(scores.images),
        "units": scores.study.units,
        "models": {one.name: one.summary() for one in scores.models},
        "trivial_correlation": scores.trivial,
        "mean_noise_ceiling": None if scores.ceiling is None else float(np.nanmean(scores.ceiling)),
        "truth": scores.truth,
        "failures": scores.failures,
    }

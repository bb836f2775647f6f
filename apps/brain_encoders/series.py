"""Time series: features of events at each volume, delayed, to BOLD run by run; scored on runs that were left out."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from apps.brain_encoders.alignment import align_to_volumes, one_hot
from apps.brain_encoders.bids import BoldRun, find_runs, read_bold
from apps.brain_encoders.config import SeriesConfig
from apps.brain_encoders.features import FeatureStore, backbone_of, fit_projection
from apps.brain_encoders.prediction import brain_picture
from apps.brain_encoders.space import SurfaceSpace, VolumeSpace
from shared.encoding.delays import delay
from shared.encoding.ridge import fit_ridge
from shared.encoding.runs import check_runs
from shared.encoding.splits import contiguous_splits, run_splits
from shared.errors import UserError
from shared.files import write_json, write_text
from shared.metrics.encoding import pearson, r2
from shared.metrics.permutation import block_permutations, false_discovery_rate, permutation_test
from shared.reports.html import Report

__all__ = ["SeriesScores", "events_of", "fit_series", "score_series"]

BLOCK = 10
"""Volumes that change places together in the permutation test; a response outlasts several."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesScores:
    """Of units, on runs (or, of a single run, blocks) that were left out."""

    correlation: NDArray[np.float64]
    r2: NDArray[np.float64]
    adjusted_p: NDArray[np.float64]
    preference: NDArray[np.float64]
    """[features, V]: coefficients summed over delays, of a fit to all runs."""


def fit_series(config: SeriesConfig) -> None:
    """Fits and scores a subject's runs; leaves scores.csv, brain files with the maps, metrics.json and report.html."""
    runs = find_runs(config.derivatives, config.raw, subject=config.subject, task=config.task, space=config.space, kind=config.kind)
    series, space = [], None
    for run in track(runs, "reading", transient=True):
        bold, place = read_bold(run, confounds=config.confounds)
        if space is not None and place.names() != space.names():
            raise UserError(f"{run.bold[0]}: has other voxels than the first run. Resample the runs to one grid, and give them one mask.")
        space = place
        series.append(bold)
    assert space is not None
    features, names = _features(config, runs, [len(bold) for bold in series])
    labels = check_runs(features, series, names=[run.name for run in runs])
    responses = np.concatenate(series)
    constant = np.ptp(responses, axis=0) == 0
    if constant.all():
        raise UserError(f"{config.derivatives}: all {len(constant):,} units are constant. Is the mask of another space?")
    scores = score_series(np.concatenate(features), responses[:, ~constant], labels, config)
    scores = _spread(scores, ~constant)
    maps = {
        "correlation": scores.correlation,
        "r2": scores.r2,
        **dict(zip((f"preference {name}" for name in names), scores.preference, strict=True)),
    }
    maps = maps if len(names) <= 20 else {"correlation": scores.correlation, "r2": scores.r2}
    space.write(np.stack(list(maps.values())), config.output, "maps", formats=("gifti", "nifti", "cifti"), maps=list(maps))
    write_text(config.output / "scores.csv", _table(scores, space))
    above = int((scores.adjusted_p < 0.05).sum())
    found = {
        "runs": len(runs),
        "volumes": len(responses),
        "units": len(constant),
        "constant_units": int(constant.sum()),
        "mean_correlation": float(np.nanmean(scores.correlation)),
        "units_above_chance": above,
    }
    write_json(config.output / "metrics.json", found)
    report = Report("Encoding of time series", subtitle=f"{config.derivatives.resolve().name} sub-{config.subject}")
    report.facts({name.replace("_", " "): value for name, value in found.items()})
    report.figure(
        brain_picture(np.nan_to_num(scores.correlation), space, limit=0.5, height=240),
        caption="Correlation on what was left out, -0.5 to 0.5.",
    )
    report.write(config.output / "report.html")
    print(f"{len(runs)} runs, {len(responses):,} volumes, {len(constant):,} units: {above:,} above chance.")
    print(f"To look at: {config.output / 'report.html'}")


def score_series(
    features: NDArray[np.floating], responses: NDArray[np.floating], runs: NDArray[np.intp], config: SeriesConfig
) -> SeriesScores:
    """Leaves each run out once (of a single run, each of ``folds`` blocks), chooses penalties within the others, and pools the predictions.

    Args:
        features: [T, p], not delayed.
        responses: [T, V], z-scored within runs.
        runs: [T].
    """
    delayed = delay(features, config.delays, runs)
    several = len(np.unique(runs)) > 1
    outer = run_splits(runs) if several else contiguous_splits(len(runs), config.folds)
    predicted = np.empty_like(responses)
    for train, test in track(outer, "fitting", transient=True):
        inner_runs = runs[train]
        inner = run_splits(inner_runs) if len(np.unique(inner_runs)) > 1 else contiguous_splits(len(train), config.folds)
        predicted[test] = fit_ridge(delayed[train], responses[train], alphas=config.alphas, splits=inner).predict(delayed[test])
    whole = fit_ridge(delayed, responses, alphas=config.alphas, splits=outer)
    block = min(BLOCK, len(responses) // 4)
    orders = block_permutations(len(responses), block, permutations=config.permutations, seed=config.seed)
    return SeriesScores(
        correlation=pearson(responses, predicted),
        r2=r2(responses, predicted),
        adjusted_p=false_discovery_rate(permutation_test(responses, predicted, orders=orders, block=block)),
        preference=whole.coefficients.reshape(len(config.delays), features.shape[1], -1).sum(axis=0),
    )


def events_of(run: BoldRun) -> list[dict[str, str]]:
    """Rows of the run's events table, with onset and duration in seconds.

    Raises:
        UserError: if there is none, or it lacks a column.
    """
    if run.events is None:
        raise UserError(f"{run.bold[0]}: no events table was found. Name the BIDS data set that has it with --raw.")
    try:
        with open(run.events, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{run.events}: cannot be read ({error}).") from error
    if not rows or not {"onset", "duration"} <= rows[0].keys():
        raise UserError(f"{run.events}: must have the columns onset and duration, in seconds, and a row for each event.")
    return rows


def _features(config: SeriesConfig, runs: list[BoldRun], volumes: list[int]) -> tuple[list[NDArray[np.float64]], list[str]]:
    """[T, p] of each run, and the names of the p."""
    tables = [events_of(run) for run in runs]
    rows = [row for table in tables for row in table]
    column = "stim_file" if config.features == "images" else "trial_type"
    if any(not row.get(column) or row[column] == "n/a" for row in rows):
        raise UserError(f"{runs[0].events}: some events have no {column}, which --features {config.features} needs.")
    if config.features == "images":
        vectors, names = _image_vectors(config, [row[column] for row in rows])
    else:
        vectors, categories = one_hot([row[column] for row in rows])
        names = list(categories)
    found, start = [], 0
    for run, table, count in zip(runs, tables, volumes, strict=True):
        times = [np.array([_number(row[name], run) for row in table]) for name in ("onset", "duration")]
        part = vectors[start : start + len(table)]
        start += len(table)
        found.append(align_to_volumes(part, *times, repetition_time_s=run.repetition_time_s, volumes=count))
    return found, names


def _image_vectors(config: SeriesConfig, files: list[str]) -> tuple[NDArray[np.float64], list[str]]:
    """Features of the pictures, projected; the projection knows all pictures of the subject but no response."""
    root = config.raw or config.derivatives
    paths = [root / "stimuli" / name for name in files]
    missing = sorted({str(path) for path in paths if not path.is_file()})
    if missing:
        raise UserError(f"{missing[0]}: no such picture, and {len(missing)} are missing. BIDS keeps them below stimuli/.")
    different = list(dict.fromkeys(paths))
    store = FeatureStore(backbone_of(config.backbone), config.backbone, folder=config.cache)
    store.extract(different)
    vectors = np.concatenate([batch.mean(dim=(2, 3)).numpy() for batch in store.batches(different)])
    projected = fit_projection(vectors, kind="pca", components=config.components, seed=config.seed)(vectors)
    place = {path: index for index, path in enumerate(different)}
    return projected[[place[path] for path in paths]].astype(np.float64), [f"component {index + 1}" for index in range(projected.shape[1])]


def _number(text: str, run: BoldRun) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{run.events}: {text!r} is no time in seconds. Mend the column.") from error


def _spread(scores: SeriesScores, kept: NDArray[np.bool_]) -> SeriesScores:
    """Over all units; what was constant has no score."""

    def whole(values: NDArray[np.float64]) -> NDArray[np.float64]:
        filled = np.full((*values.shape[:-1], len(kept)), np.nan)
        filled[..., kept] = values
        return filled

    return replace(scores, **{name: whole(getattr(scores, name)) for name in ("correlation", "r2", "adjusted_p", "preference")})


def _table(scores: SeriesScores, space: VolumeSpace | SurfaceSpace) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*space.columns, "correlation", "r2", "adjusted_p"])
    for name, *values in zip(space.names(), scores.correlation, scores.r2, scores.adjusted_p, strict=True):
        writer.writerow([*name, *(f"{value:.6f}" for value in values)])
    return text.getvalue()

"""Category encoders of a block design: delayed categories to BOLD, judged on runs that were not fitted, with a false discovery rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from apps.brain_encoders.alignment import align_to_volumes
from apps.brain_encoders.config import CategoriesConfig
from apps.brain_encoders.openfmri import Run, find_runs, read_run, read_volume
from apps.brain_encoders.space import VolumeSpace
from shared.encoding.delays import delay
from shared.encoding.ridge import RidgeFit, fit_ridge
from shared.encoding.runs import run_labels
from shared.encoding.splits import check_leakage, run_splits
from shared.errors import InputError, UserError
from shared.files import write_bytes, write_json, write_text
from shared.metrics.encoding import pearson, r2
from shared.metrics.permutation import block_permutations, false_discovery_rate, permutation_test
from shared.reports.html import Report
from shared.reports.style import INK, MUTED, PALETTE, styled_figure, styled_legend, to_png

__all__ = ["CategoryScores", "courses_figure", "fit_categories", "map_figure", "score_categories"]

DISCOVERY = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class CategoryScores:
    """Of voxels [V], on the runs that judge."""

    correlation: NDArray[np.float64]
    r2: NDArray[np.float64]
    adjusted_p: NDArray[np.float64]
    """By Benjamini and Hochberg over voxels."""
    responses: NDArray[np.float64]
    """[categories, delays, V]: the fitted response to a volume of each category, at each delay."""
    alphas: NDArray[np.float64]


def fit_categories(config: CategoriesConfig) -> None:
    """Fits a subject's runs; leaves scores.csv, maps as NIfTI, figures, metrics.json and report.html."""
    found = find_runs(config.data, config.subject)
    for name in ("fit_runs", "test_runs"):
        if not getattr(config, name):
            raise UserError(f"{name}: name at least one run; there are {', '.join(map(str, found))}.")
    missing = [number for number in (*config.fit_runs, *config.test_runs) if number not in found]
    if missing:
        raise UserError(f"{config.data}: run {missing[0]} is missing; there are {', '.join(map(str, found))}. Mend fit_runs and test_runs.")
    check_leakage(config.fit_runs, config.test_runs)
    mask, affine, mask_name = _mask(config, found[config.fit_runs[0]] / config.bold)
    runs = {
        number: read_run(number, found[number], bold=config.bold, mask=mask, affine=affine, mask_name=mask_name)
        for number in (*config.fit_runs, *config.test_runs)
    }
    volumes = sum(len(runs[number].bold) for number in config.test_runs)
    if volumes < 2 * config.block:
        raise UserError(
            f"block: the runs that judge have {volumes} volumes, and two blocks at least must change places. Take shorter ones."
        )
    categories = tuple(sorted({name for run in runs.values() for name in run.names}))
    scores = score_categories([runs[n] for n in config.fit_runs], [runs[n] for n in config.test_runs], categories, config)
    space = VolumeSpace(mask=mask, affine=affine)
    significant = scores.adjusted_p < DISCOVERY
    preferred = scores.responses.mean(axis=1)
    maps = {"correlation": scores.correlation, "adjusted p": scores.adjusted_p}
    maps |= dict(zip((f"response to {name}" for name in categories), preferred, strict=True))
    space.write(np.stack(list(maps.values())), config.output, "maps", formats=("nifti",), maps=list(maps))
    write_text(config.output / "scores.csv", _table(space, scores, categories))
    figures = {
        "map": map_figure(space, scores.correlation, significant),
        "courses": courses_figure(scores, categories, config.delays, next(iter(runs.values())).repetition_time_s),
    }
    for name, figure in figures.items():
        write_bytes(config.output / f"{name}.png", to_png(figure, dpi=130))
    best = int(scores.correlation.argmax())
    facts = {
        "voxels": len(significant),
        "voxels_predicted": int(significant.sum()),
        "share_predicted": float(significant.mean()),
        "mean_correlation": float(scores.correlation.mean()),
        "median_correlation_of_predicted": float(np.median(scores.correlation[significant])) if significant.any() else 0.0,
        "best_correlation": float(scores.correlation[best]),
        "best_voxel": [int(index) for index in np.argwhere(mask)[best]],
        "permutations": config.permutations,
    }
    write_json(config.output / "metrics.json", facts | {"settings": {k: str(v) for k, v in asdict(config).items()}})
    report = Report("Category encoders", subtitle=f"{config.data.resolve().name} {config.subject}")
    report.facts({name.replace("_", " "): value for name, value in facts.items() if not isinstance(value, list)})
    report.figure(figures["map"], caption="Correlation on the runs left out; outlined: predicted, false discovery rate 5 %.")
    report.figure(figures["courses"], caption="The fitted response of the best predicted voxels to each category.")
    report.write(config.output / "report.html")
    print(f"{len(significant)} voxels, {int(significant.sum())} predicted at a false discovery rate of 5 %.")
    print(f"To look at: {config.output / 'report.html'}")


def _mask(config: CategoriesConfig, series: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64], str]:
    """Where to read, on which grid, and what to call it."""
    if config.mask is None:
        data, affine = read_volume(series)
        mask, name = np.ptp(data, axis=-1) > 0, f"{series} (all voxels that vary)"
    else:
        data, affine = read_volume(config.mask)
        mask, name = (data[..., 0] if data.ndim == 4 else data) > 0, str(config.mask)
    if mask.ndim != 3 or not mask.any():
        raise InputError(f"{config.mask or series}: holds no voxel to fit. Name another mask or series.")
    return mask, affine, name


def score_categories(fit: Sequence[Run], test: Sequence[Run], categories: tuple[str, ...], config: CategoriesConfig) -> CategoryScores:
    """Penalties are chosen by leaving out each fitted run in turn; the test runs judge once."""
    features, responses, runs = _stack(fit, categories)
    usable = responses.std(axis=0) > 0
    model = fit_ridge(delay(features, config.delays, runs), responses[:, usable], alphas=config.alphas, splits=run_splits(runs))
    model = _spread(model, usable)
    new_features, truth, new_runs = _stack(test, categories)
    prediction = model.predict(delay(new_features, config.delays, new_runs))
    orders = block_permutations(len(truth), config.block, permutations=config.permutations, seed=config.seed)
    p = permutation_test(truth, prediction, orders=orders, block=config.block)
    p[~usable] = np.nan
    return CategoryScores(
        correlation=pearson(truth, prediction),
        r2=r2(truth, prediction),
        adjusted_p=np.nan_to_num(false_discovery_rate(p), nan=1.0),
        responses=model.coefficients.reshape(len(config.delays), len(categories), -1).transpose(1, 0, 2),
        alphas=model.alphas,
    )


def map_figure(space: VolumeSpace, correlation: NDArray[np.floating], significant: NDArray[np.bool_]) -> Figure:
    """A panel per slice (the third axis): correlation, and an outline around what is significant."""
    values, outlined = space.fill(correlation), np.nan_to_num(space.fill(significant.astype(np.float64))) > 0
    slices = [index for index in range(values.shape[2]) if np.isfinite(values[:, :, index]).any()]
    columns = min(len(slices), 4)
    rows = -(-len(slices) // columns)
    figure, axes = styled_figure(height=0.7 + (2.6 if columns > 1 else 3.6) * rows, rows=rows, columns=columns)
    limit = max(0.1, float(np.nanmax(np.abs(values))))
    image = None
    for axis in axes:
        axis.set_axis_off()
    for axis, index in zip(axes, slices, strict=False):
        part = np.rot90(values[:, :, index])
        image = axis.imshow(part, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        for row, column in np.argwhere(np.rot90(outlined[:, :, index])):
            axis.add_patch(_outline(row, column))
        height = (space.affine @ [0, 0, index, 1])[2]
        axis.set_title(f"z = {height:g} mm", fontsize=8, color=MUTED)
    assert image is not None, "a mask has voxels"
    bar = figure.colorbar(image, ax=axes, shrink=0.7, location="right")
    bar.set_label("correlation on runs left out", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=MUTED)
    return figure


def courses_figure(scores: CategoryScores, categories: tuple[str, ...], delays: Sequence[int], repetition_time_s: float) -> Figure:
    """The fitted responses of the four best predicted voxels over the delays, a line per category."""
    best = np.argsort(scores.correlation)[::-1][:4]
    figure, axes = styled_figure(height=5.2, rows=2, columns=2)
    seconds = np.asarray(delays) * repetition_time_s
    for axis, voxel in zip(axes, best, strict=False):
        strongest = set(np.argsort(scores.responses[:, :, voxel].mean(axis=1))[::-1][:3].tolist())
        colours = iter(PALETTE)
        for index, name in enumerate(categories):
            course = scores.responses[index, :, voxel]
            if index in strongest:
                axis.plot(seconds, course, marker="o", markersize=3, label=name, color=next(colours), zorder=3)
            else:
                axis.plot(seconds, course, color="#c3cad3", linewidth=1)
        axis.axhline(0, color=MUTED, linewidth=0.6)
        axis.set_title(f"voxel {voxel}: r = {scores.correlation[voxel]:.2f}", fontsize=9, color=INK)
        axis.set_xlabel("seconds after the event")
        axis.set_ylabel("response (z)")
        styled_legend(axis)
    return figure


def _outline(row: int, column: int) -> Rectangle:
    return Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="black", linewidth=0.9)


def _stack(runs: Sequence[Run], categories: tuple[str, ...]) -> tuple[NDArray, NDArray, NDArray]:
    features = []
    for run in runs:
        vectors = np.array([[name == category for category in categories] for name in run.names], dtype=np.float64)
        features.append(
            align_to_volumes(vectors, run.onsets_s, run.durations_s, repetition_time_s=run.repetition_time_s, volumes=len(run.bold))
        )
    return np.concatenate(features), np.concatenate([run.bold for run in runs]), run_labels([len(run.bold) for run in runs])


def _spread(fit: RidgeFit, usable: NDArray[np.bool_]) -> RidgeFit:
    """With zeros (alpha: NaN) for voxels that could not be fitted."""

    def over(values: NDArray, empty: float) -> NDArray:
        whole = np.full((*values.shape[:-1], len(usable)), empty, dtype=values.dtype)
        whole[..., usable] = values
        return whole

    return RidgeFit(
        coefficients=over(fit.coefficients, 0),
        intercept=over(fit.intercept, 0),
        alphas=over(fit.alphas, np.nan),
        scores=over(fit.scores, 0),
    )


def _table(space: VolumeSpace, scores: CategoryScores, categories: tuple[str, ...]) -> str:
    header = [*space.columns, "correlation", "r2", "adjusted_p", "alpha", "preferred"]
    preferred = scores.responses.mean(axis=1).argmax(axis=0)
    rows = [
        [*name, f"{r:.4f}", f"{share:.4f}", f"{p:.4f}", f"{alpha:g}", categories[best]]
        for name, r, share, p, alpha, best in zip(
            space.names(), scores.correlation, scores.r2, scores.adjusted_p, scores.alphas, preferred, strict=True
        )
    ]
    return "".join(",".join(row) + "\n" for row in [header, *rows])

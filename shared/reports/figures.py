"""The figures of reports and notebooks: training, calibration, scores per case, per size, per threshold, with their intervals."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from shared.errors import InputError
from shared.metrics.calibration import Reliability
from shared.reports.style import INK, MUTED, PALETTE, SMALL_POINTS, label_plainly, shorten, styled_figure, styled_legend, tint

__all__ = [
    "Series",
    "bars_with_intervals",
    "read_metrics",
    "reliability_diagram",
    "score_against_size",
    "score_distribution",
    "threshold_curve",
    "training_curves",
]

Series = Sequence[tuple[float, float]]
"""(x, value) in order of x."""

LONG_SERIES = 200
"""A series with more points is drawn faintly, under its running mean."""


def read_metrics(path: Path | str, *, x: str = "step") -> dict[str, Series]:
    """The columns of a training run's metrics.csv as series over ``x``; empty cells are skipped, as are columns that are not numbers.

    Raises:
        InputError: if the file cannot be read or has no column ``x``.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table of metrics ({error}). Name the metrics.csv of a run folder.") from error
    if not rows or x not in rows[0]:
        raise InputError(f"{path}: has no values in a column {x!r}. Name the metrics.csv of a run that finished an epoch.")
    series = {
        name: [(_number(row[x]), _number(row[name])) for row in rows if not math.isnan(_number(row[name]))]
        for name in rows[0]
        if name not in ("epoch", "step")
    }
    return {name: values for name, values in series.items() if values}


def training_curves(metrics: Mapping[str, Series], *, x_label: str = "Optimiser step") -> Figure:
    """One panel per quantity. ``train_loss`` and ``val_loss`` (or ``train/loss``) share the panel "loss"; the x axis is common.

    Args:
        metrics: series by name, as from ``read_metrics``. Non-finite values leave gaps.
        x_label: what x counts.

    Raises:
        ValueError: if there is no series.
    """
    if not metrics:
        raise ValueError("no metrics to draw: log at least one")
    panels: dict[str, dict[str, Series]] = {}
    for name, series in metrics.items():
        stage, quantity = _stage_and_quantity(name)
        panels.setdefault(quantity, {})[stage] = series
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    figure, axes = styled_figure(height=1.0 + 2.2 * rows, rows=rows, columns=columns)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (quantity, stages) in zip(axes, panels.items(), strict=False):
        for order, (stage, series) in enumerate(stages.items()):
            _draw_series(axis, np.asarray(series, dtype=float), label=stage, color=_color(order))
        axis.set_xlabel(x_label)
        axis.set_ylabel(shorten(quantity[:1].upper() + quantity[1:]))
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if any(stages):
            styled_legend(axis)
    return figure


def reliability_diagram(curves: Mapping[str, Reliability]) -> Figure:
    """Predicted probability against observed frequency, over the share of pixels in each bin.

    Args:
        curves: by name, such as {"as trained": ..., "calibrated": ...}; the expected calibration error of each goes into the legend.

    Raises:
        ValueError: if there is no curve.
    """
    if not curves:
        raise ValueError("no reliability curve to draw: expected at least one")
    figure, (axis, share) = styled_figure(width=4.8, height=5.9, rows=2, height_ratios=(3.2, 1))
    axis.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)), label="perfect calibration")
    for order, (name, curve) in enumerate(curves.items()):
        filled = curve.pixels > 0
        label = f"{shorten(name)} (ECE {curve.expected_calibration_error:.3f})"
        axis.plot(
            curve.predicted[filled],
            curve.observed[filled],
            marker="os^Dv"[order % 5],
            markersize=4,
            label=label,
            color=_color(order),
            linewidth=1.6,
        )
        share.stairs(100 * curve.pixels / max(int(curve.pixels.sum()), 1), curve.edges, baseline=None, color=_color(order), linewidth=1.6)
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="Observed share of foreground", xticks=np.linspace(0, 1, 6))
    share.set(xlim=(0, 1), xlabel="Predicted probability of foreground", ylabel="Pixels (%, log)", yscale="log")
    label_plainly(share, along="y")
    styled_legend(axis, location="upper left")
    return figure


def score_distribution(scores: Mapping[str, ArrayLike], *, label: str = "Dice per frame") -> Figure:
    """Every case as a point, with median, quartiles and, as whiskers, the 5th and 95th percentile: failures stay visible.

    Args:
        scores: [N] by name (a data set, a model); drawn from top to bottom. Non-finite scores are left out.
        label: of the score axis, with its unit if it has one.

    Raises:
        ValueError: if there is no name.
    """
    if not scores:
        raise ValueError("no scores to draw: expected at least one name")
    figure, (axis,) = styled_figure(height=1.0 + 0.75 * len(scores))
    spread, thin = np.random.default_rng(0), {"color": MUTED, "linewidth": 1}
    names = []
    for row, (name, values) in enumerate(scores.items()):
        finite = _finite(values)
        names.append(f"{shorten(name)}\n{_count(finite.size, 'case')}")
        axis.scatter(
            finite,
            row + spread.uniform(0.08, 0.34, finite.size),
            s=12,
            color=_color(row),
            alpha=float(np.clip(20 / max(finite.size, 1) ** 0.6, 0.15, 0.7)),
            linewidths=0,
        )
        if finite.size:
            axis.boxplot(
                finite,
                positions=[row - 0.16],
                widths=0.22,
                orientation="horizontal",
                whis=(5, 95),
                showfliers=False,
                manage_ticks=False,
                medianprops={"color": INK, "linewidth": 1.6},
                boxprops=thin,
                whiskerprops=thin,
                capprops=thin,
            )
    axis.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    axis.set_yticks(range(len(names)), names, parse_math=False, color=INK)
    axis.grid(False, axis="y")
    _show_unit_range(axis, [value for values in scores.values() for value in _finite(values)], along="x")
    return figure


def score_against_size(area_fraction: ArrayLike, score: ArrayLike, *, label: str = "Dice per frame", subject: str = "Polyp") -> Figure:
    """Does the score fall for small targets? One point per case, and the median within fifths of the cases by size.

    Args:
        area_fraction: [N], the target's share of the image, 0 to 1. Cases without a target (0) have no place on the logarithmic axis: they
            are left out and counted in a note.
        score: [N].
        label: of the score axis.
        subject: what the area is the area of, for the axis.

    Raises:
        ValueError: if the lengths differ.
    """
    area, values = np.asarray(area_fraction, dtype=float), np.asarray(score, dtype=float)
    if area.shape != values.shape or area.ndim != 1:
        raise ValueError(f"area_fraction is {list(area.shape)} and score {list(values.shape)}: expected two lists of the same length")
    shown = (area > 0) & np.isfinite(area) & np.isfinite(values)
    percent, values = 100 * area[shown], values[shown]
    figure, (axis,) = styled_figure()
    axis.scatter(percent, values, s=20, color=PALETTE[0], alpha=0.6, linewidths=0, label="case")
    if percent.size >= 10:
        parts = np.array_split(np.argsort(percent, kind="stable"), 5)
        medians = [float(np.median(values[part])) for part in parts]
        middles = [float(np.median(percent[part])) for part in parts]
        axis.plot(middles, medians, color=PALETTE[1], marker="s", markersize=5, linewidth=1.6, label="median of each fifth")
        styled_legend(axis, location="lower right")
    axis.set(xscale="log", xlabel=f"{subject} area (% of the frame, logarithmic)", ylabel=label)
    label_plainly(axis, along="x")
    _show_unit_range(axis, values, along="y")
    hidden = int(area.size - shown.sum())
    if hidden:
        axis.set_title(f"{_count(hidden, 'case')} without a target or a score not shown", loc="left", fontsize=SMALL_POINTS, color=MUTED)
    return figure


def bars_with_intervals(
    names: Sequence[str],
    values: Sequence[float],
    *,
    low: Sequence[float | None],
    high: Sequence[float | None],
    groups: Sequence[str] | None = None,
    label: str = "Mean Dice (95 % interval)",
) -> Figure:
    """Horizontal bars with their intervals and figures.

    Args:
        names: [N], what each bar is about (a data set); bars with the same name stand together, in order of appearance.
        values: [N].
        low: [N], lower ends of the intervals; None (or NaN), with ``high``, draws none.
        high: [N], upper ends.
        groups: [N], which of the bars with this name it is (a model): one colour each, in the legend.
        label: of the value axis; say what the interval is.

    Raises:
        ValueError: if the lengths differ or there is no bar.
    """
    groups = [""] * len(names) if groups is None else list(groups)
    if not names or len({len(column) for column in (names, values, low, high, groups)}) > 1:
        raise ValueError(
            f"{len(names)} names, {len(values)} values, {len(low)} low, {len(high)} high, {len(groups)} groups: expected as many of each"
        )
    rows, kinds = list(dict.fromkeys(names)), list(dict.fromkeys(groups))
    thickness = 0.8 / len(kinds)
    figure, (axis,) = styled_figure(height=1.1 + (0.25 + 0.26 * len(kinds)) * len(rows))
    lower = np.array([math.nan if end is None else end for end in low], dtype=float)
    upper = np.array([math.nan if end is None else end for end in high], dtype=float)
    for order, kind in enumerate(kinds):
        chosen = [index for index, group in enumerate(groups) if group == kind]
        center = np.array([rows.index(names[index]) for index in chosen]) + (order - (len(kinds) - 1) / 2) * thickness
        length = np.array([values[index] for index in chosen], dtype=float)
        axis.barh(center, length, height=0.86 * thickness, color=tint(_color(order)), label=shorten(kind))
        axis.hlines(center, lower[chosen], upper[chosen], color=INK, linewidth=1.2)
        for y, value, start, end in zip(center, length, lower[chosen], upper[chosen], strict=True):
            if math.isfinite(value):
                text = f"{value:.3f}" if math.isnan(start + end) else f"{value:.3f} ({start:.3f} to {end:.3f})"
                right = np.nanmax([value, end, 0.0])
                axis.annotate(text, (right, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=SMALL_POINTS, color=INK)
    axis.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), [shorten(row) for row in rows], parse_math=False, color=INK)
    axis.grid(False, axis="y")
    _show_unit_range(axis, [*_finite(values), *_finite(lower), *_finite(upper)], along="x")
    if any(kinds):
        handles, labels = axis.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside upper left", ncols=min(len(kinds), 3), frameon=False, fontsize=SMALL_POINTS)
        for entry in legend.get_texts():
            entry.set(parse_math=False, color=INK)
    return figure


def threshold_curve(
    thresholds: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    chosen: float | None = None,
    label: str = "Score",
    x_label: str = "Threshold on the probability",
) -> Figure:
    """Scores over the threshold, with the chosen one marked.

    Args:
        thresholds: [T].
        curves: [T] by name (sensitivity, specificity, Dice).
        chosen: the threshold in use, if one is.
        label: of the score axis.
        x_label: what is thresholded.

    Raises:
        ValueError: if there is no curve, or one has another length than ``thresholds``.
    """
    x = np.asarray(thresholds, dtype=float)
    lengths = {name: np.asarray(curve).shape for name, curve in curves.items()}
    if not curves or any(shape != x.shape for shape in lengths.values()):
        raise ValueError(f"curves are {lengths} for thresholds {x.shape}: expected at least one curve, each of that length")
    figure, (axis,) = styled_figure()
    for order, (name, curve) in enumerate(curves.items()):
        line = ("-", (0, (6, 2)), (0, (2, 1.5)))[order % 3]
        axis.plot(x, np.asarray(curve, dtype=float), color=_color(order), linewidth=1.8, linestyle=line, label=shorten(name))
    if chosen is not None:
        axis.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (1, 1.5)), label=f"chosen: {chosen:.3g}")
    axis.set(xlabel=x_label, ylabel=label)
    _show_unit_range(axis, [value for curve in curves.values() for value in _finite(curve)], along="y")
    styled_legend(axis)
    return figure


def _draw_series(axis: Axes, series: NDArray[np.float64], *, label: str, color: str) -> None:
    x, values = series.T
    if len(series) <= LONG_SERIES:
        axis.plot(x, values, color=color, linewidth=1.6, marker="o" if len(series) <= 30 else None, markersize=3.5, label=label)
        return
    window = len(series) // 50 | 1
    axis.plot(x, values, color=color, linewidth=0.7, alpha=0.3)
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    axis.plot(x[window // 2 : window // 2 + mean.size], mean, color=color, linewidth=1.6, label=f"{label} (mean of {window})".strip())


def _stage_and_quantity(name: str) -> tuple[str, str]:
    stages = {"train": "training", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
    for separator in ("/", "_"):
        head, _, tail = name.partition(separator)
        if tail and head in stages:
            return stages[head], tail.replace("_", " ")
    return "", name.replace("_", " ")


def _show_unit_range(axis: Axes, values: ArrayLike, *, along: str) -> None:
    """Scores between 0 and 1 are always shown on all of 0 to 1: a cut axis flatters differences."""
    finite = _finite(values)
    if finite.size and finite.min() >= 0 and finite.max() <= 1:
        (axis.set_xlim if along == "x" else axis.set_ylim)(-0.02, 1.02)
        (axis.set_xticks if along == "x" else axis.set_yticks)(np.linspace(0, 1, 6))


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=float).ravel()
    return array[np.isfinite(array)]


def _number(cell: str | None) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        return math.nan


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _color(order: int) -> str:
    return PALETTE[order % len(PALETTE)]

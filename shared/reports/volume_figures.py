"""Figures about volumes: which tumours are found, whether their volumes agree, how scores differ by class, what memory a network needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from shared.metrics.cohort import VolumeBin
from shared.metrics.intervals import Interval
from shared.reports.figures import Series
from shared.reports.style import INK, MUTED, PALETTE, SMALL_POINTS, label_plainly, shorten, styled_figure, styled_legend, tint

__all__ = ["bland_altman", "memory_curves", "recall_by_size", "scores_per_class"]


def scores_per_class(
    scores: Mapping[str, Mapping[str, Interval]], *, label: str = "Dice (95 % interval)", unit_range: bool = True
) -> Figure:
    """A point with its interval for each class and model.

    Args:
        scores: by model, then by class ("whole tumour"). A model may lack classes. For distances, such as HD95 in mm, say so in ``label``.
        label: of the score axis, with its unit; say what the interval is.
        unit_range: show all of 0 to 1, for scores that cannot leave it; else from 0 to the largest.

    Raises:
        ValueError: if there is no score.
    """
    classes = list(dict.fromkeys(name for of_model in scores.values() for name in of_model))
    if not classes:
        raise ValueError("no scores to draw: expected at least one model with one class")
    figure, (axis,) = styled_figure(height=1.1 + (0.3 + 0.22 * len(scores)) * len(classes))
    spread = 0.62 / len(scores)
    for order, (model, of_model) in enumerate(scores.items()):
        color = PALETTE[order % len(PALETTE)]
        named = False
        for name, score in of_model.items():
            if not math.isfinite(score.estimate):
                continue
            row = classes.index(name) + (order - (len(scores) - 1) / 2) * spread
            if score.low is not None and score.high is not None:
                axis.hlines(row, score.low, score.high, color=color, linewidth=2)
            axis.plot(score.estimate, row, "os^Dv"[order % 5], color=color, markersize=6, label=None if named else shorten(model) or None)
            right = score.estimate if score.high is None else max(score.high, score.estimate)
            text = f"{score.estimate:.3f}" if unit_range else f"{score.estimate:.1f}"
            axis.annotate(text, (right, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=SMALL_POINTS, color=INK)
            named = True
    axis.set(xlabel=label, ylim=(len(classes) - 0.5, -0.5))
    axis.set_yticks(range(len(classes)), [shorten(name) for name in classes], parse_math=False, color=INK)
    axis.grid(False, axis="y")
    if unit_range:
        axis.set(xlim=(-0.02, 1.08), xticks=np.linspace(0, 1, 6))
    else:
        axis.set_xlim(left=0, right=1.12 * axis.get_xlim()[1])
    if len(scores) > 1:
        handles, labels = axis.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=SMALL_POINTS)
        for entry in legend.get_texts():
            entry.set(parse_math=False, color=INK)
    return figure


def recall_by_size(bins: Mapping[str, Sequence[VolumeBin]], *, subject: str = "tumours") -> Figure:
    """Which part of the tumours of each range of volumes was found, and of how many that is.

    Args:
        bins: by name (a model), from ``cohort.recall_by_volume`` and its kin, each over the same ranges.
        subject: what is counted, in the plural.

    Raises:
        ValueError: if there are no ranges, or they differ.
    """
    ranges = {tuple((part.low_ml, part.high_ml) for part in parts) for parts in bins.values()}
    if len(ranges) != 1 or not next(iter(ranges)):
        raise ValueError("recall by volume needs at least one range, the same ones for each name")
    edges = next(iter(ranges))
    figure, (axis,) = styled_figure(height=3.9)
    thickness = 0.8 / len(bins)
    for order, (name, parts) in enumerate(bins.items()):
        color = PALETTE[order % len(PALETTE)]
        for place, part in enumerate(parts):
            if part.recall is None:
                continue
            x = place + (order - (len(bins) - 1) / 2) * thickness
            first = not any(earlier.recall for earlier in parts[:place])
            axis.bar(x, part.recall.estimate, width=0.86 * thickness, color=tint(color), label=shorten(name) if first else None)
            if part.recall.low is not None and part.recall.high is not None:
                axis.vlines(x, part.recall.low, part.recall.high, color=INK, linewidth=1.2)
            axis.annotate(
                f"{part.found}/{part.count}",
                (x, 0),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL_POINTS,
                color=INK,
                bbox={"facecolor": tint(color), "edgecolor": "none", "pad": 1},
            )
    axis.set_xticks(range(len(edges)), [_range(low, high) for low, high in edges], color=INK)
    axis.set(xlabel=f"Volume of the {subject} (ml)", ylabel=f"Part of the {subject} found", ylim=(0, 1.02), xlim=(-0.6, len(edges) - 0.4))
    axis.grid(False, axis="x")
    if any(name for name in bins) and len(bins) > 1:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=SMALL_POINTS)
    return figure


def bland_altman(measured: ArrayLike, reference: ArrayLike, *, unit: str = "ml", subject: str = "Volume") -> Figure:
    """Do two measurements of the same cases agree? Their difference over their mean, with the mean difference and the limits of agreement.

    The limits are the mean difference plus and minus 1.96 standard deviations: 95 % of the differences, if they are normally distributed
    (Bland and Altman, "Statistical methods for assessing agreement between two methods of clinical measurement", Lancet 1986).

    Args:
        measured: [N]; cases with a value that is not finite are left out.
        reference: [N], of the same cases.
        unit: of both.
        subject: what was measured.

    Raises:
        ValueError: if the lengths differ or no case is left.
    """
    first, second = np.asarray(measured, dtype=float), np.asarray(reference, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"measured is {list(first.shape)} and reference {list(second.shape)}: expected two lists of the same length")
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        raise ValueError("no case has both measurements: expected at least one")
    mean, difference = (first[both] + second[both]) / 2, first[both] - second[both]
    bias = float(difference.mean())
    figure, (axis,) = styled_figure()
    axis.scatter(mean, difference, s=22, color=PALETTE[0], alpha=0.65, linewidths=0)
    axis.axhline(0, color="#9aa5b1", linewidth=1, linestyle=(0, (4, 3)))
    lines = [(bias, f"mean difference {bias:+.2f} {unit}")]
    if len(difference) > 1:
        reach = 1.96 * float(difference.std(ddof=1))
        lines += [(bias + side * reach, f"{bias + side * reach:+.2f} {unit}") for side in (1, -1)]
    for place, (height, text) in enumerate(lines):
        axis.axhline(height, color=PALETTE[1] if place == 0 else MUTED, linewidth=1.4, linestyle="-" if place == 0 else (0, (6, 2)))
        axis.annotate(
            text, (1, height), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points", ha="right",
            fontsize=SMALL_POINTS, color=INK, parse_math=False,
        )  # fmt: skip
    axis.set(xlabel=f"{subject}: mean of measured and reference ({unit})", ylabel=f"Measured minus reference ({unit})")
    axis.margins(y=0.15)
    left_out = int(both.size - both.sum())
    note = f"{len(mean)} cases; dashed: limits of agreement, 1.96 standard deviations"
    note += f"; {left_out} without both measurements not shown" if left_out else ""
    axis.set_title(note, loc="left", fontsize=SMALL_POINTS, color=MUTED)
    return figure


def memory_curves(
    curves: Mapping[str, Series], *, x_label: str, budget_gib: float | None = None, label: str = "Peak memory of a training step (GiB)"
) -> Figure:
    """What memory each kind of network needs over its depth or the size of its input; lines end where nothing was measured.

    Args:
        curves: (x, bytes) by name, in order of x.
        x_label: what x is, such as "Blocks per stage" or "Voxels along a side".
        budget_gib: memory of a device, drawn as a line.
        label: of the memory axis.

    Raises:
        ValueError: if there is no curve.
    """
    if not curves:
        raise ValueError("no curves to draw: expected at least one")
    figure, (axis,) = styled_figure()
    highest = 0.0
    for order, (name, series) in enumerate(curves.items()):
        x, gib = np.asarray(series, dtype=float).reshape(-1, 2).T
        gib = gib / 2**30
        axis.plot(x, gib, marker="os^Dv"[order % 5], markersize=5, linewidth=1.8, color=PALETTE[order % len(PALETTE)], label=shorten(name))
        highest = max(highest, float(np.nanmax(gib, initial=0)))
    if budget_gib is not None:
        axis.axhline(budget_gib, color=INK, linewidth=1, linestyle=(0, (1, 1.5)), label=f"budget: {budget_gib:g} GiB")
        highest = max(highest, budget_gib)
    axis.set(xlabel=x_label, ylabel=label, ylim=(0, 1.08 * highest or 1))
    every = sorted({float(x) for series in curves.values() for x, _ in series})
    if len(every) > 1 and every[0] > 0 and every[-1] / every[0] >= 16:
        axis.set_xscale("log")
        label_plainly(axis, along="x")
    elif len(every) <= 10:
        axis.set_xticks(every)
    styled_legend(axis)
    return figure


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"{low:g} or more"
    return f"under {high:g}" if low == 0 else f"{low:g} to {high:g}"

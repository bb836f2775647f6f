"""One calm style for every figure.

It is set on each figure, not in Matplotlib's rcParams, and pyplot is not used: those are one for the whole process, and figures are made in
the threads of a service too. Text is drawn as it is: a ``$`` in a file name is not mathematics. Needs no display.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["INK", "MUTED", "PALETTE", "SMALL_POINTS", "label_plainly", "shorten", "styled_figure", "styled_legend", "tint", "to_png"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Colours that stay apart with colour blindness (Wong, "Points of view: Color blindness", Nature Methods 2011), and grey."""

INK, MUTED, GRID = "#1f2933", "#52606d", "#e4e7eb"
TEXT_POINTS, SMALL_POINTS = 9.0, 8.0
WIDTH_INCHES = 6.4
LONGEST_NAME = 32


def styled_figure(
    *, width: float = WIDTH_INCHES, height: float = 3.8, rows: int = 1, columns: int = 1, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """An empty figure of this size in inches, and its axes row by row, for plots that are not here but should look alike."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    axes = [axis for row in grid for axis in row]
    for axis in axes:
        axis.set_prop_cycle(color=PALETTE)
        axis.set_axisbelow(True)
        axis.grid(True, color=GRID, linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#9aa5b1")
        axis.tick_params(which="both", colors=MUTED, labelsize=SMALL_POINTS, length=3, width=0.8)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(fontsize=TEXT_POINTS, color=INK, parse_math=False)
    return figure, axes


def styled_legend(axes: Axes, *, location: Literal["best", "upper left", "lower right"] = "best") -> None:
    """A legend without a frame, of every labelled artist, drawn verbatim; nothing if none is labelled."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(handles, labels, loc=location, frameon=False, fontsize=SMALL_POINTS, labelcolor=INK)
        for text in legend.get_texts():
            text.set_parse_math(False)


def to_png(figure: Figure, *, dpi: int = 200) -> bytes:
    """The figure as a PNG file; at the default resolution a full-width figure prints sharply."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def label_plainly(axis: Axes, *, along: str) -> None:
    """0.1, 1, 10 rather than powers on a logarithmic axis, at decades alone; within two decades also at 2 and 5."""
    scale = axis.xaxis if along == "x" else axis.yaxis
    low, high = sorted(scale.get_view_interval())
    scale.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scale.set_minor_formatter(NullFormatter())


def shorten(name: str) -> str:
    """A name that fits beside an axis: the middle of a long one gives way, because file names differ at their ends."""
    name = " ".join(name.split())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"


def tint(color: str) -> tuple[float, float, float]:
    """Lighter, so that a dark interval reads on it."""
    red, green, blue = (0.3 + 0.7 * channel for channel in to_rgb(color))
    return red, green, blue

"""Frames, overlays and maps in a grid, with captions: what a notebook shows where a report has its gallery."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from shared.reports.style import INK, MUTED, SMALL_POINTS

__all__ = ["picture_grid"]

WIDTH_INCHES = 9.6
GAP_INCHES = 0.1
LINE_INCHES = 0.15
"""Height of one line of a caption."""
KEY_INCHES = 0.45
"""Height of the legend, and of the colour scale."""


def picture_grid(
    pictures: Sequence[tuple[NDArray[np.uint8], str]],
    *,
    columns: int = 4,
    legend: Mapping[str, tuple[int, int, int]] | None = None,
    scale: tuple[str, str] | None = None,
) -> Figure:
    """Pictures row by row, each under its caption.

    Args:
        pictures: (uint8 [H, W, 3], caption); sizes may differ, and a caption may have several lines, or none.
        columns: pictures in a row.
        legend: RGB, 0 to 255, by what the colour means.
        scale: Matplotlib name of a colour map and what it shows, for a bar from 0 to 1 below pictures that were made with it.

    Raises:
        ValueError: if there is no picture or no column.
    """
    if not pictures or columns < 1:
        raise ValueError(f"{len(pictures)} pictures in {columns} columns: expected at least one of each")
    rows = math.ceil(len(pictures) / columns)
    height = WIDTH_INCHES / columns * float(np.median([picture.shape[0] / picture.shape[1] for picture, _ in pictures]))
    captions = [caption for _, caption in pictures]
    lines = sum(max(_lines(caption) for caption in captions[start : start + columns]) for start in range(0, len(captions), columns))
    size = (WIDTH_INCHES, rows * (height + GAP_INCHES) + lines * LINE_INCHES + KEY_INCHES * (bool(legend) + (scale is not None)))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for axis, (picture, caption) in zip(grid.flat, pictures, strict=False):
        axis.imshow(picture)
        axis.set_title(caption, loc="left", fontsize=SMALL_POINTS, color=INK, pad=3, parse_math=False)
    if scale is not None:
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), scale[0]), ax=list(grid.flat), orientation="horizontal", shrink=0.35, aspect=40, pad=0.01
        )
        bar.set_label(scale[1], fontsize=SMALL_POINTS, color=INK, parse_math=False)
        bar.ax.tick_params(labelsize=SMALL_POINTS, colors=MUTED)
        bar.outline.set_visible(False)  # type: ignore[operator]
    if legend:
        colors = {name: (red / 255, green / 255, blue / 255) for name, (red, green, blue) in legend.items()}
        swatches = [Patch(facecolor=color, edgecolor=INK, linewidth=0.5, label=name) for name, color in colors.items()]
        key = figure.legend(handles=swatches, loc="outside lower center", ncols=len(swatches), frameon=False, fontsize=SMALL_POINTS)
        for text in key.get_texts():
            text.set(parse_math=False, color=INK)
    return figure


def _lines(caption: str) -> int:
    return len(caption.splitlines())

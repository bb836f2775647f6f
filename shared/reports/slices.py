"""Pictures of a segmented volume: the slices that show the largest lesion, with contours, a scale and the sides of the patient.

    preview(volume, labels, {1: "necrotic core", 2: "oedema", 4: "enhancing"})

Contours alone are drawn on the image, so that what was outlined can be judged. All planes of one picture have one scale.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from shared.explain.overlay import AGREEMENT_COLORS, contours, heat, overlay
from shared.imaging.volumes import Volume
from shared.reports.pictures import picture_grid
from shared.reports.planes import LETTERS, PLANES, Plane, Viewed, check_labels, ras, view

__all__ = ["LABEL_COLORS", "agreement", "figure", "label_colors", "montage", "preview", "probability_map"]

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]
Draw = Callable[[Plane, int, Pixels], Pixels]
"""Draws on the picture of a slice."""

LABEL_COLORS: tuple[Color, ...] = ((0, 229, 255), (255, 176, 0), (255, 92, 205), (128, 255, 96), (255, 96, 64), (160, 140, 255))
"""RGB by order of the label values: bright on grey, and apart from one another with colour blindness for the first three."""

TEXT_COLOR: Color = (226, 232, 238)
MUTED_COLOR: Color = (150, 162, 174)
GAP = 6
"""Pixels between the panels of a picture."""


def label_colors(names: Mapping[int, str]) -> dict[int, Color]:
    """The colour of each label value, the same in every picture and in the 3-D view."""
    return {value: LABEL_COLORS[order % len(LABEL_COLORS)] for order, value in enumerate(sorted(names))}


def preview(volume: Volume, labels: ArrayLike, names: Mapping[int, str], *, channel: int = 0, height: int = 384) -> Pixels:
    """Axial, coronal and sagittal slice through the largest lesion (the middle of the image if there is none) with contours per label.

    Args:
        volume: [X, Y, Z] or [C, X, Y, Z], any orientation and spacing.
        labels: whole numbers [X, Y, Z] on the same voxels; 0 is background.
        names: of the label values; values that are not in it are not drawn.
        channel: which one is shown.
        height: of the panels, in pixels.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if the labels do not fit the volume, or there is no such channel.
    """
    shown = view(volume, labels, channel=channel)
    panels = panels_of(shown, shown.best_slices(), contour_drawing(shown, names), height=height)
    return with_legend(in_row([panel for panel, _ in panels]), legend_of(labels, names))


def figure(volume: Volume, labels: ArrayLike, names: Mapping[int, str], *, channel: int = 0) -> Figure:
    """``preview`` as a Matplotlib figure, for notebooks and papers; each slice says where it is. Arguments and errors as there."""
    shown = view(volume, labels, channel=channel)
    panels = panels_of(shown, shown.best_slices(), contour_drawing(shown, names), height=512, captions=False)
    height, width = (max(panel.shape[side] for panel, _ in panels) for side in (0, 1))
    # Of one size, they stay at one scale in the columns of the figure.
    panels = [(_centred(panel, height, width), caption) for panel, caption in panels]
    return picture_grid(panels, columns=3, legend=legend_of(labels, names))


def agreement(volume: Volume, predicted: ArrayLike, truth: ArrayLike, *, channel: int = 0, height: int = 384) -> Pixels:
    """A prediction against the truth: found, missed and false alarm, in ``AGREEMENT_COLORS``.

    Args:
        volume, channel, height: as ``preview``.
        predicted, truth: [X, Y, Z]; every voxel that is not 0 counts. The slices are those of the largest lesion of the truth, or of the
            prediction where the truth is empty.

    Returns:
        uint8 [H, W, 3], with a legend.

    Raises:
        ValueError: as ``preview``.
    """
    marked, actual = (check_labels(volume, labels) > 0 for labels in (predicted, truth))
    # One view shows both, and the slices are chosen by what the picture is about.
    shown = view(volume, marked.astype(np.uint8) + 2 * actual.astype(np.uint8), channel=channel)
    slices = view_of(shown, shown.labels >= 2 if actual.any() else shown.labels > 0).best_slices()

    def draw(plane: Plane, index: int, picture: Pixels) -> Pixels:
        size = picture.shape[0], picture.shape[1]
        found = shown.mask(np.isin(shown.labels, (1, 3)), plane, index, size)
        return overlay(picture, found, truth=shown.mask(shown.labels >= 2, plane, index, size))

    return with_legend(in_row([panel for panel, _ in panels_of(shown, slices, draw, height=height)]), AGREEMENT_COLORS)


def probability_map(
    volume: Volume, values: ArrayLike, labels: ArrayLike | None = None, *, channel: int = 0, height: int = 384, label: str = "Probability"
) -> Pixels:
    """A probability or an uncertainty over the image, on the absolute scale from 0 to 1.

    Args:
        volume, channel, height: as ``preview``.
        values: float [X, Y, Z], 0 to 1; what is not finite counts as 0.
        labels: whole numbers [X, Y, Z]: where the slices are cut; without, where the values are above one half.
        label: what the colours show.

    Returns:
        uint8 [H, W, 3], with the colour scale.

    Raises:
        ValueError: as ``preview``, or if a value lies outside 0 to 1.
    """
    array = np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0.0)
    if array.shape != volume.shape or array.min() < 0 or array.max() > 1:
        raise ValueError(f"values are {list(array.shape)}, {array.min():g} to {array.max():g}: expected {list(volume.shape)}, 0 to 1")
    where = check_labels(volume, labels) if labels is not None else (array > 0.5).astype(np.uint8)
    shown = view(volume, where, channel=channel)
    whole = view(volume, where, channel=channel, cropped=False)
    start = np.rint(whole.image.grid.to_index(shown.image.grid.to_world((0, 0, 0)))).astype(int)
    box = tuple(slice(first, first + size) for first, size in zip(start, shown.image.shape, strict=True))
    laid = ras(volume, array)[box]

    def draw(plane: Plane, index: int, picture: Pixels) -> Pixels:
        size = picture.shape[0], picture.shape[1]
        return heat(picture, np.clip(shown.values(laid, plane, index, size), 0, 1))

    return _with_scale(in_row([panel for panel, _ in panels_of(shown, shown.best_slices(), draw, height=height)]), label)


def montage(
    volume: Volume, labels: ArrayLike | None, names: Mapping[int, str], *, plane: Plane = "axial", count: int = 12, columns: int = 6,
    channel: int = 0, height: int = 200,
) -> Pixels:  # fmt: skip
    """Evenly spaced slices from one end of what is labelled (or, without labels, of the image) to the other.

    Args:
        volume, labels, names, channel: as ``preview``; labels may be None.
        plane: which slices.
        count: how many at most; fewer if there are no more.
        columns: panels in a row.
        height: of a panel, in pixels.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: as ``preview``, or if ``count`` or ``columns`` is below 1.
    """
    if count < 1 or columns < 1:
        raise ValueError(f"count is {count} and columns {columns}: expected at least 1")
    shown = view(volume, labels, channel=channel)
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    used = np.flatnonzero(np.moveaxis(shown.labels > 0, axis, 0).reshape(shown.count(plane), -1).any(axis=1))
    first, last = (int(used[0]), int(used[-1])) if used.size else (0, shown.count(plane) - 1)
    indices = np.unique(np.rint(np.linspace(first, last, count)).astype(int)).tolist()
    tall, wide = shown.size_mm(plane)
    draw, bar_mm, points = contour_drawing(shown, names), _bar_mm(wide), float(np.clip(height / 20, 10, 22))
    panels = [
        _panel(shown, plane, index, draw, pixel_mm=tall / height, bar_mm=bar_mm, points=points, caption=shown.position(plane, index))
        for index in indices
    ]
    rows = [in_row(panels[start : start + columns]) for start in range(0, len(panels), columns)]
    picture = in_column(rows)
    return picture if labels is None else with_legend(picture, legend_of(labels, names))


def view_of(shown: Viewed, labels: NDArray[Any]) -> Viewed:
    """The same view with other labels."""
    return Viewed(image=shown.image, labels=labels, window=shown.window)


def contour_drawing(shown: Viewed, names: Mapping[int, str]) -> Draw:
    """Draws the contour of each named label, the outermost first: where two share a border, the inner one's colour is seen."""
    colors, order = label_colors(names), contour_order(shown.labels, names)

    def draw(plane: Plane, index: int, picture: Pixels) -> Pixels:
        size = picture.shape[0], picture.shape[1]
        regions = [(shown.mask(shown.labels == value, plane, index, size), colors[value]) for value in order]
        return contours(picture, regions, width=max(2.0, min(size) / 220))

    return draw


def contour_order(labels: NDArray[Any], names: Mapping[int, str]) -> list[int]:
    """The label values from the outside in, by the boxes around them."""
    boxes = dict(enumerate(ndimage.find_objects(labels), start=1))

    def extent(value: int) -> int:
        box = boxes.get(value)
        return math.prod(part.stop - part.start for part in box) if box else 0

    return sorted(names, key=lambda value: -extent(value))


def legend_of(labels: ArrayLike, names: Mapping[int, str]) -> dict[str, Color]:
    """The colours of those labels that occur."""
    present = set(np.unique(np.asarray(labels)).tolist())
    return {names[value]: color for value, color in label_colors(names).items() if value in present}


def panels_of(shown: Viewed, slices: Mapping[Plane, int], draw: Draw, *, height: int, captions: bool = True) -> list[tuple[Pixels, str]]:
    """The three planes at one scale, the tallest as high as this, each with where it is."""
    pixel_mm = max(shown.size_mm(plane)[0] for plane in PLANES) / height
    bar_mm = _bar_mm(min(shown.size_mm(plane)[1] for plane in PLANES))
    points = float(np.clip(height / 20, 10, 24))
    panels = []
    for plane in PLANES:
        place = shown.position(plane, slices[plane])
        caption = f"{plane}, {place}"
        drawn = _panel(
            shown, plane, slices[plane], draw, pixel_mm=pixel_mm, bar_mm=bar_mm, points=points, caption=caption if captions else ""
        )
        panels.append((drawn, caption))
    return panels


def _panel(shown: Viewed, plane: Plane, index: int, draw: Draw, *, pixel_mm: float, bar_mm: float, points: float, caption: str) -> Pixels:
    rows, columns = (max(1, round(length / pixel_mm)) for length in shown.size_mm(plane))
    picture = Image.fromarray(draw(plane, index, shown.grey(plane, index, (rows, columns))))
    pen = ImageDraw.Draw(picture)
    bold = font(points, "DejaVuSansMono-Bold")  # in which an I is not just a bar
    left, right, top, bottom = tuple(LETTERS[plane])
    edge = points / 3
    for letter, place, anchor in (
        (left, (edge, rows / 2), "lm"),
        (right, (columns - edge, rows / 2), "rm"),
        (top, (columns / 2, edge), "ma"),
        (bottom, (columns / 2, rows - edge), "md"),
    ):
        _write(pen, place, letter, bold, anchor=anchor)
    small = font(0.8 * points)
    _write(pen, (edge, edge), caption, small, anchor="la", color=MUTED_COLOR)
    length, foot, thick = bar_mm / pixel_mm, rows - points / 2, max(2, round(points / 7))
    pen.rectangle((points / 2 - 1, foot - thick - 1, points / 2 + length + 1, foot + 1), fill=(0, 0, 0))
    pen.rectangle((points / 2, foot - thick, points / 2 + length, foot), fill=TEXT_COLOR)
    _write(pen, (points / 2, foot - thick - points / 4), f"{bar_mm:g} mm", small, anchor="ld")
    return np.asarray(picture)


def _bar_mm(width_mm: float) -> float:
    """A round length of at most a third of the width."""
    return max((length for length in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if length <= 0.33 * width_mm), default=0.1)


def with_legend(picture: Pixels, legend: Mapping[str, Color]) -> Pixels:
    """The picture over a strip that says what the colours mean; as it is if there are none."""
    if not legend:
        return picture
    points = float(np.clip(picture.shape[0] / 26, 12, 18))
    width, line = picture.shape[1], round(2 * points)
    placed: list[tuple[str, Color, float, int]] = []
    x, row = points, 0
    for name, color in legend.items():
        needed = 1.6 * points + font(points).getlength(name) + 1.4 * points
        if placed and x + needed > width:
            x, row = points, row + 1
        placed.append((name, color, x, row))
        x += needed
    strip = Image.new("RGB", (width, (row + 1) * line))
    pen = ImageDraw.Draw(strip)
    for name, color, x, row in placed:
        middle = (row + 0.5) * line
        pen.rectangle((x, middle - points / 2, x + points, middle + points / 2), outline=color, width=max(2, round(points / 6)))
        _write(pen, (x + 1.6 * points, middle), name, font(points), anchor="lm")
    return in_column([picture, np.asarray(strip)], gap=0)


def _with_scale(picture: Pixels, label: str) -> Pixels:
    points = float(np.clip(picture.shape[0] / 26, 12, 18))
    strip = Image.new("RGB", (picture.shape[1], round(2 * points)))
    pen = ImageDraw.Draw(strip)
    middle, length = points, round(min(12 * points, picture.shape[1] / 3))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 1, length))[:, :3]
    left = points + font(points).getlength(f"{label}  0 ")
    _write(pen, (points, middle), f"{label}  0", font(points), anchor="lm")
    bar = np.repeat(np.rint(255 * colors).astype(np.uint8)[None], round(points), axis=0)
    strip.paste(Image.fromarray(bar), (round(left), round(middle - points / 2)))
    _write(pen, (left + length + points / 2, middle), "1", font(points), anchor="lm")
    return in_column([picture, np.asarray(strip)], gap=0)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    letters: ImageFont.FreeTypeFont,
    *,
    anchor: str,
    color: Color = TEXT_COLOR,
) -> None:
    pen.text(place, text, font=letters, fill=color, anchor=anchor, stroke_width=max(1, round(letters.size / 9)), stroke_fill=(0, 0, 0))


@cache
def font(points: float, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """A font that comes with Matplotlib and knows the letters of most languages, at a height in pixels."""
    path = Path(str(importlib.resources.files(matplotlib) / f"mpl-data/fonts/ttf/{name}.ttf"))
    return ImageFont.truetype(str(path), round(points))


def in_row(panels: Sequence[Pixels]) -> Pixels:
    """Panels from left to right, on black, at half height of the tallest."""
    height = max(panel.shape[0] for panel in panels)
    parts: list[Pixels] = []
    for panel in panels:
        parts += [np.zeros((height, GAP, 3), np.uint8), _centred(panel, height, panel.shape[1])]
    return np.concatenate(parts[1:], axis=1)


def _centred(picture: Pixels, height: int, width: int) -> Pixels:
    rows, columns = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)))


def in_column(pictures: Sequence[Pixels], *, gap: int = GAP) -> Pixels:
    """Pictures from top to bottom, on black, flush left."""
    width = max(picture.shape[1] for picture in pictures)
    parts: list[Pixels] = []
    for picture in pictures:
        parts += [np.zeros((gap, width, 3), np.uint8), np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)))]
    return np.concatenate(parts[1:])

"""Two scans of one patient in one picture: the same slices side by side, and both outlines on the later scan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.explain.overlay import contours
from shared.imaging.volumes import Volume, resample
from shared.metrics.lesions import LesionMap
from shared.reports.planes import Plane, Viewed, check_labels, grey_window, view
from shared.reports.slices import Color, Draw, Pixels, in_column, in_row, panels_of, with_legend
from shared.reports.surface import Surface, surfaces

__all__ = ["TIME_COLORS", "Scan", "both_outlines", "both_surfaces", "same_slices"]

TIME_COLORS: dict[str, Color] = {"after": (0, 229, 255), "before": (255, 176, 0)}
"""RGB of the outlines of each scan."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """One examination of a patient."""

    volume: Volume
    labels: NDArray[Any]
    """Whole numbers [X, Y, Z] on the same voxels."""
    lesions: LesionMap
    """Of these labels, from ``find_lesions``."""

    @property
    def marked(self) -> NDArray[np.uint8]:
        """Where there is a lesion that counts, [X, Y, Z]: 1, elsewhere 0."""
        return (self.lesions.numbers > 0).astype(np.uint8)


def same_slices(before: Scan, after: Scan, *, channel: int = 0, height: int = 320) -> Pixels:
    """The earlier scan above the later one, at the same places in the patient, each with its own outline.

    The slices are those that show the largest lesion of both together. The grids may differ: the earlier scan is laid onto the later one's.
    What lies outside of it is black.

    Args:
        before, after: in the same world (registered, if the patient lay differently).
        channel: which one is shown.
        height: of the panels, in pixels.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if labels do not fit their volume, or there is no such channel.
    """
    later, earlier, slices = _views(before, after, channel)
    rows = []
    for shown, name in ((earlier, "before"), (later, "after")):
        rows.append(in_row([panel for panel, _ in panels_of(shown, slices, _drawing({name: shown.labels > 0}, shown), height=height)]))
    return with_legend(in_column(rows), {name: TIME_COLORS[name] for name in ("before", "after")})


def both_outlines(before: Scan, after: Scan, *, channel: int = 0, height: int = 384) -> Pixels:
    """The outlines of both on the later scan. Arguments, result and errors as ``same_slices``."""
    later, earlier, slices = _views(before, after, channel)
    draw = _drawing({"before": earlier.labels > 0, "after": later.labels > 0}, later)
    picture = in_row([panel for panel, _ in panels_of(later, slices, draw, height=height)])
    return with_legend(picture, {name: TIME_COLORS[name] for name in ("before", "after")})


def both_surfaces(before: Scan, after: Scan, *, channel: int = 0) -> tuple[Surface, ...]:
    """Head or brain, what there is after, and in it what there was before. Arguments and errors as ``same_slices``."""
    earlier = resample(before.volume.with_values(before.marked), after.volume.grid, order=0).values
    # What was there and is gone lies beside the rest; where both are, the earlier is inside.
    labels = np.where(earlier > 0, 2, after.marked).astype(np.uint8)
    return surfaces(after.volume, labels, {1: "after", 2: "before"}, channel=channel)


def _views(before: Scan, after: Scan, channel: int) -> tuple[Viewed, Viewed, dict[Plane, int]]:
    """The later and the earlier scan, both cut from the later one's grid, and where to look."""
    for scan in (before, after):
        check_labels(scan.volume, scan.labels)
    on_after = resample(before.volume.with_values(before.marked), after.volume.grid, order=0).values
    union = view(after.volume, on_after | after.marked, channel=channel)
    grid = union.image.grid
    marked = resample(after.volume.with_values(after.marked), grid, order=0).values
    later = replace(union, labels=marked)
    old = view(before.volume, channel=channel, cropped=False)
    image = resample(old.image, grid, order=1, fill=old.window[0])
    earlier = Viewed(
        image=image,
        labels=resample(before.volume.with_values(before.marked), grid, order=0).values,
        window=grey_window(image.values) if np.ptp(image.values) else old.window,
    )
    return later, earlier, union.best_slices()


def _drawing(regions: dict[str, NDArray[np.bool_]], shown: Viewed) -> Draw:
    def draw(plane: Plane, index: int, picture: Pixels) -> Pixels:
        size = picture.shape[0], picture.shape[1]
        drawn = [(shown.mask(region, plane, index, size), TIME_COLORS[name]) for name, region in regions.items()]
        return contours(picture, drawn, width=max(2.0, min(size) / 220))

    return draw

"""How long and how wide a solid made of voxels is, on any affine grid: its largest diameter, and the two of radiologists in a slice.

The outline runs half a voxel outside the outermost voxels' centres, through the middle of each face between inside and outside: where a
surface by marching cubes has its vertices. The Image Biomarker Standardisation Initiative (Zwanenburg et al., Radiology 2020, "maximum 3D
diameter") measures between those. Between centres, a single voxel would have no size; between corners, everything would be a voxel's
diagonal too long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

__all__ = ["Diameter", "SliceDiameters", "largest_diameter", "slice_diameters"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Point = tuple[float, float, float]

_ROWS = 1024
"""Of the matrix of distances that is held at a time: an outline of 20,000 corners then takes 160 MB instead of 3 GB."""
_EQUAL = 1e-9
"""Relative: lengths that differ by less are equal, so that rounding does not choose between them."""


@dataclass(frozen=True, kw_only=True)
class Diameter:
    """A straight line from edge to edge, as a viewer draws it."""

    length_mm: float
    start_mm: Point
    end_mm: Point


@dataclass(frozen=True, kw_only=True)
class SliceDiameters:
    """The two diameters of WHO and RANO: the longest line in any slice, and the longest one across it in the same slice."""

    axis: int
    """Of the array: the one along which slices are counted."""
    slice_index: int
    longest: Diameter
    perpendicular: Diameter

    @property
    def product_mm2(self) -> float:
        """Of the two lengths, which RANO compares over time."""
        return self.longest.length_mm * self.perpendicular.length_mm


def largest_diameter(mask: Mask, affine: Floats) -> Diameter:
    """The longest line between two points of the outline; exact, by its convex hull.

    Args:
        mask: bool [X, Y, Z] with at least one voxel; voxels at the border of the array are at the border of the solid.
        affine: [4, 4], voxel index to millimetres.
    """
    points = _corners(mask) @ affine[:3, :3].T + affine[:3, 3]
    first, second = _farthest(points)
    return _between(points[first], points[second])


def slice_diameters(mask: Mask, affine: Floats, *, axis: int, diagonal: bool = True) -> SliceDiameters:
    """The longest line within any slice, and across it, at right angles, the longest line in the same outline.

    Parts of the solid that are not connected within a slice are measured on their own. A line may cross a bay of a part's outline: both are
    those of its convex hull. Of equally long lines, the one with the longest across is taken, and then the first.

    Args:
        mask: bool [X, Y, Z] with at least one voxel.
        affine: [4, 4], voxel index to millimetres; right angles are those of the patient also if it is sheared.
        axis: of the array, across the slices.
        diagonal: whether pixels that touch at a corner belong together.

    Raises:
        ValueError: if there is no such axis.
    """
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, not {axis}")
    inside = [index for index in range(3) if index != axis]
    plane, to_plane = np.linalg.qr(affine[:3, inside])
    best, number, ends = (-1.0, -1.0), 0, np.zeros((2, 2, 2))
    for slice_index, corner, part in _parts(np.moveaxis(mask, axis, 0), diagonal):
        if _reach(part.shape, to_plane) < best[0] * (1 - _EQUAL):
            continue
        lengths, lines = _crossing((_corners(part) + corner) @ to_plane.T)
        if lengths[0] > best[0] * (1 + _EQUAL) or (lengths[0] > best[0] * (1 - _EQUAL) and lengths[1] > best[1] * (1 + _EQUAL)):
            best, number, ends = lengths, slice_index, lines
    longest, perpendicular = ends @ plane.T + affine[:3, 3] + number * affine[:3, axis]
    return SliceDiameters(axis=axis, slice_index=number, longest=_between(*longest), perpendicular=_between(*perpendicular))


def _between(start: Floats, end: Floats) -> Diameter:
    (x, y, z), (u, v, w) = start.tolist(), end.tolist()
    return Diameter(length_mm=float(np.linalg.norm(end - start)), start_mm=(x, y, z), end_mm=(u, v, w))


def _corners(mask: Mask) -> Floats:
    """Voxel indices of the corners of the outline's convex hull, [N, axes]; in two dimensions, in their order around it.

    Only the first and the last voxel of each line along an axis can matter. The points are whole numbers until the end, and even a single
    voxel has two along each axis, so that the hull exists.
    """
    points = []
    for axis, size in enumerate(mask.shape):
        lines = mask.any(axis=axis)
        others = 2 * np.argwhere(lines)
        first = mask.argmax(axis=axis)[lines]
        last = size - 1 - np.flip(mask, axis).argmax(axis=axis)[lines]
        points += [np.insert(others, axis, ends, axis=1) for ends in (2 * first - 1, 2 * last + 1)]
    every = np.concatenate(points).astype(np.float64)
    return every[spatial.ConvexHull(every).vertices] / 2


def _farthest(points: Floats) -> tuple[int, int]:
    """The two points that are farthest apart, the first such pair."""
    best, pair = -1.0, (0, 0)
    for start in range(0, len(points), _ROWS):
        distances = spatial.distance.cdist(points[start : start + _ROWS], points[start:], "sqeuclidean")
        row, column = np.unravel_index(distances.argmax(), distances.shape)
        if distances[row, column] > best:
            best, pair = float(distances[row, column]), (start + int(row), start + int(column))
    return pair


def _crossing(points: Floats) -> tuple[tuple[float, float], Floats]:
    """Both diameters of a convex polygon: their lengths, and their ends [2, 2, 2]."""
    distances = np.triu(spatial.distance.cdist(points, points))
    pairs = np.argwhere(distances >= distances.max() * (1 - _EQUAL))
    lines = [np.stack([points[pair], _across(points, *pair)]) for pair in pairs]
    lengths = [float(np.linalg.norm(line[1, 1] - line[1, 0])) for line in lines]
    chosen = int(np.argmax(lengths))
    return (float(distances.max()), lengths[chosen]), lines[chosen]


def _across(points: Floats, first: int, second: int) -> Floats:
    """The ends of the longest line at right angles to the diameter between two corners of a convex polygon, [2, 2].

    Its width changes linearly from corner to corner, so the widest place is at one. The ends of the diameter are the ends of the polygon
    in that direction, and part its outline into two sides.
    """
    along = (points[second] - points[first]) / np.linalg.norm(points[second] - points[first])
    across = np.array([-along[1], along[0]])
    places, heights = points @ along, points @ across
    around = np.roll(np.arange(len(points)), -first)
    turn = int((second - first) % len(points))
    chains = around[: turn + 1], np.append(around[turn:], first)[::-1]
    sides = [np.interp(places, places[chain], heights[chain]) for chain in chains]
    widest = int(np.abs(sides[0] - sides[1]).argmax())
    return np.stack([places[widest] * along + side[widest] * across for side in sides])


def _parts(slices: Mask, diagonal: bool) -> Iterator[tuple[int, tuple[int, int], Mask]]:
    """Each connected part of each slice: the slice's index, the part's first row and column, and the part, cut out."""
    structure = ndimage.generate_binary_structure(2, 2 if diagonal else 1)
    for index, image in enumerate(slices):
        labels, _ = ndimage.label(image, structure)
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            yield index, (rows.start, columns.start), labels[rows, columns] == label


def _reach(shape: tuple[int, ...], to_plane: Floats) -> float:
    """How long a line in a part of this size can be at most."""
    return max(float(np.linalg.norm(to_plane @ (np.array(signs) * shape))) for signs in product((1,), (-1, 1)))

"""From the grid of the input to the grid of a model and back: reorienting, cropping, padding, and one interpolation.

Every step moves the affine along with the values, so steps can be combined in any order, and a result needs no record of them to go home:
its own affine and the grid of its source say everything. Where two grids differ by flips, permutations and whole voxels only, values are
copied; elsewhere they are interpolated by ITK, which runs on all cores, and treats a voxel as a box: the outer half of the border voxels is
still inside. scipy.ndimage.affine_transform has either nothing there or no outside at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.volumes.grid import Grid
from shared.imaging.volumes.volume import Volume

__all__ = [
    "Box",
    "Order",
    "crop",
    "foreground_box",
    "grid_with_axes",
    "grid_with_spacing",
    "pad",
    "pad_to_multiple",
    "reorient",
    "resample",
    "restore_labels",
    "restore_probability",
]

Box = tuple[slice, slice, slice]
"""A part of a grid, as indices from 0 with positive steps."""

Order = Literal[0, 1, 3]
"""Nearest voxel, linear, or cubic B-spline."""

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_EXACT_VOXELS = 1e-3
"""Corners that are off by less than this are on whole voxels: float32 headers are off by about 1e-5."""


def grid_with_axes(grid: Grid, axes: str = "RAS") -> Grid:
    """The same voxels, counted so that the axes run nearest to these directions; "RAS" is the canonical order.

    Raises:
        ValueError: if ``axes`` is not made of one of R/L, one of A/P and one of S/I.
    """
    if sorted(min(letter, _OPPOSITE.get(letter, letter)) for letter in axes) != ["A", "I", "L"]:
        raise ValueError(f"axes must be one of R or L, one of A or P and one of S or I in any order, not {axes!r}")
    corner = [0, 0, 0]
    columns = []
    for letter in axes:
        axis = next(index for index, have in enumerate(grid.axes) if have in (letter, _OPPOSITE[letter]))
        forward = grid.axes[axis] == letter
        corner[axis] = 0 if forward else grid.shape[axis] - 1
        columns.append((axis, grid.affine[:3, axis] * (1 if forward else -1)))
    affine = np.eye(4)
    affine[:3, :3] = np.stack([column for _, column in columns], axis=1)
    affine[:3, 3] = grid.to_world(corner)
    x, y, z = (grid.shape[axis] for axis, _ in columns)
    return Grid(shape=(x, y, z), affine=affine)


def grid_with_spacing(grid: Grid, spacing_mm: float | Sequence[float]) -> Grid:
    """The smallest grid of this spacing, around the same centre, that covers all of ``grid`` to the outer faces of its voxels.

    Raises:
        ValueError: if a spacing is not positive.
    """
    wanted = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), 3)
    if not (wanted > 0).all():
        raise ValueError(f"a spacing must be positive, not {spacing_mm}")
    old = np.array(grid.spacing_mm)
    x, y, z = (int(size) for size in np.ceil(np.array(grid.shape) * old / wanted - _EXACT_VOXELS))
    affine = grid.affine.copy()
    affine[:3, :3] *= wanted / old
    centre = grid.to_world((np.array(grid.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array([x, y, z]) - 1) / 2)
    return Grid(shape=(x, y, z), affine=affine)


def reorient(volume: Volume, axes: str = "RAS") -> Volume:
    """Exact: axes flipped and permuted so that they run nearest to these directions; an oblique volume stays oblique."""
    return resample(volume, grid_with_axes(volume.grid, axes), order=0)


def resample(volume: Volume, grid: Grid, *, order: Order, fill: float | Sequence[float] = 0) -> Volume:
    """The volume on another grid, in one interpolation; copied where no interpolation is needed.

    Nothing is smoothed before it is made coarser.

    Args:
        volume: [X, Y, Z] or [C, X, Y, Z].
        grid: any grid of the same world.
        order: 0 for labels; 1 or 3 for images. A cubic spline may overshoot the range of the values.
        fill: outside of the volume; one number, or one for each channel.

    Raises:
        ValueError: if integers are to be interpolated with another order than 0.
    """
    values = volume.values
    if values.dtype.kind not in "f" and order != 0:
        raise ValueError(f"values of type {values.dtype} are interpolated with order 0 only, because labels have no values between them")
    channels = values.reshape(-1, *volume.shape)
    outside = np.broadcast_to(np.asarray(fill), len(channels))
    matrix = np.asarray(np.linalg.solve(volume.affine, grid.affine), dtype=np.float64)
    whole = _whole(matrix, grid)
    if whole is not None:
        moved = [_copied(channel, whole, grid.shape, value) for channel, value in zip(channels, outside, strict=True)]
    else:
        moved = [_interpolated(channel, matrix, grid.shape, order, value) for channel, value in zip(channels, outside, strict=True)]
    result = np.stack(moved) if values.ndim == 4 else moved[0]
    return volume.moved(result, grid.affine)


def restore_labels(labels: Volume, grid: Grid | None = None) -> Volume:
    """A label map on the grid of its source (or on ``grid``), nearest voxel; 0 outside."""
    return resample(labels, labels.source_grid if grid is None else grid, order=0)


def restore_probability(probability: Volume, grid: Grid | None = None, *, outside: float | Sequence[float] = 0) -> Volume:
    """Probabilities on the grid of their source (or on ``grid``), linear; thresholds and argmax belong after this.

    Args:
        probability: float [X, Y, Z] or [C, X, Y, Z].
        grid: instead of the source's.
        outside: where the working grid does not reach, one number or one for each channel: for classes with the background first,
            (1, 0, ..., 0).
    """
    return resample(probability, probability.source_grid if grid is None else grid, order=1, fill=outside)


def foreground_box(mask: Volume, *, margin_mm: float = 0) -> Box:
    """The smallest box around the True voxels of a mask, wider by a margin on each side, within the volume.

    Args:
        mask: bool [X, Y, Z], or [C, X, Y, Z] for True in any channel.
        margin_mm: rounded up to whole voxels.

    Raises:
        InputError: if no voxel is True.
    """
    inside = np.asarray(mask.values.reshape(-1, *mask.shape).any(axis=0))
    box = []
    for axis, (size, spacing) in enumerate(zip(mask.shape, mask.spacing_mm, strict=True)):
        used = np.flatnonzero(np.moveaxis(inside, axis, 0).reshape(size, -1).any(axis=1))
        if not used.size:
            raise InputError(f"{mask.name}: holds nothing but background. Check that it is the right image.")
        margin = int(np.ceil(margin_mm / spacing))
        box.append(slice(max(int(used[0]) - margin, 0), min(int(used[-1]) + 1 + margin, size)))
    return box[0], box[1], box[2]


def crop(volume: Volume, box: Box) -> Volume:
    """Exact: the part of a volume within the box. Raises ValueError if that is empty."""
    starts, stops = zip(*(part.indices(size)[:2] for part, size in zip(box, volume.shape, strict=True)), strict=True)
    if any(stop <= start for start, stop in zip(starts, stops, strict=True)):
        raise ValueError(f"the box {box} leaves nothing of a volume of {list(volume.shape)}")
    affine = volume.affine.copy()
    affine[:3, 3] = volume.grid.to_world(starts)
    x, y, z = (slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    return volume.moved(np.ascontiguousarray(volume.values[..., x, y, z]), affine)


def pad(volume: Volume, widths: Sequence[tuple[int, int]], *, fill: float = 0) -> Volume:
    """Exact: more voxels before and behind along each of the three axes. Raises ValueError if a width is negative."""
    affine = volume.affine.copy()
    affine[:3, 3] = volume.grid.to_world([-before for before, _ in widths])
    channels = [(0, 0)] * (volume.values.ndim - 3)
    return volume.moved(np.pad(volume.values, [*channels, *widths], constant_values=fill), affine)


def pad_to_multiple(volume: Volume, multiple: int, *, smallest: int = 1, fill: float = 0) -> Volume:
    """Exact: padded evenly on both sides until each axis has a multiple of ``multiple`` voxels, and ``smallest`` at least."""
    missing = [-(-max(size, smallest) // multiple) * multiple - size for size in volume.shape]
    return pad(volume, [(width // 2, width - width // 2) for width in missing], fill=fill)


def _whole(matrix: NDArray[np.float64], grid: Grid) -> NDArray[np.int64] | None:
    """The matrix from new to old indices in whole numbers, if it only flips, permutes and shifts; else None."""
    whole = np.rint(matrix)
    turned = np.abs(whole[:3, :3])
    if not ((turned.sum(axis=0) == 1).all() and (turned.sum(axis=1) == 1).all()):
        return None
    corners = np.array([[x, y, z, 1] for x in (0, grid.shape[0] - 1) for y in (0, grid.shape[1] - 1) for z in (0, grid.shape[2] - 1)])
    return whole.astype(np.int64) if np.abs(corners @ (matrix - whole).T).max() <= _EXACT_VOXELS else None


def _copied(values: NDArray[Any], matrix: NDArray[np.int64], shape: tuple[int, int, int], fill: float) -> NDArray[Any]:
    result = np.full(shape, fill, values.dtype)
    order = [int(np.flatnonzero(matrix[:3, axis])[0]) for axis in range(3)]  # the old axis along which each new one runs
    taken, placed = [slice(0)] * 3, [slice(0)] * 3
    for axis, old in enumerate(order):
        sign, offset, size = int(matrix[old, axis]), int(matrix[old, 3]), values.shape[old]
        ends = (-offset, size - offset) if sign > 0 else (offset - size + 1, offset + 1)
        start, stop = max(ends[0], 0), min(ends[1], shape[axis])
        if start >= stop:
            return result
        first, behind = sign * start + offset, sign * stop + offset
        taken[old] = slice(first, behind if behind >= 0 else None, sign)
        placed[axis] = slice(start, stop)
    result[tuple(placed)] = values[tuple(taken)].transpose(order)
    return result


def _interpolated(
    values: NDArray[Any], matrix: NDArray[np.float64], shape: tuple[int, int, int], order: Order, fill: float
) -> NDArray[Any]:
    """In voxel indices, so that neither shear nor the format's idea of left and right matters."""
    import SimpleITK

    kind = values.dtype
    stored = values.astype(np.uint8) if kind == np.bool_ else values
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetSize([int(size) for size in shape])
    resampler.SetTransform(transform)
    resampler.SetInterpolator({0: SimpleITK.sitkNearestNeighbor, 1: SimpleITK.sitkLinear, 3: SimpleITK.sitkBSpline3}[order])
    resampler.SetDefaultPixelValue(float(fill))
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(stored.transpose(2, 1, 0)))
    moved = SimpleITK.GetArrayFromImage(resampler.Execute(image))
    return np.array(moved.transpose(2, 1, 0), dtype=kind, order="C")

"""Lesions of a label volume, one by one: how large, where, how long and wide; largest first.

Volumes count whole voxels. World coordinates are those of the affine, RAS+ millimetres in Fovea.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from shared.metrics.diameters import Diameter, SliceDiameters, largest_diameter, slice_diameters

__all__ = ["Lesion", "LesionMap", "Neighbours", "connected_components", "find_lesions", "remove_small_lesions", "voxel_volume_ml"]

Neighbours = Literal[6, 18, 26]
"""What connects two voxels: a common face; or also an edge; or also a corner."""

_SLACK = 1e-9
"""Relative: a limit of 0.3 ml keeps a lesion of 300 voxels of 0.001 ml, however both are rounded."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected component."""

    number: int
    """In the map: 1 is the largest."""
    voxels: int
    volume_ml: float
    parts_ml: Mapping[int, float]
    """Volume of each label value within the lesion (oedema, enhancing tumour)."""
    centroid_mm: tuple[float, float, float]
    """Mean of its voxels' centres; may lie outside a curved lesion."""
    diameter: Diameter
    """The largest, in any direction."""
    axial: SliceDiameters
    """The largest within a slice, and its perpendicular."""
    box: tuple[slice, slice, slice]
    """The smallest box of voxels around it."""

    def row(self) -> dict[str, float]:
        """A line of a table."""
        x, y, z = self.centroid_mm
        return {
            "lesion": self.number,
            "volume_ml": self.volume_ml,
            "diameter_mm": self.diameter.length_mm,
            "axial_diameter_mm": self.axial.longest.length_mm,
            "axial_perpendicular_mm": self.axial.perpendicular.length_mm,
            "axial_slice": self.axial.slice_index,
            "x_mm": x,
            "y_mm": y,
            "z_mm": z,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class LesionMap:
    """All lesions of a volume."""

    numbers: NDArray[np.int32]
    """[X, Y, Z]: the number of the lesion that each voxel belongs to, 0 for none."""
    affine: NDArray[np.float64]
    """[4, 4], voxel index to millimetres."""
    lesions: tuple[Lesion, ...]
    """By volume, largest first; of equal ones, the one that comes first in the array."""

    @property
    def volume_ml(self) -> float:
        """Of all lesions together."""
        return math.fsum(lesion.volume_ml for lesion in self.lesions)


def find_lesions(
    labels: ArrayLike, affine: ArrayLike, *, neighbours: Neighbours = 26, minimum_ml: float = 0.0, axis: int | None = None
) -> LesionMap:
    """Every lesion, measured. A volume without any gives an empty list.

    Args:
        labels: bool or whole numbers [X, Y, Z]. Every voxel that is not 0 belongs to a lesion, whatever its value, so that oedema and core
            of one tumour are one lesion; to measure one of them, give ``labels == value``.
        affine: [4, 4], voxel index to millimetres.
        neighbours: what connects voxels. By default also corners, as where lesions are counted in BraTS.
        minimum_ml: smaller ones are left out, also from the map.
        axis: of the array, across the slices in which the axial diameters are measured; unless given, the one that runs nearest to the
            patient's length.

    Raises:
        ValueError: if the labels are not whole numbers from 0 in three dimensions, or the affine does not place voxels in space.
    """
    values, matrix = _checked(labels, affine)
    voxel_ml = voxel_volume_ml(matrix)
    numbers, sizes = connected_components(values != 0, neighbours=neighbours, minimum_voxels=_voxels(minimum_ml, voxel_ml))
    across = _lengthwise(matrix) if axis is None else axis
    boxes = ndimage.find_objects(numbers)
    lesions = [
        _measured(number, numbers[box] == number, values[box], box, matrix, voxel_ml, across, diagonal=neighbours != 6)
        for number, box in enumerate(boxes[: len(sizes)], start=1)
    ]
    return LesionMap(numbers=numbers, affine=matrix, lesions=tuple(lesions))


def remove_small_lesions(labels: NDArray[Any], affine: ArrayLike, *, minimum_ml: float, neighbours: Neighbours = 26) -> NDArray[Any]:
    """A copy of the labels without the lesions that are smaller. Arguments and errors as ``find_lesions``."""
    values, matrix = _checked(labels, affine)
    numbers, _ = connected_components(values != 0, neighbours=neighbours, minimum_voxels=_voxels(minimum_ml, voxel_volume_ml(matrix)))
    return np.where(numbers > 0, values, np.zeros((), values.dtype))


def connected_components(
    mask: NDArray[np.bool_], *, neighbours: Neighbours, minimum_voxels: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """The components of a mask [X, Y, Z], numbered from 1 by size, largest first (0 elsewhere), and their sizes in voxels.

    Components of fewer than ``minimum_voxels`` are left out.
    """
    numbers = np.zeros(mask.shape, np.int32)
    occupied = ndimage.find_objects(mask.astype(np.uint8))
    if not occupied:
        return numbers, np.zeros(0, np.intp)
    # Lesions are small in large volumes, and nothing outside the box around them needs to be looked at.
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[neighbours])
    found, count = ndimage.label(mask[occupied[0]], structure)
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= minimum_voxels]
    renumbered = np.zeros(count + 1, np.int32)
    renumbered[order + 1] = np.arange(1, len(order) + 1)
    numbers[occupied[0]] = renumbered[found]
    return numbers, sizes[order]


def voxel_volume_ml(affine: NDArray[np.float64]) -> float:
    """Volume of one voxel of a grid; right for sheared ones too, where the product of the spacings is not."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def _measured(
    number: int,
    mask: NDArray[np.bool_],
    values: NDArray[Any],
    box: tuple[slice, slice, slice],
    affine: NDArray[np.float64],
    voxel_ml: float,
    axis: int,
    *,
    diagonal: bool,
) -> Lesion:
    corner = np.array([part.start for part in box])
    here = affine.copy()
    here[:3, 3] += affine[:3, :3] @ corner
    x, y, z = here[:3, :3] @ np.argwhere(mask).mean(axis=0) + here[:3, 3]
    axial = slice_diameters(mask, here, axis=axis, diagonal=diagonal)
    kinds, counts = np.unique(values[mask], return_counts=True)
    voxels = int(counts.sum())
    return Lesion(
        number=number,
        voxels=voxels,
        volume_ml=voxels * voxel_ml,
        parts_ml={int(kind): int(count) * voxel_ml for kind, count in zip(kinds, counts, strict=True)},
        centroid_mm=(float(x), float(y), float(z)),
        diameter=largest_diameter(mask, here),
        axial=SliceDiameters(
            axis=axis,
            slice_index=axial.slice_index + int(corner[axis]),
            longest=axial.longest,
            perpendicular=axial.perpendicular,
        ),
        box=box,
    )


def _voxels(minimum_ml: float, voxel_ml: float) -> int:
    """The fewest voxels that reach a volume."""
    if not 0 <= minimum_ml < math.inf:
        raise ValueError(f"minimum_ml must be 0 or more, not {minimum_ml}")
    return math.ceil(minimum_ml / voxel_ml * (1 - _SLACK))


def _lengthwise(affine: NDArray[np.float64]) -> int:
    """The axis of the array that runs nearest to the world's third, from feet to head."""
    return int(np.abs(affine[2, :3] / np.linalg.norm(affine[:3, :3], axis=0)).argmax())


def _checked(labels: ArrayLike, affine: ArrayLike) -> tuple[NDArray[Any], NDArray[np.float64]]:
    values, matrix = np.asarray(labels), np.array(affine, dtype=np.float64)
    if values.ndim != 3:
        raise ValueError(f"labels must have three axes, got the shape {values.shape}")
    if values.dtype.kind not in "bui":
        raise ValueError(f"labels must be bool or whole numbers, got {values.dtype}: compare a probability with a threshold first")
    if values.size and values.min() < 0:
        raise ValueError(f"labels must be 0 or more, got {values.min()}")
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) == 0:
        raise ValueError(f"the affine must be an invertible matrix of 4 x 4 finite numbers, got {matrix.tolist()}")
    return values, matrix

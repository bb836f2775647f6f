"""Where voxels lie: a shape and an affine, compared in millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LPS_TO_RAS", "TOLERANCE_VOXELS", "Grid", "affine_fault"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK count towards the patient's left and back, Fovea and NIfTI towards right and front. Its own inverse."""

TOLERANCE_VOXELS = 0.05
"""Corners of two grids may be this far apart: well above what rounded headers do, well below what anybody could see."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The voxels of a volume in the patient.

    Raises:
        ValueError: if the shape is empty or the affine does not place voxels in space.
    """

    shape: tuple[int, int, int]
    """Voxels along the three axes of the array."""
    affine: NDArray[np.float64]
    """[4, 4]: homogeneous voxel index to millimetres, x to the patient's right, y to the front, z to the head (RAS+)."""

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three positive sizes, not {list(self.shape)}")
        if fault := affine_fault(affine):
            raise ValueError(f"the affine {fault}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis of the array."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @cached_property
    def axes(self) -> str:
        """To where each axis of the array runs, nearest: "RAS" if to the patient's right, front and head, as NIfTI counts."""
        import nibabel

        return "".join(nibabel.aff2axcodes(self.affine))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """Millimetres [..., 3] of (fractional) voxel indices [..., 3]; a whole index is the centre of its voxel."""
        world: NDArray[np.float64] = np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def to_index(self, world: ArrayLike) -> NDArray[np.float64]:
        """The opposite of ``to_world``."""
        away = np.asarray(world, dtype=np.float64) - self.affine[:3, 3]
        return np.asarray(np.linalg.solve(self.affine[:3, :3], away[..., None])[..., 0], dtype=np.float64)

    @property
    def corners(self) -> NDArray[np.float64]:
        """Millimetres [8, 3] of the centres of the corner voxels."""
        return self.to_world(list(product(*((0, size - 1) for size in self.shape))))

    def same_as(self, other: Grid) -> bool:
        """Whether each voxel lies at the same place, to ``TOLERANCE_VOXELS``."""
        return self.shape == other.shape and self.apart_mm(other) <= TOLERANCE_VOXELS * min(*self.spacing_mm, *other.spacing_mm)

    def apart_mm(self, other: Grid) -> float:
        """How far corresponding corners are apart at most."""
        return float(np.linalg.norm(self.corners - other.corners, axis=1).max())

    def difference(self, other: Grid) -> str:
        """How this grid differs from the other, in words; "" if it does not."""
        if self.same_as(other):
            return ""
        found = []
        if self.shape != other.shape:
            found.append(f"{_sizes(self.shape)} voxels instead of {_sizes(other.shape)}")
        if not np.allclose(self.spacing_mm, other.spacing_mm, rtol=1e-3):
            found.append(f"spacing {_numbers(self.spacing_mm)} instead of {_numbers(other.spacing_mm)} mm")
        if self.axes != other.axes:
            found.append(f"axes {self.axes} instead of {other.axes}")
        if not found:
            found.append(f"the same size, but corners up to {self.apart_mm(other):.3g} mm apart")
        if not _touching(self, other):
            found.append(f"and they lie in different places, around {_numbers(_centre(self))} and {_numbers(_centre(other))} mm")
        return ", ".join(found)


def affine_fault(affine: NDArray[np.float64]) -> str:
    """What is wrong with an affine, as the end of a sentence; "" if nothing."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return "is not a matrix of 4 x 4 finite numbers"
    if not np.allclose(affine[3], (0, 0, 0, 1)):
        return f"ends with the row {affine[3].tolist()} instead of 0 0 0 1"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        return f"has a zero spacing ({_numbers(lengths)} mm)"
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        return "is singular: two of its axes run in the same direction"
    return ""


def _touching(one: Grid, other: Grid) -> bool:
    """Whether the boxes around both overlap, in the axes of the first."""
    inside = one.to_index(other.corners)
    return bool((inside.max(axis=0) >= -0.5).all() and (inside.min(axis=0) <= np.array(one.shape) - 0.5).all())


def _centre(grid: Grid) -> NDArray[np.float64]:
    return grid.to_world((np.array(grid.shape) - 1) / 2)


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def _numbers(values: ArrayLike) -> str:
    return ", ".join(f"{value:.4g}" for value in np.asarray(values))

"""A volume in memory: values, where they lie in the patient, and what a result needs to go back into the source's format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.volumes.grid import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["DicomSource", "Source", "Volume", "check_same_grid", "same_grid"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DicomSource:
    """The images that a volume was made of, without their pixels."""

    images: tuple[Dataset, ...]
    """In the order of the volume's third axis, or one multi-frame object."""
    frames: tuple[int, ...] = ()
    """Of a multi-frame object, the frame (counted from 0) of each slice of the volume; empty for a series of single images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What a file or series was, besides its voxels."""

    suffix: str
    """The ending under which results are at home: ".nii", ".nii.gz", ".mha", ".nrrd" or ".dcm"."""
    grid: Grid
    """The file's own grid; results go back into it."""
    nifti: Any | None = None
    """The NIfTI header (nibabel), as it stood in the file."""
    dicom: DicomSource | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """Values and where they lie. Arrays are not copied.

    Raises:
        ValueError: if the values have not three axes, or four with the channels first, or the affine does not place them in space.
    """

    values: NDArray[Any]
    """[X, Y, Z], or [C, X, Y, Z] for several channels or time points. float32 for an image, integers for labels."""
    affine: NDArray[np.float64]
    """[4, 4]: voxel index (x, y, z) to millimetres in RAS+; see Grid."""
    name: str = "the volume"
    """What messages call it."""
    source: Source | None = None
    """None for a volume that was made in memory."""
    notes: tuple[str, ...] = ()
    """What a person should know about how the file was understood, one sentence each."""

    def __post_init__(self) -> None:
        if np.ndim(self.values) not in (3, 4):
            raise ValueError(f"a volume has the shape [X, Y, Z] or [C, X, Y, Z], not {list(np.shape(self.values))}")
        object.__setattr__(self, "affine", self.grid.affine)

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine."""
        x, y, z = self.values.shape[-3:]
        return Grid(shape=(x, y, z), affine=self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z, without the channels."""
        return self.grid.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis of the array."""
        return self.grid.spacing_mm

    @property
    def axes(self) -> str:
        """To where the axes of the array run, such as "RAS"; see Grid."""
        return self.grid.axes

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel."""
        return self.grid.voxel_ml

    @property
    def source_grid(self) -> Grid:
        """The grid of the file it comes from, however often it was resampled since; its own if it comes from none."""
        return self.grid if self.source is None else self.source.grid

    def with_values(self, values: NDArray[Any]) -> Volume:
        """Other values, [X, Y, Z] or [C, X, Y, Z], on the same voxels.

        Raises:
            ValueError: if the shape is another.
        """
        if values.shape[-3:] != self.shape:
            raise ValueError(f"values of shape {list(values.shape)} do not fit the grid {list(self.shape)} of {self.name}")
        return replace(self, values=values)

    def moved(self, values: NDArray[Any], affine: NDArray[np.float64]) -> Volume:
        """The same thing on other voxels: a crop, a reorientation, another resolution."""
        return replace(self, values=values, affine=affine)


def same_grid(one: Volume, other: Volume) -> bool:
    """Whether both have their voxels at the same places, to a twentieth of a voxel."""
    return one.grid.same_as(other.grid)


def check_same_grid(one: Volume, other: Volume) -> None:
    """Raises InputError, saying how they differ, unless both have their voxels at the same places."""
    difference = one.grid.difference(other.grid)
    if difference:
        lost = next((volume.name for volume in (one, other) if np.array_equal(volume.affine, np.eye(4))), None)
        hint = f" {lost} has no orientation at all: it may have been saved without its header." if lost else ""
        raise InputError(
            f"{one.name}: is not on the grid of {other.name} ({difference}).{hint} Register and resample one to the other, and check that "
            "both are of the same examination."
        )

"""Where the units of a model are: vertices of a surface, voxels of a volume, or named rows of a table; and files with a value for each."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.files import write_bytes

__all__ = ["VERTICES", "Space", "SurfaceSpace", "TableSpace", "VolumeSpace", "space_from_arrays"]

Values = NDArray[np.floating]

VERTICES = {"fsaverage3": 642, "fsaverage4": 2562, "fsaverage5": 10242, "fsaverage6": 40962, "fsaverage": 163842, "fsLR32k": 32492}
"""Mesh -> vertices of one hemisphere."""


class Space(Protocol):
    """The places of V units."""

    kind: ClassVar[str]

    @property
    def hemispheres(self) -> tuple[int, ...]:
        """Units of the left and the right hemisphere, in order; of everything, if they are not told apart."""

    def arrays(self) -> dict[str, NDArray]:
        """What ``space_from_arrays`` makes it again from."""

    def names(self) -> list[tuple[str, ...]]:
        """Of each unit, under the headings of ``columns``."""

    columns: ClassVar[tuple[str, ...]]

    def write(
        self, values: Values, folder: Path, stem: str, *, formats: Sequence[str], maps: Sequence[str] = ("response",)
    ) -> dict[str, str]:
        """Writes [V], or [maps, V], in those of the formats (gifti, nifti, cifti) that this kind of place has; kind of file -> its name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceSpace:
    """Vertices of two hemispheres of a mesh."""

    kind: ClassVar[str] = "surface"
    columns: ClassVar[tuple[str, ...]] = ("hemisphere", "vertex")
    mesh: str
    left: NDArray[np.intp]
    right: NDArray[np.intp]

    def __post_init__(self) -> None:
        if self.mesh not in VERTICES:
            raise UserError(f"mesh {self.mesh!r} is not known; known are {', '.join(VERTICES)}.")
        for side in ("left", "right"):
            found = getattr(self, side)
            if len(found) and (found.min() < 0 or found.max() >= VERTICES[self.mesh]):
                raise UserError(f"{side} vertices run to {found.max()}, but {self.mesh} has {VERTICES[self.mesh]:,} in a hemisphere.")

    @property
    def hemispheres(self) -> tuple[int, ...]:
        """Units of the left and the right hemisphere."""
        return len(self.left), len(self.right)

    def arrays(self) -> dict[str, NDArray]:
        """For the bundle and for study folders."""
        return {"mesh": _text(self.mesh), "left": np.asarray(self.left, np.int64), "right": np.asarray(self.right, np.int64)}

    def names(self) -> list[tuple[str, ...]]:
        """Hemisphere and vertex of each unit."""
        return [(side, str(vertex)) for side in ("left", "right") for vertex in getattr(self, side)]

    def fill(self, values: Values) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[..., V] as whole hemispheres [..., vertices], NaN where there is no unit."""
        whole = []
        for side, part in zip(("left", "right"), np.split(values, [len(self.left)], axis=-1), strict=True):
            filled = np.full((*values.shape[:-1], VERTICES[self.mesh]), np.nan, dtype=np.float32)
            filled[..., getattr(self, side)] = part
            whole.append(filled)
        return whole[0], whole[1]

    def write(
        self, values: Values, folder: Path, stem: str, *, formats: Sequence[str], maps: Sequence[str] = ("response",)
    ) -> dict[str, str]:
        """GIFTI: one .func.gii for each hemisphere; CIFTI: one .dscalar.nii."""
        from nibabel import cifti2, gifti

        values = np.atleast_2d(values).astype(np.float32)
        files: dict[str, str] = {}
        if "gifti" in formats:
            for side, whole, structure in zip(("left", "right"), self.fill(values), ("CORTEX_LEFT", "CORTEX_RIGHT"), strict=True):
                arrays = [
                    gifti.GiftiDataArray(row, intent="NIFTI_INTENT_NONE", datatype="NIFTI_TYPE_FLOAT32", meta={"Name": name})
                    for name, row in zip(maps, whole, strict=True)
                ]
                meta = gifti.GiftiMetaData(
                    {"AnatomicalStructurePrimary": {"CORTEX_LEFT": "CortexLeft", "CORTEX_RIGHT": "CortexRight"}[structure]}
                )
                files[side] = f"{stem}_{side}.func.gii"
                write_bytes(folder / files[side], gifti.GiftiImage(darrays=arrays, meta=meta).to_bytes())
        if "cifti" in formats:
            axes = [
                cifti2.BrainModelAxis.from_surface(getattr(self, side), VERTICES[self.mesh], name=f"CIFTI_STRUCTURE_{structure}")
                for side, structure in (("left", "CORTEX_LEFT"), ("right", "CORTEX_RIGHT"))
                if len(getattr(self, side))
            ]
            files["cifti"] = _write_cifti(values, sum(axes[1:], axes[0]), maps, folder, stem)
        return files


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeSpace:
    """Voxels of a mask, in C order."""

    kind: ClassVar[str] = "volume"
    columns: ClassVar[tuple[str, ...]] = ("i", "j", "k")
    mask: NDArray[np.bool_]
    """[X, Y, Z]"""
    affine: NDArray[np.float64]
    """Voxel indices to millimetres."""

    @property
    def hemispheres(self) -> tuple[int, ...]:
        """All voxels as one."""
        return (int(self.mask.sum()),)

    def arrays(self) -> dict[str, NDArray]:
        """For the bundle and for study folders."""
        return {"mask": self.mask.astype(np.uint8), "affine": np.asarray(self.affine, np.float64)}

    def names(self) -> list[tuple[str, ...]]:
        """Indices of each voxel."""
        return [tuple(map(str, index)) for index in np.argwhere(self.mask)]

    def fill(self, values: Values) -> NDArray[np.float32]:
        """[..., V] as volumes [..., X, Y, Z], NaN outside the mask."""
        whole = np.full((*values.shape[:-1], *self.mask.shape), np.nan, dtype=np.float32)
        whole[..., self.mask] = values
        return whole

    def write(
        self, values: Values, folder: Path, stem: str, *, formats: Sequence[str], maps: Sequence[str] = ("response",)
    ) -> dict[str, str]:
        """NIfTI: one .nii.gz with the mask's affine, a map after another along the fourth axis; CIFTI: one .dscalar.nii."""
        import nibabel as nib
        from nibabel import cifti2

        values = np.atleast_2d(values).astype(np.float32)
        files: dict[str, str] = {}
        if "nifti" in formats:
            whole = np.moveaxis(self.fill(values), 0, -1)
            image = nib.Nifti1Image(whole[..., 0] if len(values) == 1 else whole, self.affine)
            files["nifti"] = f"{stem}_nifti.nii.gz"
            write_bytes(folder / files["nifti"], gzip.compress(image.to_bytes(), mtime=0))
        if "cifti" in formats:
            axis = cifti2.BrainModelAxis.from_mask(self.mask, affine=self.affine, name="CIFTI_STRUCTURE_OTHER")
            files["cifti"] = _write_cifti(values, axis, maps, folder, stem)
        return files


@dataclass(frozen=True, kw_only=True, eq=False)
class TableSpace:
    """Units that have names and no place, such as the means of regions."""

    kind: ClassVar[str] = "table"
    columns: ClassVar[tuple[str, ...]] = ("unit",)
    units: tuple[str, ...]

    @property
    def hemispheres(self) -> tuple[int, ...]:
        """All units as one."""
        return (len(self.units),)

    def arrays(self) -> dict[str, NDArray]:
        """For the bundle and for study folders."""
        return {"units": _text("\n".join(self.units))}

    def names(self) -> list[tuple[str, ...]]:
        """As given."""
        return [(name,) for name in self.units]

    def write(
        self, values: Values, folder: Path, stem: str, *, formats: Sequence[str], maps: Sequence[str] = ("response",)
    ) -> dict[str, str]:
        """None of the formats has such units."""
        return {}


def space_from_arrays(arrays: Mapping[str, Any], *, source: Path | str) -> SurfaceSpace | VolumeSpace | TableSpace:
    """The opposite of ``Space.arrays``.

    Raises:
        UserError: if the arrays describe none of the three; names ``source``.
    """
    if {"mesh", "left", "right"} <= arrays.keys():
        return SurfaceSpace(mesh=_words(arrays["mesh"]), left=np.asarray(arrays["left"]), right=np.asarray(arrays["right"]))
    if {"mask", "affine"} <= arrays.keys():
        return VolumeSpace(mask=np.asarray(arrays["mask"]) > 0, affine=np.asarray(arrays["affine"], dtype=np.float64))
    if "units" in arrays:
        return TableSpace(units=tuple(_words(arrays["units"]).splitlines()))
    raise UserError(
        f"{source}: does not say where the units are: mesh, left and right; or mask and affine; or units. It has {sorted(arrays)}."
    )


def _text(words: str) -> NDArray[np.uint8]:
    """Text as an array, which safetensors keeps."""
    return np.frombuffer(words.encode(), dtype=np.uint8).copy()


def _words(array: Any) -> str:
    return np.asarray(array, dtype=np.uint8).tobytes().decode()


def _write_cifti(values: NDArray[np.float32], axis: Any, maps: Sequence[str], folder: Path, stem: str) -> str:
    from nibabel import cifti2

    name = f"{stem}_cifti.dscalar.nii"
    image = cifti2.Cifti2Image(values, header=(cifti2.ScalarAxis(list(maps)), axis))
    image.update_headers()
    write_bytes(folder / name, image.to_bytes())
    return name

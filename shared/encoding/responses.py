"""Responses too many for memory: read from disk, some voxels at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.arrays import load_npy
from shared.errors import InputError, UserError

__all__ = ["ResponseFile"]

_HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class ResponseFile:
    """A table of responses on disk: .npy, or a data set of an HDF5 file.

    A file is opened for each reading and closed again, so that memory holds nothing but what was asked for.

    Args:
        path: the file.
        key: the name of the data set in an HDF5 file.
        voxels_first: whether the table is [voxels, stimuli]; then a block of voxels lies in one piece, and reading is fastest.

    Raises:
        InputError: on first use, if the file cannot be read or does not hold a table of numbers.
    """

    path: Path
    key: str | None = None
    voxels_first: bool = False

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(stimuli, voxels)."""
        shape = self._table(slice(0, 0), shape_only=True).shape
        return (shape[1], shape[0]) if self.voxels_first else (shape[0], shape[1])

    def read(self, start: int, stop: int) -> NDArray:
        """[n, stop - start], float32 (float64 where the file has it)."""
        block = self._table(slice(start, stop))
        block = block.T if self.voxels_first else block
        return np.ascontiguousarray(block, dtype=np.float64 if block.dtype == np.float64 else np.float32)

    def _table(self, voxels: slice, *, shape_only: bool = False) -> NDArray:
        """The voxels' part of the table, copied; or, of the whole table, an array that has its shape and no content."""
        if not Path(self.path).is_file():
            raise InputError(f"{self.path}: there is no such file. Name the table of responses, .npy or .h5.")
        what, advice = "a table of responses", "Write it again, as .npy or HDF5."
        if Path(self.path).suffix.lower() not in _HDF5:
            return self._part(load_npy(self.path, what=what, advice=advice, lazily=True), voxels, shape_only)
        try:
            import h5py

            with h5py.File(self.path, "r") as file:
                if self.key not in file:
                    raise InputError(f"{self.path}: has no data set {self.key!r}; it has {', '.join(file)}. Name one of them as key.")
                return self._part(file[self.key], voxels, shape_only)
        except ModuleNotFoundError as error:
            raise UserError(f'{self.path}: reading HDF5 needs h5py: pip install "fovea[brain-encoders]"') from error
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read as {what} ({error}). {advice}") from error

    def _part(self, table: NDArray, voxels: slice, shape_only: bool) -> NDArray:
        if table.ndim != 2 or table.dtype.kind not in "fiu":
            raise InputError(
                f"{self.path}: a table of numbers [stimuli, voxels] is needed; found {table.dtype} of shape {tuple(table.shape)}."
            )
        if shape_only:
            return np.broadcast_to(np.float32(0), table.shape)
        return np.array(table[voxels] if self.voxels_first else table[:, voxels])

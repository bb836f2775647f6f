"""Values on a lattice and smooth noise: what the parts of the head phantoms share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Grid", "smooth_noise"]

Floats = NDArray[np.float32]

_BAND = 16384
"""Points looked up together: few enough to stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Values on a regular lattice with axes along x, y and z, looked up between its nodes."""

    values: NDArray[Any]
    """[X, Y, Z, C]; a node's channels have 16 bytes at most."""
    origin: tuple[float, float, float]
    """Place of the first node in mm."""
    step: float
    """mm between nodes."""

    def at(self, points: Floats) -> Floats:
        """points [3, N] in mm -> values [N, C], linear between nodes and constant beyond the last."""
        channels = self.values.shape[3]
        found = np.empty((points.shape[1], channels), np.float32)
        last = np.array(self.values.shape[:3], np.float32)[:, None] - np.float32(1.001)
        origin, scale = np.array(self.origin, np.float32)[:, None], np.float32(1 / self.step)
        rows, strides = self._rows, (self.values.shape[1] * self.values.shape[2], self.values.shape[2], 1)
        for start in range(0, points.shape[1], _BAND):
            place = np.clip((points[:, start : start + _BAND] - origin) * scale, 0, last)
            cell = place.astype(np.intp)
            place -= cell
            index = cell[0] * strides[0] + cell[1] * strides[1] + cell[2]
            ends = [(1 - part, part) for part in place]
            total = found[start : start + _BAND]
            total[:] = 0
            for x, y, z in np.ndindex(2, 2, 2):
                weight = ends[0][x] * ends[1][y] * ends[2][z]
                corner = rows.take(index + (x * strides[0] + y * strides[1] + z), mode="clip").view(self.values.dtype)
                total += corner.reshape(len(index), -1)[:, :channels] * weight[:, None]
        return found

    @cached_property
    def _rows(self) -> NDArray[Any]:
        """The values with each node's channels as one number of 1 to 16 bytes: numpy looks these up ten times faster than rows."""
        size = self.values.dtype.itemsize
        width = next(power for power in (1, 2, 4, 8, 16) if power >= size * self.values.shape[3])
        padded = np.zeros((self.values.size // self.values.shape[3], width // size), self.values.dtype)
        padded[:, : self.values.shape[3]] = self.values.reshape(len(padded), -1)
        return padded.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}[width]).ravel()

    def nodes(self) -> Floats:
        """The places of its nodes in mm, [3, X * Y * Z], the last axis fastest."""
        axes = [low + self.step * np.arange(count, dtype=np.float32) for low, count in zip(self.origin, self.values.shape[:3], strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], smooth: float) -> Floats:
    """Gaussian noise of unit variance whose grain is ``smooth`` voxels wide (at least 1)."""
    coarse = max(1, int(smooth / 2))
    noise = rng.standard_normal([side // coarse + 4 for side in shape], dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, 0.6 * smooth / coarse, mode="wrap")
    noise /= noise.std()
    if coarse > 1:
        noise = ndimage.affine_transform(noise, np.full(3, 1 / coarse), offset=1.0, output_shape=shape, order=1, mode="nearest")
    return noise[tuple(slice(side) for side in shape)]

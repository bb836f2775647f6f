"""From a volume as it was read to a network's input, and from its answer back to the volume's own voxels.

Everything on the way moves the affine along with the values, so the way back is one interpolation, or none where grids differ by whole
voxels only. Axes run to the patient's right, front and head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.errors import InputError
from shared.imaging.volumes import (
    Volume,
    crop,
    foreground_box,
    grid_with_axes,
    grid_with_spacing,
    reorient,
    resample,
    restore_labels,
    restore_probability,
)
from shared.segmentation.config import PreprocessingConfig

__all__ = ["NativePreparation", "Prepare", "Prepared", "foreground"]

AIR = 0.2
"""Of the range between the 0.5th and the 99.5th percentile: what lies below is air around the head (Bouget et al. 2021: of the whole range,
which one bright voxel changes)."""
ZEROED = 0.1
"""If this part of the voxels is exactly 0, the background was taken out."""
MARGIN_MM = 3.0
LIMIT = 6.0
"""Standard deviations at which values are cut: a bright vessel or clip tells nothing more, and upsets a network."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """An input of a network, and the ways from and to the volume's own voxels."""

    image: NDArray[np.float32]
    """[C, X, Y, Z]."""
    spacing_mm: tuple[float, float, float]
    """Of its voxels."""
    restore: Callable[[NDArray[np.float32], Sequence[float]], NDArray[np.float32]]
    """Probabilities [K, X, Y, Z] of the network's voxels, and what holds outside of them -> [K, *the volume's shape]."""
    place: Callable[[Volume], NDArray[Any]]
    """A label map on the volume's voxels -> [X, Y, Z] on the network's."""


class Prepare(Protocol):
    """A way to the network's input."""

    def __call__(self, volume: Volume) -> Prepared:
        """Raises InputError if the volume cannot be used."""


@dataclass(frozen=True)
class NativePreparation:
    """The default way: reoriented, resampled, cropped, normalised; nothing is squeezed into one size."""

    config: PreprocessingConfig

    def __call__(self, volume: Volume) -> Prepared:
        """volume: [X, Y, Z] or [C, X, Y, Z], finite. Raises InputError if a channel is the same everywhere."""
        source = volume.grid
        moved = self._moved(volume if volume.values.ndim == 4 else volume.with_values(volume.values[None]))
        inside = foreground(moved.values)
        if self.config.crop:
            box = foreground_box(moved.with_values(inside), margin_mm=MARGIN_MM)
            moved, inside = crop(moved, box), inside[box]
        image = _normalised(moved.values, inside, self.config.normalisation, name=volume.name)
        frame = moved.with_values(image)

        def restore(probability: NDArray[np.float32], outside: Sequence[float]) -> NDArray[np.float32]:
            return restore_probability(frame.with_values(probability), source, outside=outside).values

        return Prepared(
            image=image, spacing_mm=frame.spacing_mm, restore=restore, place=lambda labels: restore_labels(labels, frame.grid).values
        )

    def _moved(self, volume: Volume) -> Volume:
        if self.config.spacing_mm is None:
            return reorient(volume)
        grid = grid_with_axes(volume.grid)
        if np.allclose(grid.spacing_mm, self.config.spacing_mm, rtol=1e-3):
            return reorient(volume)
        return resample(volume, grid_with_spacing(grid, self.config.spacing_mm), order=1)


def foreground(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What is not background, [X, Y, Z] of [C, X, Y, Z]: what is not 0 in every channel where much is; else the head, without the air
    around it and with everything inside. All voxels if nothing stands out."""
    used = (values != 0).any(axis=0)
    if used.any() and 1 - used.mean() >= ZEROED:
        return used
    low, high = np.percentile(values[0], (0.5, 99.5))
    bright = values[0] > low + AIR * (high - low)
    numbers, count = ndimage.label(bright)
    if not count:
        return np.ones(used.shape, dtype=bool)
    largest = 1 + int(np.bincount(numbers.ravel())[1:].argmax())
    return ndimage.binary_fill_holes(numbers == largest)


def _normalised(values: NDArray[np.float32], inside: NDArray[np.bool_], how: str, *, name: str) -> NDArray[np.float32]:
    result = np.empty(values.shape, np.float32)
    for number, channel in enumerate(values):
        measured = channel[inside] if how == "foreground" else channel
        low, spread = (measured.min(), np.ptp(measured)) if how == "range" else (measured.mean(), measured.std())
        if not spread > 1e-6 * max(abs(float(low)), 1e-6):
            which = f" in channel {number}" if len(values) > 1 else ""
            raise InputError(f"{name}: every voxel is {float(measured.flat[0]):g}{which}. Check that it is the right image.")
        scaled = (channel - low) / spread
        result[number] = scaled if how == "range" else np.clip(scaled, -LIMIT, LIMIT)
        if how == "foreground":
            result[number][~inside & (channel == 0)] = 0
    return result

"""Planes through a volume as radiologists look at them: which slice, how large, how bright, and what is left and right.

A volume of any orientation is first counted in RAS order (an oblique one stays in the planes that it was acquired in, and letters name the
nearest direction). Pictures follow the radiological convention: the patient's right is at the left, the front or the head at the top, and
in sagittal planes the face looks to the left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

from shared.imaging.volumes import Box, Volume, crop, reorient
from shared.metrics.lesions import connected_components

__all__ = ["PLANES", "Plane", "Viewed", "check_labels", "content_box", "grey_window", "ras", "solid", "view"]

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")

LETTERS: dict[Plane, str] = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
"""Left, right, top and bottom of the picture."""

WORLD_LETTERS: dict[Plane, tuple[str, str]] = {"axial": ("S", "I"), "coronal": ("A", "P"), "sagittal": ("R", "L")}
"""On which side of the origin a slice is: positive, negative."""

_AXIS: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_MARGIN_MM = 4.0
_SHOWN_PART = 0.1
"""Of the range of grey values: voxels above this are something, below it may be noise in air."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Viewed:
    """A volume in RAS order, cropped to what is in it, with its labels."""

    image: Volume
    """float32 [X, Y, Z], finite."""
    labels: NDArray[np.integer[Any]]
    """[X, Y, Z]; zeros if there are none."""
    window: tuple[float, float]
    """Values shown as black and as white."""

    def size_mm(self, plane: Plane) -> tuple[float, float]:
        """Height and width of a picture of this plane."""
        columns, rows = (axis for axis in range(3) if axis != _AXIS[plane])
        sizes = np.array(self.image.shape) * self.image.spacing_mm
        return float(sizes[rows]), float(sizes[columns])

    def count(self, plane: Plane) -> int:
        """How many such planes there are."""
        return self.image.shape[_AXIS[plane]]

    def spacing_mm(self, plane: Plane) -> float:
        """From one such plane to the next."""
        return self.image.spacing_mm[_AXIS[plane]]

    def position(self, plane: Plane, index: int) -> str:
        """Where the middle of this slice is in the patient, such as "S 34 mm"."""
        middle = (np.array(self.image.shape) - 1) / 2
        middle[_AXIS[plane]] = index
        place = float(self.image.grid.to_world(middle)[_AXIS[plane]])
        return f"{WORLD_LETTERS[plane][0 if place >= 0 else 1]} {abs(place):.0f} mm"

    def grey(self, plane: Plane, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The slice as a picture, uint8 [H, W, 3], of this size in rows and columns."""
        low, high = self.window
        values = _resized(_cut(self.image.values, plane, index), size, Image.Resampling.BICUBIC)
        grey = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(size)
        return np.repeat(np.rint(255 * grey).astype(np.uint8)[..., None], 3, axis=-1)

    def mask(self, mask: NDArray[np.bool_], plane: Plane, index: int, size: tuple[int, int]) -> NDArray[np.bool_]:
        """A slice of a mask [X, Y, Z] at this size; its border is interpolated, and no part of it gets lost."""
        part = _cut(mask, plane, index).astype(np.float32)
        smooth = _resized(part, size, Image.Resampling.BILINEAR) >= 0.5
        blocks, count = ndimage.label(_resized(part, size, Image.Resampling.NEAREST) > 0.5, np.ones((3, 3)))
        kept = np.zeros(count + 1, dtype=bool)
        kept[np.unique(blocks[smooth])] = True
        return smooth | ~kept[blocks] & (blocks > 0)

    def values(self, values: NDArray[np.floating[Any]], plane: Plane, index: int, size: tuple[int, int]) -> NDArray[np.float32]:
        """A slice of a map [X, Y, Z] at this size, interpolated linearly."""
        return _resized(_cut(values, plane, index), size, Image.Resampling.BILINEAR)

    def best_slices(self) -> dict[Plane, int]:
        """For each plane, the slice in which the largest lesion is largest; without labels, the middle of what is in the image."""
        numbers, sizes = connected_components(self.labels > 0, neighbours=26)
        shown: NDArray[np.bool_] = np.asarray(numbers == 1) if len(sizes) else solid(self.image.values, self.window)
        if not shown.any():
            return {plane: self.count(plane) // 2 for plane in PLANES}
        if not len(sizes):
            places = [np.flatnonzero(part).mean() for part in (shown.any(axis=(1, 2)), shown.any(axis=(0, 2)), shown.any(axis=(0, 1)))]
            return {plane: round(float(places[_AXIS[plane]])) for plane in PLANES}
        best: dict[Plane, int] = {}
        for plane in PLANES:
            areas = np.moveaxis(shown, _AXIS[plane], 0).reshape(self.count(plane), -1).sum(axis=1)
            largest = np.flatnonzero(areas == areas.max())
            best[plane] = int(largest[len(largest) // 2])
        return best


def view(volume: Volume, labels: ArrayLike | None = None, *, channel: int = 0, cropped: bool = True) -> Viewed:
    """What pictures of a volume are cut from.

    Args:
        volume: [X, Y, Z] or [C, X, Y, Z], any orientation; voxels that are not finite are shown black.
        labels: whole numbers or bool [X, Y, Z], 0 for nothing.
        channel: which one is shown.
        cropped: leave out what lies around the patient.

    Raises:
        ValueError: if there is no such channel, or the labels have another shape or are not whole numbers.
    """
    channels = volume.values.reshape(-1, *volume.shape)
    if not 0 <= channel < len(channels):
        raise ValueError(f"channel is {channel}: {volume.name} has {len(channels)}, counted from 0")
    image = reorient(replace(volume, values=np.asarray(channels[channel], dtype=np.float32), notes=()))
    drawn = np.zeros(image.shape, np.uint8) if labels is None else ras(volume, check_labels(volume, labels))
    window = grey_window(image.values)
    finite = image.with_values(np.nan_to_num(image.values, nan=window[0], posinf=window[1], neginf=window[0]))
    if cropped:
        box = content_box(finite, drawn, window)
        finite, drawn = crop(finite, box), drawn[box]
    return Viewed(image=finite, labels=drawn, window=window)


def ras(volume: Volume, values: NDArray[Any]) -> NDArray[Any]:
    """An array [X, Y, Z] on the volume's grid, counted in RAS order."""
    return reorient(replace(volume, values=values)).values


def check_labels(volume: Volume, labels: ArrayLike) -> NDArray[Any]:
    """Labels [X, Y, Z] as uint8, or as they are; ValueError unless whole numbers on the volume's voxels."""
    array = np.asarray(labels)
    if array.shape != volume.shape or array.dtype.kind not in "bui":
        raise ValueError(f"labels are {array.dtype} {list(array.shape)}: expected whole numbers {list(volume.shape)}, as {volume.name}")
    return array.astype(np.uint8) if array.dtype == bool else array


def grey_window(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Values to show as black and as white: the 1st and 99.5th percentile of what is not background.

    Background is the one value that fills much of a skull-stripped volume, and what is about as dark as air.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    sample = finite[:: max(1, finite.size // 2_000_000)]
    kinds, counts = np.unique(sample, return_counts=True)
    if counts.max() > 0.02 * sample.size and len(kinds) > 2:
        constant = kinds[counts.argmax()]
        # Only if it is at the end of the range, or fills what was cut away, is the commonest value no tissue.
        if constant in (kinds[0], 0) or counts.max() > 0.2 * sample.size:
            sample = sample[sample != constant]
    low, high = np.percentile(sample, [1, 99.8])
    tissue = sample[sample > low + _SHOWN_PART * (high - low)]
    return float(low), float(np.percentile(tissue, 99.5)) if tissue.size else float(high)


def content_box(image: Volume, labels: NDArray[Any], window: tuple[float, float]) -> Box:
    """The part of a volume in RAS order worth showing: where more than specks are brighter than air, or labelled; with a margin."""
    patient = solid(image.values, window)
    box = []
    for axis, (size, spacing) in enumerate(zip(image.shape, image.spacing_mm, strict=True)):
        share = np.moveaxis(patient, axis, 0).reshape(size, -1).mean(axis=1)
        labelled = np.moveaxis(labels > 0, axis, 0).reshape(size, -1).any(axis=1)
        used = np.flatnonzero((share > 0.05 * share.max()) & (share > 0) | labelled)
        margin = int(np.ceil(_MARGIN_MM / spacing))
        box.append(slice(max(int(used[0]) - margin, 0), min(int(used[-1]) + 1 + margin, size)) if used.size else slice(0, size))
    return box[0], box[1], box[2]


def solid(values: NDArray[np.floating[Any]], window: tuple[float, float]) -> NDArray[np.bool_]:
    """Which voxels are patient and not air. Where a constant surrounds a skull-stripped brain, only that constant is outside."""
    border = np.concatenate([values[0].ravel(), values[-1].ravel(), values[:, 0].ravel(), values[:, -1].ravel()])
    low, high = window
    dark = low + _SHOWN_PART * (high - low)
    kinds, counts = np.unique(border, return_counts=True)
    if counts.max() > 0.8 * border.size:
        return np.asarray(values != kinds[counts.argmax()])
    return np.asarray(values > dark)


def _cut(array: NDArray[Any], plane: Plane, index: int) -> NDArray[Any]:
    """The slice as it is looked at, [rows, columns]: both remaining axes run backwards on the screen."""
    return np.take(array, index, axis=_AXIS[plane]).T[::-1, ::-1]


def _resized(part: NDArray[Any], size: tuple[int, int], how: Image.Resampling) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(part, dtype=np.float32)).resize((size[1], size[0]), how))

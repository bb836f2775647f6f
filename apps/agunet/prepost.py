"""The published way of a volume to the network's input, whole and at one size, and of its answer back to the volume's voxels.

As the released weights need it (Bouget et al., Frontiers in Radiology 2021, and its code); the libraries are those of the released code,
so that the numbers are its numbers. The app's own recipe, patches at native resolution, loses less on the way.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError, UserError
from shared.imaging.volumes.grid import Grid

__all__ = [
    "Placement",
    "Preparation",
    "Prepared",
    "crop_box",
    "normalise",
    "prepare",
    "read_preparation",
    "resample",
    "resize",
    "resize_labels",
    "restore_labels",
    "restore_probability",
    "threshold",
]

Box = tuple[slice, slice, slice]

FOREGROUND = 0.2
"""Of the normalised values: what lies below is air around the head."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a released model says in the pre_processing.ini beside it; the defaults are those of the published configuration.

    Raises:
        ValueError: if a spacing or size is not positive, or the percentiles are not two rising numbers from 0 to 100.
    """

    spacing_mm: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    """None: isotropic, at the smallest spacing of the volume."""
    percentiles: tuple[float, float] = (0.0, 100.0)
    """Values beyond these are clipped."""
    normalisation: Literal["range", "zero_mean"] = "range"
    """To 0 to 1, or to zero mean and unit deviation over all voxels."""
    crop: bool = True
    """To the box around the head."""
    size: tuple[int, ...] = (128, 128, 144)
    """What the network takes; with two numbers the third keeps the proportion of the last two axes (axial slabs)."""
    antialias: bool = True
    """Smooth before making smaller, as scikit-image does since 0.15; the released weights may have been trained with an older one."""
    thresholds: tuple[float, ...] = (0.5,)
    """One for each class with the background, or one for all."""

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must rise from at least 0 to at most 100, not {self.percentiles}")
        if len(self.size) not in (2, 3) or min(*self.size, *(self.spacing_mm or (1,))) <= 0:
            raise ValueError(f"size must be two or three, and spacing_mm three positive numbers, not {self.size} and {self.spacing_mm}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Where an input of the network lies in its volume."""

    source: Grid
    """Of the volume."""
    resampled: Grid
    """At the model's spacing, its axes those of the patient."""
    box: Box
    """What of the resampled volume the network sees."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """An input of the network."""

    image: NDArray[np.float32]
    """[X, Y, Z], of the preparation's size."""
    placement: Placement


def prepare(values: NDArray[Any], affine: NDArray[Any], preparation: Preparation, *, name: str = "the volume") -> Prepared:
    """Resampled, normalised, cropped to the head, resized.

    Args:
        values: [X, Y, Z], of any unit.
        affine: [4, 4], voxel index to millimetres in RAS+.
        name: what messages call it.

    Raises:
        InputError: if a value is not finite, or all are the same.
    """
    if values.ndim != 3:
        raise ValueError(f"a volume has the shape [X, Y, Z], not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise InputError(f"{name}: holds values that are not finite (NaN or infinite). Export it again, or replace them by the background.")
    resampled, grid = resample(values, affine, preparation.spacing_mm)
    if resampled.min() == resampled.max():
        raise InputError(f"{name}: every voxel is {float(resampled.min()):g}. Check that it is the right image.")
    image = normalise(resampled, percentiles=preparation.percentiles, normalisation=preparation.normalisation)
    if not np.isfinite(image).all():
        low, high = preparation.percentiles
        raise InputError(f"{name}: all voxels between its percentiles {low:g} and {high:g} are the same. Check that it is the right image.")
    box = crop_box(image) if preparation.crop else _all_of(grid.shape)
    source = Grid(shape=values.shape, affine=np.asarray(affine, dtype=np.float64))
    resized = resize(image[box], preparation.size, antialias=preparation.antialias)
    return Prepared(image=resized, placement=Placement(source=source, resampled=grid, box=box))


def resample(values: NDArray[Any], affine: NDArray[Any], spacing_mm: tuple[float, float, float] | None) -> tuple[NDArray[np.float32], Grid]:
    """Linearly, to axes that run along the patient's (RAS) at this spacing (None: the smallest there is); 0 outside."""
    import nibabel
    from nibabel.processing import resample_to_output

    image = nibabel.Nifti1Image(values.astype(np.float32), np.asarray(affine, dtype=np.float64))
    spacing = (float(min(image.header.get_zooms())),) * 3 if spacing_mm is None else spacing_mm
    moved = resample_to_output(image, spacing, order=1)
    return np.asarray(moved.dataobj, dtype=np.float32), Grid(shape=moved.shape, affine=moved.affine)


def normalise(values: NDArray[Any], *, percentiles: tuple[float, float], normalisation: Literal["range", "zero_mean"]) -> NDArray[Any]:
    """Clipped to the percentiles, then scaled; over all voxels, the air around the head too. Not finite where all are the same."""
    if percentiles[1] - percentiles[0] != 100:
        values = np.clip(values, *np.percentile(values, percentiles))
    with np.errstate(divide="ignore", invalid="ignore"):
        if normalisation == "zero_mean":
            return (values - values.mean()) / values.std()
        return (values - values.min()) / (values.max() - values.min())


def crop_box(normalised: NDArray[Any]) -> Box:
    """Around everything that is bright enough, specks in the air too; all of it if nothing is."""
    from scipy.ndimage import binary_fill_holes, find_objects

    (box,) = find_objects(binary_fill_holes(normalised >= FOREGROUND).astype(np.uint8)) or [_all_of(normalised.shape)]
    return box


def resize(values: NDArray[Any], size: Sequence[int], *, antialias: bool = True) -> NDArray[np.float32]:
    """Linearly, [X, Y, Z] to ``size``, which has three numbers, or two: the third is then the last axis in proportion to the second."""
    from skimage.transform import resize as resize_image

    x, y, *z = (int(each) for each in size)
    shape = (x, y, *z) if z else (x, y, int(values.shape[2] * y / values.shape[1]))
    return resize_image(values, shape, order=1, anti_aliasing=antialias).astype(np.float32)


def resize_labels(labels: NDArray[Any], size: Sequence[int]) -> NDArray[np.uint8]:
    """A label map [X, Y, Z] at three sizes, by nearest voxels: what training compares a resized image's segmentation with."""
    from skimage.transform import resize as resize_image

    return resize_image(labels, tuple(size), order=0, preserve_range=True, anti_aliasing=False).astype(np.uint8)


def restore_probability(probability: NDArray[Any], placement: Placement, *, outside: float | Sequence[float] = 0.0) -> NDArray[np.float32]:
    """The network's probabilities at the voxels of the volume ("resample_first"): cut them afterwards.

    Args:
        probability: [K, X, Y, Z], of the network's size.
        placement: from ``prepare``.
        outside: where the network has not looked, one number or one for each class. The released code has 0, for the background too;
            (1, 0) says what is meant.

    Returns:
        [K, X, Y, Z], of the volume's size.
    """
    fills = np.broadcast_to(np.asarray(outside, dtype=np.float32), len(probability))
    return np.stack([_restored(each.astype(np.float32), placement, 1, float(fill)) for each, fill in zip(probability, fills, strict=True)])


def restore_labels(labels: NDArray[Any], placement: Placement) -> NDArray[np.uint8]:
    """Labels that were cut from the network's probabilities, [X, Y, Z], at the voxels of the volume ("resample_second"): by nearest voxels.

    Probabilities that are restored first have smoother borders.
    """
    return _restored(labels.astype(np.uint8), placement, 0, 0)


def threshold(probability: NDArray[Any], thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """[K, X, Y, Z] to masks of the same shape, each class by its own threshold; if their numbers differ, all by the first."""
    each = thresholds if len(thresholds) == len(probability) else [thresholds[0]] * len(probability)
    return probability >= np.asarray(each, dtype=probability.dtype).reshape(-1, 1, 1, 1)


def read_preparation(path: Path | str) -> Preparation:
    """Reads the pre_processing.ini of a released model; what it does not say is as the released code has it. Sections do not matter.

    Raises:
        UserError: if the file is missing or no such file, or a value cannot be understood.
    """
    path = Path(path)
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise UserError(
            f"{path}: is no pre_processing.ini ({' '.join(str(error).split())}). It lies beside each released model."
        ) from error
    found = {key: value for section in parser.sections() for key, value in parser.items(section)}

    def numbers(key: str, counts: tuple[int, ...]) -> tuple[float, ...] | None:
        if not found.get(key, "").strip():
            return None
        values = tuple(float(each) for each in re.findall(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", found[key]))
        if counts and len(values) not in counts:
            raise UserError(f"{path}: {key} is {found[key]!r}, expected {' or '.join(map(str, counts))} numbers.")
        return values

    settings: dict[str, Any] = {
        "spacing_mm": numbers("output_spacing", (3,)),
        "percentiles": numbers("intensity_clipping_range", (2,)),
        "size": numbers("new_axial_size", (2, 3)),
        "thresholds": numbers("optimal_thresholds", ()),
    }
    try:
        return Preparation(
            crop=found.get("background_cropping", "").strip().lower() in ("true", "1", "yes", "on"),
            normalisation="zero_mean" if found.get("normalization_method", "").strip().lower() == "zeromean" else "range",
            **{key: value for key, value in settings.items() if value or key == "spacing_mm"},
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from error


def _all_of(shape: tuple[int, ...]) -> Box:
    x, y, z = (slice(0, size) for size in shape)
    return x, y, z


def _restored(values: NDArray[Any], placement: Placement, order: Literal[0, 1], outside: float) -> NDArray[Any]:
    import nibabel
    from nibabel.processing import resample_from_to
    from scipy.ndimage import zoom

    whole = np.full(placement.resampled.shape, outside, values.dtype)
    target = whole[placement.box].shape
    whole[placement.box] = zoom(values, [there / here for there, here in zip(target, values.shape, strict=True)], order=order)
    image = nibabel.Nifti1Image(whole, placement.resampled.affine)
    back = resample_from_to(image, (placement.source.shape, placement.source.affine), order=order, cval=outside)
    return np.asarray(back.dataobj)

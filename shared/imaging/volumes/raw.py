"""What every reader hands over: voxels as stored, a scale, and where they lie; and how they become an image or labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.volumes.volume import Source, Volume

__all__ = ["Raw", "to_image", "to_labels"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """Value = stored * slope + intercept."""

    values: NDArray[Any]
    """[X, Y, Z] or [C, X, Y, Z] of any integer or real type, in any memory order; may be read-only."""
    source: Source
    slope: float = 1.0
    intercept: float = 0.0
    notes: tuple[str, ...] = ()


def to_image(raw: Raw, *, name: str) -> Volume:
    """The values as float32.

    Raises:
        InputError: if some are not finite, or not as float32; says how many, and where the first is.
    """
    stored = raw.values
    if raw.slope != 1 or raw.intercept != 0:
        wide = np.dtype(np.float64 if stored.dtype.itemsize > 2 else np.float32)  # float32 holds every 16-bit integer
        with np.errstate(all="ignore"):
            stored = stored.astype(wide) * wide.type(raw.slope) + wide.type(raw.intercept)
    with np.errstate(all="ignore"):
        values = np.array(stored, dtype=np.float32, order="C")
    if stored.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{name}: has {_not_numbers(values)} Replace them, for example by 0, and save it again.")
    return Volume(values=values, affine=raw.source.grid.affine, name=name, source=raw.source, notes=raw.notes)


def to_labels(raw: Raw, *, name: str, classes: Sequence[int] | None, labelled: bool) -> Volume:
    """The values as integers, of the file's own type where that holds them; the rules are those of ``read_labels``."""
    if raw.values.ndim != 3:
        raise InputError(
            f"{name}: has {raw.values.shape[0]} channels, and a label map has one number for each voxel. Merge them into one map."
        )
    stored = raw.values
    if raw.slope != 1 or raw.intercept != 0:
        stored = stored.astype(np.float64) * raw.slope + raw.intercept
    if stored.dtype.kind == "f":
        stored = _whole(stored, name)
    values = np.array(stored, dtype=stored.dtype.newbyteorder("="), order="C")
    present = np.unique(values)
    if classes is not None and (strange := np.setdiff1d(present, np.asarray(classes))).size:
        first = _index(values == strange[0])
        raise InputError(
            f"{name}: has the labels {_listed(present)}, and {_listed(np.asarray(classes))} were expected; the first {strange[0]} is at "
            f"voxel {first}. Map its labels to those, or choose the labels that belong to this data set."
        )
    if labelled and not present.any():
        raise InputError(f"{name}: is empty: no voxel has a label. Leave the case out, or label it.")
    return Volume(values=values, affine=raw.source.grid.affine, name=name, source=raw.source, notes=raw.notes)


def _whole(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Real numbers that are whole, in the smallest integer type."""
    if not np.isfinite(values).all():
        raise InputError(f"{name}: has {_not_numbers(values)} A label map has one whole number for each voxel; save it again.")
    broken = values != np.rint(values)
    if broken.any():
        first = _index(broken)
        raise InputError(
            f"{name}: is no label map: {np.count_nonzero(broken):,} voxels are not whole numbers, the first, {values[first]:g}, at voxel "
            f"{first}. It may be an image, a probability map, or labels that were resampled with interpolation."
        )
    lowest, highest = float(values.min(initial=0)), float(values.max(initial=0))
    fitting = (kind for kind in (np.uint8, np.uint16, np.int16, np.int32) if np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max)
    dtype = next(fitting, None)
    if dtype is None:
        raise InputError(f"{name}: has values from {lowest:g} to {highest:g}, which are no class numbers. Check that it is the label map.")
    return values.astype(dtype)


def _not_numbers(values: NDArray[Any]) -> str:
    bad = ~np.isfinite(values)
    first = _index(bad)
    return (
        f"{np.count_nonzero(bad):,} of {values.size:,} voxels that are not finite numbers (NaN, infinite, or beyond what 32 bits hold), "
        f"the first at voxel {first}."
    )


def _index(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Of the first True in the order of the axes."""
    return tuple(int(position) for position in np.unravel_index(int(np.argmax(mask)), mask.shape))


def _listed(values: NDArray[Any]) -> str:
    some = [str(value) for value in values[:10].tolist()]
    return ", ".join(some) + (f", ... ({len(values)} in all)" if len(values) > 10 else "")

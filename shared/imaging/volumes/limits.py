"""How large a volume may be, and the checks before any memory is spent on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from shared.errors import InputError

__all__ = ["VolumeLimits", "check_shape", "read_exactly"]


@dataclass(frozen=True, kw_only=True)
class VolumeLimits:
    """What is refused before it is read or decoded. The defaults hold a 512 x 512 x 2000 CT, or 4 sequences of 240 x 240 x 155."""

    bytes: int = 4 * 2**30
    """Largest file; for a DICOM series or a zip archive, all files together, packed and unpacked."""
    voxels: int = 600_000_000
    """Most voxels, of all channels together; each takes four bytes once read."""
    files: int = 20_000
    """Most files of a folder or a zip archive."""


def check_shape(shape: Sequence[int], *, name: str, limits: VolumeLimits, channels: int = 1) -> None:
    """Raises InputError unless there are at least two voxels along each of three axes, and not more than ``limits.voxels``."""
    sizes = " x ".join(f"{size:,}" for size in shape)
    if len(shape) < 3 or 1 in shape:
        raise InputError(
            f"{name}: is a 2-D image ({sizes} voxels), and a volume was expected, with at least two voxels along each of three axes. "
            "Give the whole series."
        )
    if len(shape) > 3 or min(shape) < 1 or channels < 1:
        raise InputError(f"{name}: claims {sizes} voxels, which is no volume. It may be damaged; export it again.")
    if math.prod(shape) * channels > limits.voxels:
        several = f" and {channels:,} channels" if channels > 1 else ""
        raise InputError(
            f"{name}: claims {sizes} voxels{several}, but at most {limits.voxels / 1e6:,g} million voxels are read. "
            "Crop it, resample it, or raise the limit on voxels."
        )


def read_exactly(stream: BinaryIO, count: int, *, name: str, what: str) -> bytes:
    """The next ``count`` bytes; raises InputError if there are fewer."""
    content = stream.read(count)
    if len(content) < count:
        raise InputError(f"{name}: is cut short: {what} has {len(content):,} of {count:,} bytes. Copy or export it again.")
    return content

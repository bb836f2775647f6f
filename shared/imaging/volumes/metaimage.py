"""MetaImage files (.mha, .mhd), as ITK writes them.

Not through ITK, which ends the whole process on some damaged headers and opens whatever file a header names; it writes them (writing.py),
and the tests compare every reading with it. Format: itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.volumes.formats import printable
from shared.imaging.volumes.grid import LPS_TO_RAS, Grid, affine_fault
from shared.imaging.volumes.limits import VolumeLimits, check_shape
from shared.imaging.volumes.raw import Raw
from shared.imaging.volumes.volume import Source
from shared.imaging.volumes.voxel_data import Packing, beside, voxel_data

__all__ = ["read_metaimage"]

_HEADER_BYTES = 1 << 16
_AXES = 10
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_FIELD = re.compile(rb"^[ \t]*([A-Za-z]+)[ \t]*=[ \t]*(.*?)[ \t\r]*$")


def read_metaimage(file: BinaryIO, *, path: Path | None, name: str, limits: VolumeLimits) -> Raw:
    """The voxels as they are stored, and where they lie; ``path`` is where the file is, for the voxels of an .mhd beside it.

    Raises:
        InputError: if it is damaged, cut short, too large, not 3-D, or of a kind that is not read.
    """
    with decoding(name, "a MetaImage file"):
        fields, start = _fields(file, name)
        shape, channels, interleaved = _shape(fields, name, limits)
        dtype = np.dtype(_choice(fields, "ElementType", _TYPES, name))
        if _flag(fields, "BinaryDataByteOrderMSB") or _flag(fields, "ElementByteOrderMSB"):
            dtype = dtype.newbyteorder(">")
        if not _flag(fields, "BinaryData", default=True):
            raise InputError(f"{name}: its voxels are written as text. Save it again as a binary .mha file.")
        count = math.prod(shape) * channels
        content = _content(file, start, fields, count * dtype.itemsize, path=path, name=name, limits=limits)
        stored = np.frombuffer(content, dtype)
        if interleaved:
            values = stored.reshape(channels, *shape, order="F")
        else:
            values = np.moveaxis(stored.reshape(*shape, channels, order="F"), -1, 0)
        source = Source(suffix=".mha", grid=Grid(shape=shape, affine=_affine(fields, name)))
        slope = _numbers(fields, "ElementToIntensityFunctionSlope", [1.0], name)[0]
        intercept = _numbers(fields, "ElementToIntensityFunctionOffset", [0.0], name)[0]
    return Raw(values=values if channels > 1 else values[0], slope=slope, intercept=intercept, source=source)


def _fields(file: BinaryIO, name: str) -> tuple[dict[str, str], int]:
    """The header, and the byte behind it."""
    head = file.read(_HEADER_BYTES)
    fields: dict[str, str] = {}
    position = 0
    while position < len(head) and "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        end = len(head) if end < 0 else end
        match = _FIELD.match(head[position:end])
        if match is not None:
            fields.setdefault(match[1].decode("ascii"), match[2].decode("utf-8", errors="replace"))
        position = end + 1
    if "ElementDataFile" not in fields:
        raise InputError(f"{name}: its header ends without saying where the voxels are (ElementDataFile). It is cut short; copy it again.")
    return fields, position


def _shape(fields: dict[str, str], name: str, limits: VolumeLimits) -> tuple[tuple[int, int, int], int, bool]:
    """Shape, channels, and whether those are the fastest axis rather than the slowest."""
    sizes = [int(size) for size in _numbers(fields, "DimSize", None, name)]
    axes = int(_numbers(fields, "NDims", None, name)[0])
    if len(sizes) != axes or axes > _AXES:
        raise InputError(
            f"{name}: says that it has {axes} axes, and gives the sizes of {len(sizes)}; 3 or 4 are read. It is damaged; export it again."
        )
    elements = int(_numbers(fields, "ElementNumberOfChannels", [1], name)[0])
    further = [size for size in [elements, *sizes[3:]] if size != 1]
    if len(further) > 1:
        raise InputError(f"{name}: has several axes of channels or time ({further}); one is read. Split it.")
    check_shape(sizes[:3], name=name, limits=limits, channels=further[0] if further else 1)
    return (sizes[0], sizes[1], sizes[2]), further[0] if further else 1, elements != 1


def _affine(fields: dict[str, str], name: str) -> NDArray[np.float64]:
    axes = int(_numbers(fields, "NDims", None, name)[0])
    spacing = _numbers(fields, "ElementSpacing", _numbers(fields, "ElementSize", [1.0] * axes, name), name)
    if len(spacing) != axes or min(spacing[:3]) <= 0:
        raise InputError(
            f"{name}: its voxel spacing is {printable(fields.get('ElementSpacing'))}, and {axes} positive numbers were expected."
        )
    turned = _first(fields, ("TransformMatrix", "Rotation", "Orientation"), np.eye(axes).ravel().tolist(), axes * axes, name)
    origin = _first(fields, ("Offset", "Origin", "Position"), [0.0] * axes, axes, name)
    directions = np.array(turned).reshape(axes, axes)  # each row the direction of one axis
    if axes > 3 and (directions[:3, 3:].any() or directions[3:, :3].any()):
        raise InputError(f"{name}: its fourth axis is mixed with space. Convert it to a 3-D file.")
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3].T * spacing[:3]
    affine[:3, 3] = origin[:3]
    if fault := affine_fault(affine):
        raise InputError(f"{name}: its orientation {fault}. Export it again.")
    return LPS_TO_RAS @ affine


def _content(
    file: BinaryIO, start: int, fields: dict[str, str], length: int, *, path: Path | None, name: str, limits: VolumeLimits
) -> bytes:
    stated = fields["ElementDataFile"]
    packing: Packing = "zlib" if _flag(fields, "CompressedData") else "raw"
    if stated.split(" ")[0] == "LIST" or "%" in stated:
        raise InputError(f"{name}: its voxels are spread over several files. Save it as one .mha file.")
    if stated.upper() == "LOCAL":
        file.seek(start)
        return voxel_data(file, length, packing=packing, name=name)
    skip = int(_numbers(fields, "HeaderSize", [0], name)[0])
    return beside(path, stated, length, skip=skip, packing=packing, name=name, limits=limits)


def _first(fields: dict[str, str], keys: tuple[str, ...], default: list[float], count: int, name: str) -> list[float]:
    key = next((key for key in keys if key in fields), keys[0])
    values = _numbers(fields, key, default, name)
    if len(values) != count:
        raise InputError(f"{name}: {key} has {len(values)} numbers, and {count} were expected. It is damaged; export it again.")
    return values


def _numbers(fields: dict[str, str], key: str, default: list[float] | None, name: str) -> list[float]:
    if key not in fields and default is not None:
        return default
    try:
        values = [float(word) for word in fields[key].split()]
        if values and all(math.isfinite(value) for value in values):
            return values
    except (KeyError, ValueError):
        pass
    raise InputError(
        f"{name}: {key} is {printable(fields.get(key, 'missing'))!r}, and finite numbers were expected. It is damaged; export it again."
    )


def _flag(fields: dict[str, str], key: str, *, default: bool = False) -> bool:
    return fields[key].strip().lower() in {"true", "1", "t", "yes"} if key in fields else default


def _choice(fields: dict[str, str], key: str, options: dict[str, str], name: str) -> str:
    if fields.get(key) not in options:
        raise InputError(f"{name}: {key} is {printable(fields.get(key, 'missing'))!r}; these are read: {', '.join(options)}.")
    return options[fields[key]]

"""NRRD files (.nrrd, and .nhdr with the voxels beside it), as ITK and 3D Slicer write them.

Not through ITK, for the reasons given in metaimage.py. Format: teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.volumes.formats import printable
from shared.imaging.volumes.grid import Grid, affine_fault
from shared.imaging.volumes.limits import VolumeLimits, check_shape
from shared.imaging.volumes.raw import Raw
from shared.imaging.volumes.volume import Source
from shared.imaging.volumes.voxel_data import Packing, beside, voxel_data

__all__ = ["read_nrrd"]

_HEADER_BYTES = 1 << 20
_AXES = 16
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_ENCODINGS: dict[str, Packing] = {"raw": "raw", "gzip": "zlib", "gz": "zlib", "bzip2": "bzip2", "bz2": "bzip2"}
_MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}
_VECTOR = re.compile(r"\(([^()]*)\)|none")


def read_nrrd(file: BinaryIO, *, path: Path | None, name: str, limits: VolumeLimits) -> Raw:
    """The voxels as they are stored, and where they lie; ``path`` is where the file is, for voxels in a file beside it.

    Raises:
        InputError: if it is damaged, cut short, too large, not 3-D, or of a kind that is not read.
    """
    with decoding(name, "an NRRD file"):
        fields, start = _fields(file, name)
        sizes = [int(size) for size in _wanted(fields, "sizes", name).split()]
        if len(sizes) != int(_wanted(fields, "dimension", name)) or len(sizes) > _AXES:
            raise InputError(
                f"{name}: has {printable(fields['dimension'])} axes, and gives the sizes of {len(sizes)}. It is damaged; export it again."
            )
        directions, notes = _directions(fields, len(sizes), name)
        spatial = [axis for axis, direction in enumerate(directions) if direction is not None]
        others = [axis for axis in range(len(sizes)) if axis not in spatial]
        if len(spatial) != 3:
            check_shape([sizes[axis] for axis in spatial], name=name, limits=limits)
        if sum(sizes[axis] != 1 for axis in others) > 1:
            raise InputError(f"{name}: has several axes of channels or time; one is read. Split it.")
        channels = math.prod(sizes[axis] for axis in others)
        shape = (sizes[spatial[0]], sizes[spatial[1]], sizes[spatial[2]])
        check_shape(shape, name=name, limits=limits, channels=channels)
        dtype = _dtype(fields, name)
        content = _content(file, start, fields, math.prod(sizes) * dtype.itemsize, path=path, name=name, limits=limits)
        stored = np.frombuffer(content, dtype).reshape(sizes, order="F").transpose(*others, *spatial)
        values = stored.reshape(channels, *shape) if others else stored
        source = Source(suffix=".nrrd", grid=Grid(shape=shape, affine=_affine(fields, directions, name)))
    return Raw(values=values[0] if others and channels == 1 else values, source=source, notes=notes)


def _fields(file: BinaryIO, name: str) -> tuple[dict[str, str], int]:
    """The header, and the byte behind it."""
    head = file.read(_HEADER_BYTES)
    fields: dict[str, str] = {}
    position = head.find(b"\n") + 1
    while position > 0:
        end = head.find(b"\n", position)
        if end < 0 and len(head) == _HEADER_BYTES:
            break
        line = head[position : end if end >= 0 else len(head)].decode("utf-8", errors="replace").rstrip("\r")
        position = end + 1 if end >= 0 else len(head)
        if not line:
            return fields, position
        key, colon, value = line.partition(": ")
        if colon and not line.startswith("#") and ":=" not in key:
            fields.setdefault(key.strip().lower(), value.strip())
        if end < 0:
            if "data file" in fields or "datafile" in fields:
                return fields, position
            break
    raise InputError(f"{name}: its header does not end. It is cut short or damaged; copy or export it again.")


def _directions(fields: dict[str, str], axes: int, name: str) -> tuple[list[NDArray[np.float64] | None], tuple[str, ...]]:
    """The direction of each axis times its spacing, in the file's own space; None for an axis that is not one of space."""
    if "space directions" in fields:
        found: list[NDArray[np.float64] | None] = []
        for match in _VECTOR.finditer(fields["space directions"]):
            found.append(None if match[1] is None else _vector(match[1], "space directions", name))
        if len(found) != axes:
            raise InputError(f"{name}: has {axes} axes, and gives the directions of {len(found)}. It is damaged; export it again.")
        note = "The header does not name its space; taken as ITK does, x to the left, y to the back, z up."
        return found, () if "space" in fields else (note,)
    spacings = [float(word) for word in fields.get("spacings", " ".join(["1"] * axes)).split()]
    if axes == 3 and len(spacings) == 3:
        note = "The header does not say where the patient's left is; taken as ITK does, x to the left, y to the back, z up."
        return list(np.diag(spacings)), (note,)
    raise InputError(f"{name}: does not say which of its {axes} axes are those of space (space directions). Save it with orientation.")


def _affine(fields: dict[str, str], directions: list[NDArray[np.float64] | None], name: str) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.stack([direction for direction in directions if direction is not None], axis=1)
    origin = fields.get("space origin", "(0,0,0)")
    affine[:3, 3] = _vector(origin.strip("()"), "space origin", name)
    space = fields.get("space", "left-posterior-superior").lower()
    if space not in _SPACES:
        raise InputError(
            f"{name}: its space is {printable(space)!r}; these are read: {', '.join(list(_SPACES)[::2])}. Save it in one of them."
        )
    units = {unit.strip('"').lower() for unit in fields.get("space units", '"mm"').split()}
    if len(units) > 1 or not units <= _MILLIMETRES.keys():
        raise InputError(
            f"{name}: its space units are {printable(fields['space units'])!r}, and one of {', '.join(_MILLIMETRES)} was expected."
        )
    affine[:3] *= _MILLIMETRES[units.pop()]
    if fault := affine_fault(affine):
        raise InputError(f"{name}: its orientation {fault}. Export it again.")
    return np.diag([*_SPACES[space], 1.0]) @ affine


def _dtype(fields: dict[str, str], name: str) -> np.dtype[Any]:
    stated = " ".join(_wanted(fields, "type", name).lower().split())
    code = next((code for code, words in _TYPES.items() if stated in words), None)
    if code is None:
        raise InputError(f"{name}: its voxels are of type {printable(stated)!r}; integers, float and double are read. Convert it.")
    return np.dtype(code).newbyteorder(">" if fields.get("endian", "little").lower() == "big" else "<")


def _content(
    file: BinaryIO, start: int, fields: dict[str, str], length: int, *, path: Path | None, name: str, limits: VolumeLimits
) -> bytes:
    encoding = _wanted(fields, "encoding", name).lower()
    if encoding not in _ENCODINGS:
        raise InputError(
            f"{name}: its encoding is {printable(encoding)!r}; these are read: {', '.join(_ENCODINGS)}. Save it as raw or gzip."
        )
    skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    if fields.get("line skip", fields.get("lineskip", "0")) != "0" or (skip and encoding != "raw"):
        raise InputError(f"{name}: its voxels begin after a skip of lines or packed bytes, which is not read. Save it without.")
    stated = fields.get("data file", fields.get("datafile"))
    if stated is None:
        file.seek(start + max(skip, 0))
        return voxel_data(file, length, packing=_ENCODINGS[encoding], name=name)
    if stated.split(" ")[0] == "LIST" or "%" in stated:
        raise InputError(f"{name}: its voxels are spread over several files. Save it as one .nrrd file.")
    return beside(path, stated.removeprefix("./"), length, skip=skip, packing=_ENCODINGS[encoding], name=name, limits=limits)


def _wanted(fields: dict[str, str], key: str, name: str) -> str:
    if key not in fields:
        raise InputError(f"{name}: its header has no {key!r}. It is damaged; export it again.")
    return fields[key]


def _vector(text: str, key: str, name: str) -> NDArray[np.float64]:
    vector = np.array([float(word) for word in text.split(",")])
    if vector.shape != (3,):
        raise InputError(f"{name}: {key} has a vector of {len(vector)} numbers, and 3 were expected. It is damaged; export it again.")
    return vector

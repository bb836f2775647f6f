"""NIfTI-1 and NIfTI-2 files, plain or gzip. nibabel is imported when the first one is read.

The header is checked here, field by field, before it is believed: nibabel mends what it dislikes and says so on the terminal.
"""

from __future__ import annotations

import gzip
import math
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.volumes.grid import Grid, affine_fault
from shared.imaging.volumes.limits import VolumeLimits, check_shape, read_exactly
from shared.imaging.volumes.raw import Raw
from shared.imaging.volumes.volume import Source

__all__ = ["read_nifti"]

_SIZES = {348: "Nifti1Header", 540: "Nifti2Header"}
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNITS = {1: "metres", 3: "micrometres"}
_UNREADABLE = {1: "single bits", 32: "complex numbers", 128: "colours (RGB)", 1792: "complex numbers", 2304: "colours (RGBA)"}
_CHUNK = 1 << 20


def read_nifti(file: BinaryIO, *, name: str, limits: VolumeLimits) -> Raw:
    """The voxels as they are stored, and where they lie.

    The affine is the sform if its code is set, else the qform, as in nibabel and FSL. The 4th axis comes first; axes of size 1 behind the
    third vanish, and of the axes behind the third one alone may be longer.

    Raises:
        InputError: if it is damaged, cut short, too large, not 3-D, or its header contradicts itself.
    """
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    with decoding(name, "a NIfTI file"):
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
        header = _header(stream, name)
        shape, channels = _shape(header, name, limits)
        affine, notes = _placed(header, name)
        dtype = _dtype(header, name)
        start, length = _offset(header, name, limits), math.prod(shape) * channels * dtype.itemsize
        if not packed:
            _check_length(file, start + length, name)
        read_exactly(stream, start - int(header["sizeof_hdr"]), name=name, what="the space before the voxels")
        content = read_exactly(stream, length, name=name, what="the voxel data")
        _drain(stream, name, limits)
        slope, intercept = header.get_slope_inter()
        stored = np.frombuffer(content, dtype).reshape(*shape, channels, order="F")
        values = np.moveaxis(stored, -1, 0) if channels > 1 else stored[..., 0]
        source = Source(suffix=".nii.gz" if packed else ".nii", grid=Grid(shape=shape, affine=affine), nifti=header)
    return Raw(values=values, slope=1.0 if slope is None else slope, intercept=intercept or 0.0, source=source, notes=notes)


def _header(stream: BinaryIO, name: str) -> Any:
    import nibabel

    start = read_exactly(stream, 4, name=name, what="the header")
    size = next(size for size in _SIZES if size in (int.from_bytes(start, "little"), int.from_bytes(start, "big")))
    rest = read_exactly(stream, size - 4, name=name, what="the header")
    header = getattr(nibabel, _SIZES[size])(start + rest, check=False)
    if header["magic"].item()[:2] == b"ni":
        raise InputError(
            f"{name}: is the header of a NIfTI pair, its voxels are in another file (.img). Make one file of both: nib-convert INPUT.hdr "
            "OUTPUT.nii.gz"
        )
    return header


def _shape(header: Any, name: str, limits: VolumeLimits) -> tuple[tuple[int, int, int], int]:
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise InputError(f"{name}: claims {count} axes, and a NIfTI file has 1 to 7. It is damaged; export it again.")
    sizes = [int(size) for size in header["dim"][1 : 1 + count]]
    further = [size for size in sizes[3:] if size != 1]
    if len(further) > 1:
        raise InputError(
            f"{name}: has {' x '.join(map(str, sizes))} values along {count} axes; three axes of space and one of channels or time are "
            "read. Split it."
        )
    channels = further[0] if further else 1
    check_shape(sizes[:3], name=name, limits=limits, channels=channels)
    return (sizes[0], sizes[1], sizes[2]), channels


def _dtype(header: Any, name: str) -> np.dtype[Any]:
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except Exception:
        dtype = np.dtype("V")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = _UNREADABLE.get(code, f"an unknown type (code {code})" if dtype.kind == "V" else f"{dtype.name} numbers")
        raise InputError(f"{name}: its voxels are {kind}; integers and real numbers of up to 64 bits are read. Convert it to float32.")
    return np.dtype(dtype)


def _placed(header: Any, name: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The affine in millimetres, and what is odd about it."""
    spacing = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise InputError(
            f"{name}: its voxel spacing is {', '.join(f'{value:g}' for value in spacing)}, and three positive numbers were expected. "
            "The header is damaged; convert it again from the original."
        )
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    notes: list[str] = []
    affine = header.get_sform() if sform else _qform(header, name) if qform else header.get_base_affine()
    affine = np.asarray(affine, dtype=np.float64)
    if fault := affine_fault(affine):
        raise InputError(f"{name}: its {'sform' if sform else 'qform'} {fault}. Convert it again from the original.")
    if sform and qform:
        notes += _disagreement(affine, header, name)
    if not sform and not qform:
        notes.append("The header does not say where the patient's left is; taken as nibabel does, x to the left, y to the front, z up.")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(lengths, spacing, rtol=0.01):
        notes.append(f"The affine has voxels of {_numbers(lengths)} mm, the spacing field says {_numbers(spacing)}; the affine is used.")
    unit = int(header["xyzt_units"]) & 7
    if unit in _UNITS:
        notes.append(f"The header gives lengths in {_UNITS[unit]}; they were converted to millimetres.")
    affine[:3] *= _MILLIMETRES.get(unit, 1.0)
    return affine, tuple(notes)


def _qform(header: Any, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except Exception as error:
        raise InputError(f"{name}: its qform is damaged ({error}). Convert it again from the original.") from error


def _disagreement(sform: NDArray[np.float64], header: Any, name: str) -> list[str]:
    shape = tuple(int(size) for size in header["dim"][1:4])
    one = Grid(shape=(shape[0], shape[1], shape[2]), affine=sform)
    try:
        other = Grid(shape=one.shape, affine=_qform(header, name))
    except (InputError, ValueError):
        return ["The qform is damaged; the sform is used."]
    if one.same_as(other):
        return []
    turned = f", axes {one.axes} and {other.axes}" if one.axes != other.axes else ""
    return [f"sform and qform disagree by up to {one.apart_mm(other):.3g} mm{turned}; the sform is used."]


def _offset(header: Any, name: str, limits: VolumeLimits) -> int:
    offset = float(header["vox_offset"])
    smallest = int(header["sizeof_hdr"])
    if not (smallest <= offset <= limits.bytes and offset.is_integer()):
        raise InputError(
            f"{name}: says that its voxels begin at byte {offset:g}, which is not behind its header of {smallest} bytes. It is damaged; "
            "export it again."
        )
    return int(offset)


def _check_length(file: BinaryIO, expected: int, name: str) -> None:
    position = file.tell()
    actual = file.seek(0, 2)
    file.seek(position)
    if actual < expected:
        raise InputError(f"{name}: is cut short: {actual:,} of {expected:,} bytes are there. Copy or export it again.")


def _drain(stream: BinaryIO, name: str, limits: VolumeLimits) -> None:
    """To the end, where gzip keeps its checksum."""
    left = limits.bytes
    while chunk := stream.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise InputError(f"{name}: unpacks to more than {limits.bytes / 2**30:,.3g} GiB. It is damaged; export it again.")


def _numbers(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)

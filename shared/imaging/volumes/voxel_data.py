"""The block of voxels that a text header (MetaImage, NRRD) announces: plain or packed, in the same file or in one beside it."""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

from shared.errors import InputError
from shared.imaging.limits import opened
from shared.imaging.volumes.formats import printable
from shared.imaging.volumes.limits import VolumeLimits

__all__ = ["Packing", "beside", "voxel_data"]

Packing = Literal["raw", "zlib", "bzip2"]


def voxel_data(stream: BinaryIO, length: int, *, packing: Packing, name: str) -> bytes:
    """``length`` bytes from here on, unpacked, and never more.

    Raises:
        InputError: if there are fewer, or a packed block holds more.
    """
    if packing == "raw":
        content = stream.read(length)
        if len(content) < length:
            raise InputError(f"{name}: is cut short: {len(content):,} of {length:,} bytes of voxels are there. Copy or export it again.")
        return content
    decompressor = bz2.BZ2Decompressor() if packing == "bzip2" else zlib.decompressobj(wbits=47)  # zlib or gzip, told by its start
    content = decompressor.decompress(stream.read(), length + 1)
    if len(content) > length:
        raise InputError(f"{name}: unpacks to more than the {length:,} bytes that its header announces. It is damaged; export it again.")
    if len(content) < length or not decompressor.eof:
        raise InputError(f"{name}: is cut short: {len(content):,} of {length:,} bytes of voxels can be unpacked. Copy or export it again.")
    return content


def beside(path: Path | None, stated: str, length: int, *, skip: int, packing: Packing, name: str, limits: VolumeLimits) -> bytes:
    """The voxels from a file of their own, after ``skip`` bytes; -1 if they are the last of it.

    Raises:
        InputError: as ``voxel_data``, and if it does not lie beside the header: or else a header could name any file of this machine.
    """
    if path is None:
        raise InputError(f"{name}: its voxels are in another file, {printable(stated)!r}. Save both as one file (.mha, .nrrd).")
    if Path(stated).name != stated or stated in {"", ".", ".."} or "\\" in stated:
        raise InputError(
            f"{name}: its voxels are in {printable(stated)!r}, and they are read from a file in the same folder only. Put both together."
        )
    with opened(path.parent / stated, name=f"{name}, voxels in {stated}") as file:
        size = file.seek(0, 2)
        start = size - length if skip == -1 else skip
        if size > limits.bytes or not 0 <= start <= size:
            raise InputError(f"{name}: its voxel file {stated} has {size:,} bytes, which does not fit the header. Export both again.")
        file.seek(start)
        return voxel_data(file, length, packing=packing, name=f"{name}, voxels in {stated}")

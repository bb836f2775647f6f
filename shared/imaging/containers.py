"""How long a video file says it is. FFmpeg plays a file that was cut short and stops without a word."""

from __future__ import annotations

import struct
from typing import BinaryIO

from shared.imaging.formats import Container

__all__ = ["announced_bytes"]

_SEGMENT = 0x18538067


def announced_bytes(file: BinaryIO, kind: Container) -> int:
    """The size that the outermost structure of the file announces; 0 if it leaves that open, as a live recording does.

    MP4 and MOV: ISO/IEC 14496-12, section 4.2. AVI: RIFF chunks. Matroska and WebM: RFC 8794, section 4 and 5.
    """
    size = file.seek(0, 2)
    if kind == "Matroska":
        return _matroska(file)
    position = 0
    while position < size:
        file.seek(position)
        length = _riff(file) if kind == "AVI" else _atom(file)
        if length < 8:  # open end, or bytes behind the last part
            return 0 if kind == "MP4" else position
        position += length
    return position


def _atom(file: BinaryIO) -> int:
    header = file.read(16)
    if len(header) < 8:
        return 8 if any(header) else 0  # a header that was cut, or padding
    if not header[4:8].isalnum():
        return 0
    (length,) = struct.unpack(">I", header[:4])
    if length == 1 and len(header) == 16:
        (length,) = struct.unpack(">Q", header[8:])
    return int(length)


def _riff(file: BinaryIO) -> int:
    header = file.read(8)
    if len(header) < 8 or header[:4] != b"RIFF":
        return 0
    (length,) = struct.unpack("<I", header[4:])
    return 8 + length + length % 2


def _matroska(file: BinaryIO) -> int:
    """End of the segment that follows the EBML header."""
    file.seek(4)
    length = _variable(file)
    if length is None:
        return 0
    file.seek(length, 1)
    if int.from_bytes(file.read(4), "big") != _SEGMENT:
        return 0
    length = _variable(file)
    return 0 if length is None else file.tell() + length


def _variable(file: BinaryIO) -> int | None:
    """An EBML number of 1 to 8 bytes; None for "unknown" (all ones) or a damaged one."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra), "big")
    return None if value == (1 << 7 * (extra + 1)) - 1 else value

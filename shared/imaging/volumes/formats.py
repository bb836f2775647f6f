"""What kind of volume a file holds, told by its first bytes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Literal

from shared.imaging import formats
from shared.imaging.formats import DICOM_MARK, DICOM_SUFFIXES

__all__ = ["DICOM_SERIES_SUFFIXES", "VOLUME_SUFFIXES", "Format", "describe", "inflated_head", "printable", "recognise", "volume_suffix"]

VOLUME_SUFFIXES = frozenset({".mha", ".mhd", ".nii", ".nii.gz", ".nrrd", ".zip"})
"""Files that are one volume each. Folders with a DICOM series are besides."""

DICOM_SERIES_SUFFIXES = DICOM_SUFFIXES | {".ima"}

Format = Literal["NIfTI", "MetaImage", "NRRD", "DICOM", "ZIP"]

_METAIMAGE = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType|ID|Name)\s*=")
_GZIP = b"\x1f\x8b"
_ENOUGH = 544
"""Bytes of a NIfTI-2 header and a little more; a checksum behind them is not looked at yet."""
_RELATED = (
    (b"\0\0\1\x5c", "an ANALYZE 7.5 file, which does not say left from right. Convert it to NIfTI where its orientation is known"),
    (b"\x5c\1\0\0", "an ANALYZE 7.5 file, which does not say left from right. Convert it to NIfTI where its orientation is known"),
    (b"\0\0\0\1\0\0", "perhaps a FreeSurfer file. Convert it: mri_convert INPUT OUTPUT.nii.gz"),
    (b"\x89HDF", "an HDF5 file (perhaps MINC). Convert it to NIfTI"),
)


def recognise(head: bytes) -> Format | None:
    """The kind of volume that the first ``formats.HEAD_BYTES`` of a file announce; None if it is none that is read here."""
    if head[DICOM_MARK] == b"DICM":
        return "DICOM"
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "ZIP"
    if head.startswith(b"NRRD"):
        return "NRRD"
    if _METAIMAGE.match(head):
        return "MetaImage"
    return "NIfTI" if _is_nifti(inflated_head(head)) else None


def describe(head: bytes) -> str:
    """What a file that ``recognise`` does not know seems to be, for a message."""
    inner = inflated_head(head)
    known = formats.recognise(inner)
    if known is not None:
        return f"a {known} file, which has no place in space"
    related = next((words for start, words in _RELATED if inner.startswith(start)), None)
    words = related or formats.describe(inner).replace("image format", "format")
    return f"gzip, and in it {words}" if head.startswith(_GZIP) and inner != head else words


def inflated_head(head: bytes) -> bytes:
    """The beginning of what a gzip file holds; anything else as it is."""
    if not head.startswith(_GZIP):
        return head
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _ENOUGH)
    except zlib.error:
        return head


def printable(value: object, longest: int = 80) -> str:
    """What a file says of itself, fit for one line of a message: headers may hold anything."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return text if len(text) <= longest else text[: longest - 3] + "..."


def volume_suffix(name: str, suffixes: Iterable[str] = VOLUME_SUFFIXES) -> str:
    """The longest of these suffixes that the name ends with, in lower case; "" if none."""
    lower = PurePath(name).name.lower()
    return max((suffix for suffix in suffixes if lower.endswith(suffix)), key=len, default="")


def _is_nifti(head: bytes) -> bool:
    one = head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") and head[344:348] in (b"n+1\0", b"ni1\0")
    two = head[:4] in (b"\x1c\2\0\0", b"\0\0\2\x1c") and head[4:7] in (b"n+2", b"ni2")
    return one or two

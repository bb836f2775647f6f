"""What a file is, told by its first bytes: names lie, contents do not."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "DICOM_MARK",
    "DICOM_SUFFIXES",
    "HEAD_BYTES",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Container",
    "Format",
    "Raster",
    "describe",
    "recognise",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

Raster = Literal["BMP", "GIF", "JPEG", "PNG", "TIFF", "WebP"]
Container = Literal["AVI", "Matroska", "MP4"]
Format = Raster | Container | Literal["DICOM"]

HEAD_BYTES = 1024
"""How much of a file ``recognise`` and ``describe`` want to see."""

DICOM_MARK = slice(128, 132)
"""Where a DICOM file says "DICM" (PS3.10, section 7.1)."""

_STARTS: tuple[tuple[bytes, Format], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\x1a\x45\xdf\xa3", "Matroska"),
)
_ATOMS = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_STRANGERS = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
)


def recognise(head: bytes) -> Format | None:
    """The format that the first ``HEAD_BYTES`` of a file announce; None if it is none that is read here."""
    if head[DICOM_MARK] == b"DICM":
        return "DICOM"
    if head[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"AVI ": "AVI"}.get(head[8:12])  # type: ignore[return-value]
    if head[4:8] in _ATOMS:
        return None if _is_still(head) else "MP4"
    return next((kind for start, kind in _STARTS if head.startswith(start)), None)


def describe(head: bytes) -> str:
    """What a file that ``recognise`` does not know seems to be, for a message."""
    if _is_still(head):
        return "a HEIC or AVIF image"
    for start, description in _STRANGERS:
        if head.startswith(start):
            return description
    text = head.decode("utf-8", errors="replace").strip()
    if text[:9].lower() in {"<!doctype", "<html"} or "<html" in text.lower():
        return "a web page (HTML), perhaps an error page that a download saved"
    if "\0" not in text and "\ufffd" not in text[:-1]:
        return f"text, starting {text[:24]!r}"
    if not any(head):
        return "nothing but zeros, perhaps an interrupted copy"
    return f"bytes of no known image format (starting {head[:4].hex(' ')})"


def _is_still(head: bytes) -> bool:
    """HEIC and AVIF share their outermost layer with MP4."""
    return head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"}

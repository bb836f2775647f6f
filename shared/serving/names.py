"""What results are called where a client saves them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import quote

from shared.imaging.sources import suffix_of

__all__ = ["disposition", "result_name", "stem_of"]

_SUFFIXES = {
    "application/dicom": ".dcm",
    "application/gzip": ".nii.gz",
    "application/json": ".json",
    "application/x-nifti": ".nii",
    "application/x-nrrd": ".nrrd",
    "application/zip": ".zip",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/tiff": ".tif",
    "text/csv": ".csv",
}
_GZIP = b"\x1f\x8b"


def stem_of(name: str, suffixes: Iterable[str]) -> str:
    """An uploaded file's name without its suffix, which may have two dots, and without folders."""
    base = PurePosixPath(name.replace("\\", "/")).name
    suffix = suffix_of(PurePosixPath(base), suffixes) or PurePosixPath(base).suffix
    return base[: -len(suffix)] if suffix and len(suffix) < len(base) else base


def result_name(stem: str, sample: str, kind: str, media_type: str, content: bytes) -> str:
    """Such as "a_frame_000002_result.png". NIfTI has no media type of its own for its packed form, so its first bytes tell."""
    suffix = _SUFFIXES.get(media_type, "")
    if suffix == ".nii" and content.startswith(_GZIP):
        suffix = ".nii.gz"
    return "_".join(part for part in (stem, sample, kind) if part) + suffix


def disposition(name: str) -> str:
    """The Content-Disposition under which browsers and ``curl --remote-header-name`` save an answer by this name, whatever its letters."""
    plain = "".join(letter if letter.isascii() and letter.isprintable() and letter not in '"\\' else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"

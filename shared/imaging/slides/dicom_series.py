"""Which DICOM files are whole slides, and which of them belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.formats import DICOM_MARK

__all__ = ["Instance", "is_dicom", "read_instance", "series_of", "slides_among"]

_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_TAGS = ["SOPClassUID", "SeriesInstanceUID", "ImageType", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Modality"]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """What one DICOM file says it is."""

    path: Path
    kind: str
    """Name of its SOP class."""
    slide: bool
    """Whether it is of the class of whole-slide images."""
    role: str
    """VOLUME (a level), LABEL, OVERVIEW, THUMBNAIL; empty if it does not say."""
    series: str
    pixels: int
    """Of the whole image, not of a tile."""


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM."""
    try:
        with path.open("rb") as file:
            return file.read(DICOM_MARK.stop)[DICOM_MARK] == b"DICM"
    except OSError:
        return False


def read_instance(path: Path) -> Instance:
    """The header; raises InputError if it is damaged."""
    import pydicom

    with decoding(str(path), "a DICOM file"):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        role = header.get("ImageType") or []
        return Instance(
            path=path,
            kind=getattr(header.get("SOPClassUID"), "name", "unknown"),
            slide=str(header.get("SOPClassUID", "")) == _SLIDE,
            role=str(role[2]) if len(role) > 2 else "",
            series=str(header.get("SeriesInstanceUID", path)),
            pixels=int(header.get("TotalPixelMatrixColumns") or 0) * int(header.get("TotalPixelMatrixRows") or 0),
        )


def series_of(instance: Instance) -> list[Path]:
    """The levels of the slide to which an instance belongs, in its folder; the largest first."""
    found = []
    for path in sorted(instance.path.parent.iterdir()):
        if path.is_file() and is_dicom(path):
            try:
                other = read_instance(path)
            except InputError:
                continue
            if other.slide and other.series == instance.series and other.role in ("VOLUME", ""):
                found.append(other)
    return [one.path for one in sorted(found, key=lambda one: -one.pixels)] or [instance.path]


def slides_among(paths: Iterable[Path]) -> set[Path]:
    """Of DICOM files, those to open: the largest level of each whole slide, and what cannot be told (to be opened, and refused)."""
    largest: dict[str, Instance] = {}
    chosen: set[Path] = set()
    for path in paths:
        try:
            one = read_instance(path)
        except InputError:
            chosen.add(path)
            continue
        if not one.slide or one.role in ("LABEL", "OVERVIEW", "THUMBNAIL"):
            continue  # annotations and masks lie beside their slides; labels carry the patient's name
        if one.series not in largest or one.pixels > largest[one.series].pixels:
            largest[one.series] = one
    return chosen | {one.path for one in largest.values()}

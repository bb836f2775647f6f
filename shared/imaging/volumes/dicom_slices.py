"""Where each picture of a DICOM series lies, from headers alone. pydicom is imported when the first one is read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.formats import DICOM_MARK, HEAD_BYTES, describe
from shared.imaging.volumes.formats import DICOM_SERIES_SUFFIXES, printable, volume_suffix
from shared.imaging.volumes.stored import StoredFile

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["SEGMENTATIONS", "Image", "Slice", "function", "images", "is_dicom", "parsed", "slices"]

SEGMENTATIONS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""SOP classes of DICOM SEG: binary or fractional, and label map."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_UNIT = 1e-3
"""Orientations are written with about six digits; a thousandth is a twentieth of a degree."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """One DICOM file of the input."""

    file: StoredFile
    header: Dataset
    """Without the pixels."""

    @property
    def series(self) -> str:
        """The UID of its series."""
        return str(self.header.get("SeriesInstanceUID", ""))


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """One picture: an image, or one frame of a multi-frame image. Vectors are in DICOM's own LPS millimetres."""

    image: Image
    frame: int | None
    """Counted from 0; None if the image has but one and is no multi-frame object."""
    position: NDArray[np.float64]
    """Centre of the first pixel."""
    along: NDArray[np.float64]
    """[2, 3]: unit vectors towards the next column and the next row."""
    spacing: NDArray[np.float64]
    """[2]: distance of columns, and of rows."""
    size: tuple[int, int]
    """Columns and rows."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.image.file.name if self.frame is None else f"frame {self.frame} of {self.image.file.name}"

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the picture, right-handed with its columns and rows."""
        return np.cross(self.along[0], self.along[1])


def is_dicom(file: StoredFile, *, name: str) -> bool:
    """Whether it says so itself; raises InputError for a file that is called so and is none."""
    if not volume_suffix(file.name, DICOM_SERIES_SUFFIXES):
        return file.name.rsplit("/", 1)[-1] != "DICOMDIR" and _marked(file)
    head = file.head(HEAD_BYTES)
    if head[DICOM_MARK] != b"DICM":
        what = describe(head) if head else "nothing"
        raise InputError(f"{name}: {file.name} is no DICOM file, despite its name: it holds {what}. Remove it, or export it again.")
    return True


def images(files: Sequence[StoredFile], *, name: str) -> Iterator[Image]:
    """The headers of these DICOM files. Raises InputError if one is damaged."""
    for file in files:
        header = parsed(file, pixels=False, name=name)
        yield Image(file=file, header=header)


def parsed(file: StoredFile, *, pixels: bool, name: str) -> Dataset:
    """The data set of a DICOM file, with its pixels or without; raises InputError if it is damaged."""
    import pydicom

    content = file.read()
    label = f"{name} ({file.name})" if file.name != name else name
    if _DEFLATED in content:  # pydicom would inflate it without a limit
        raise InputError(f"{label}: is a deflated DICOM file, which is not read here. Convert it with: dcmconv +te INPUT OUTPUT")
    with decoding(label, "a DICOM file"):
        return pydicom.dcmread(io.BytesIO(content), stop_before_pixels=not pixels)


def slices(image: Image, *, name: str) -> list[Slice]:
    """The pictures of an image with their places.

    Raises:
        InputError: if it has no place in space, or is in colour.
    """
    header = image.header
    with decoding(f"{name} ({image.file.name})", "a DICOM image"):
        grey = str(header.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME")
        if int(header.get("SamplesPerPixel", 1)) != 1 or not grey:
            raise InputError(f"{name}: {image.file.name} is in colour; series of grey images are read. Choose another series.")
        if "MOSAIC" in (header.get("ImageType") or []):
            raise InputError(f"{name}: {image.file.name} is a Siemens mosaic. Convert the series with dcm2niix, and give the NIfTI file.")
        size = (int(header.Columns), int(header.Rows))
        count = int(header.get("NumberOfFrames") or 1)
        if "PerFrameFunctionalGroupsSequence" not in header:
            if count > 1:
                raise InputError(
                    f"{name}: {image.file.name} has {count} frames that do not say where they lie. "
                    "An enhanced object or a series of single images is read; convert it."
                )
            return [_slice(image, None, size, header, header, header, name)]
        if len(header.PerFrameFunctionalGroupsSequence) != count:
            raise InputError(f"{name}: {image.file.name} claims {count} frames and describes another number. Export it again.")
        return [
            _slice(
                image,
                frame,
                size,
                function(header, frame, "PlanePositionSequence"),
                function(header, frame, "PlaneOrientationSequence"),
                function(header, frame, "PixelMeasuresSequence"),
                name,
            )
            for frame in range(count)
        ]


def function(header: Dataset, frame: int, keyword: str) -> Any:
    """What an enhanced object says of this frame, or of all (PS3.3, C.7.6.16); an empty mapping if nothing."""
    for group in (header.PerFrameFunctionalGroupsSequence[frame], *(header.get("SharedFunctionalGroupsSequence") or [])[:1]):
        if group.get(keyword):
            return group[keyword].value[0]
    return {}


def _slice(image: Image, frame: int | None, size: tuple[int, int], place: Any, turn: Any, measure: Any, name: str) -> Slice:
    label = f"{name}: {image.file.name}" + ("" if frame is None else f", frame {frame},")
    position = _numbers(place.get("ImagePositionPatient"), 3)
    along = _numbers(turn.get("ImageOrientationPatient"), 6)
    spacing = _numbers(measure.get("PixelSpacing"), 2)
    if position is None or along is None:
        raise InputError(f"{label} does not say where it lies in the patient (image position and orientation). Choose another series.")
    if spacing is None or min(spacing) <= 0:
        raise InputError(
            f"{label} has the pixel spacing {printable(measure.get('PixelSpacing'))}, and two positive numbers were expected. "
            "Export it again."
        )
    vectors = along.reshape(2, 3)
    lengths = np.linalg.norm(vectors, axis=1)
    if abs(lengths - 1).max() > _UNIT or abs(vectors[0] @ vectors[1]) > _UNIT:
        raise InputError(f"{label} has rows and columns that are not at right angles (orientation {along.tolist()}). Export it again.")
    return Slice(
        image=image, frame=frame, position=position, along=vectors / lengths[:, None], spacing=spacing[::-1], size=size
    )  # the standard gives the distance of rows first


def _numbers(value: Any, count: int) -> NDArray[np.float64] | None:
    if value is None or len(value) != count:
        return None
    numbers = np.array([float(number) for number in value])
    return numbers if np.isfinite(numbers).all() else None


def _marked(file: StoredFile) -> bool:
    try:
        return file.head(DICOM_MARK.stop)[DICOM_MARK] == b"DICM"
    except InputError:  # not what was meant, whatever is wrong with it
        return False

"""DICOM segmentations (SEG) that refer to the series they were made of, through highdicom, which is imported when it is needed."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.files import write_bytes
from shared.imaging.decoding import decoding
from shared.imaging.volumes.dicom_slices import parsed
from shared.imaging.volumes.grid import LPS_TO_RAS, Grid
from shared.imaging.volumes.limits import VolumeLimits, check_shape
from shared.imaging.volumes.raw import Raw
from shared.imaging.volumes.stored import StoredFile
from shared.imaging.volumes.volume import Source, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Code", "Segment", "SegmentationMaker", "encode_segmentation", "read_segmentation", "write_segmentation"]

_EXPECTED = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "StudyDate",
    "StudyID",
    "StudyTime",
)
"""May be empty but not absent; anonymisers drop them."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """A coded concept, such as value "108369006", scheme "SCT" (SNOMED CT), meaning "Neoplasm"."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What one label means."""

    value: int
    """In the label map."""
    name: str
    """As a viewer lists it."""
    category: Code
    """Of PS3.16, CID 7150, such as 49755003 SCT "Morphologically Abnormal Structure"."""
    kind: Code
    """Of PS3.16, CID 7151, such as 108369006 SCT "Neoplasm"."""
    anatomy: Code | None = None
    """Where in the body, of PS3.16, CID 4."""
    color: tuple[int, int, int] | None = None
    """sRGB, 0 to 255, as a suggestion to viewers."""


@dataclass(frozen=True, kw_only=True)
class SegmentationMaker:
    """The program that made a segmentation, as the file records it."""

    name: str
    """Of the model, such as "AGUNet"."""
    version: str
    series_description: str
    """Of the new series, such as "Meningioma (AGUNet)"."""
    manufacturer: str = "Fovea"
    serial_number: str = "0"


def encode_segmentation(labels: NDArray[Any], *, like: Volume, segments: Sequence[Segment], maker: SegmentationMaker) -> bytes:
    """A binary DICOM SEG with one segment for each of ``segments``, in their order, numbered from 1.

    Patient, study, frame of reference and places are those of the source series, and each frame refers to the image it was made of. It is a
    new series of the same study, with new UIDs. Slices without a label are left out, as is usual; a map without any label keeps all.

    Args:
        labels: integers [X, Y, Z] on the grid of ``like``; 0 is background.
        like: a volume that was read from DICOM, on its source's grid.
        segments: what each label means; each label that occurs must have one.
        maker: the program.

    Raises:
        ValueError: if the labels do not fit ``like`` or ``segments``.
        UserError: if ``like`` was not read from DICOM, or its series lacks what a segmentation needs.
    """
    frames, images = _frames(labels, like, segments)
    import highdicom

    try:
        described = [_described(number, segment, maker) for number, segment in enumerate(segments, start=1)]
        segmentation = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=highdicom.UID(),
            series_number=_series_number(images[0]),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=maker.manufacturer,
            manufacturer_model_name=maker.name[:64],
            software_versions=maker.version[:64],
            device_serial_number=maker.serial_number,
            content_description=maker.series_description[:64],
            series_description=maker.series_description[:64],
            omit_empty_frames=bool(frames.any()),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{like.name}: its DICOM series cannot carry a segmentation ({error}). Save the labels as NIfTI instead, or export the series "
            "again with all its attributes."
        ) from error
    buffer = io.BytesIO()
    segmentation.save_as(buffer)
    return buffer.getvalue()


def write_segmentation(
    path: Path | str, labels: NDArray[Any], *, like: Volume, segments: Sequence[Segment], maker: SegmentationMaker
) -> None:
    """``encode_segmentation`` into a file that is either whole or absent.

    Raises:
        ValueError: as ``encode_segmentation``.
        UserError: as ``encode_segmentation``, and if the file cannot be written.
    """
    write_bytes(path, encode_segmentation(labels, like=like, segments=segments, maker=maker))


def read_segmentation(file: StoredFile, *, name: str, limits: VolumeLimits) -> Raw:
    """A binary DICOM SEG as one label map, the number of each segment as its label.

    The grid reaches from the first slice with a label to the last, because others are often left out.

    Raises:
        InputError: if it is damaged, segments overlap, or its frames do not make a volume.
    """
    dataset = parsed(file, pixels=True, name=name)
    check_shape((int(dataset.Columns), int(dataset.Rows), max(int(dataset.NumberOfFrames), 2)), name=name, limits=limits)
    with decoding(name, "a DICOM segmentation"):
        import highdicom

        segmentation = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
        volume = segmentation.get_volume(combine_segments=True)
        values = volume.array.transpose(2, 1, 0)  # from (slice, row, column)
        affine = LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]]
        if np.linalg.det(affine) < 0:  # right-handed, as the series itself is read
            affine[:, 3] = affine @ [0, 0, values.shape[2] - 1, 1]
            affine[:, 2] *= -1
            values = values[:, :, ::-1]
        x, y, z = values.shape
        return Raw(values=values, source=Source(suffix=".dcm", grid=Grid(shape=(x, y, z), affine=affine)))


def _frames(labels: NDArray[Any], like: Volume, segments: Sequence[Segment]) -> tuple[NDArray[np.uint16], list[Dataset]]:
    """Segment numbers [frames, rows, columns] in the order of the source's images, and those images."""
    if like.source is None or like.source.dicom is None:
        raise UserError(f"{like.name}: was not read from a DICOM series, and a DICOM segmentation refers to one. Save the labels as NIfTI.")
    if labels.shape != like.source.grid.shape or not like.grid.same_as(like.source.grid):
        raise ValueError(f"labels of shape {list(labels.shape)} are not on the grid of the source series, {list(like.source.grid.shape)}")
    values = [segment.value for segment in segments]
    if not values or len(set(values)) < len(values) or min(values) < 1:
        raise ValueError(f"segments need different values from 1 up, not {values}")
    if unknown := sorted(set(np.unique(labels).tolist()) - {0, *values}):
        raise ValueError(f"labels {unknown} have no segment; there are segments for {values}")
    numbers = np.zeros(labels.shape, np.uint16)
    for number, value in enumerate(values, start=1):
        numbers[labels == value] = number
    frames = np.ascontiguousarray(numbers.transpose(2, 1, 0))
    dicom = like.source.dicom
    if dicom.frames:
        frames = frames[np.argsort(dicom.frames)]
    return frames, [_completed(image, thickness_mm=like.spacing_mm[2]) for image in dicom.images]


def _completed(image: Dataset, *, thickness_mm: float) -> Dataset:
    """With empty attributes where highdicom expects them to be present; the original is left alone."""
    absent = [keyword for keyword in _EXPECTED if keyword not in image]
    unknown = "PerFrameFunctionalGroupsSequence" not in image and not image.get("SliceThickness")
    if not absent and not unknown:
        return image
    image = copy.deepcopy(image)
    for keyword in absent:
        setattr(image, keyword, None)
    if unknown:
        image.SliceThickness = thickness_mm
    return image


def _series_number(image: Dataset) -> int:
    """Behind the source's in a viewer's list."""
    return int(image.get("SeriesNumber") or 0) * 100 % 10**9 + 1


def _described(number: int, segment: Segment, maker: SegmentationMaker) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code as Coded

    def coded(code: Code) -> Any:
        return Coded(code.value, code.scheme, code.meaning)

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:64],
        segmented_property_category=coded(segment.category),
        segmented_property_type=coded(segment.kind),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=maker.name[:64], version=maker.version[:64], family=codes.DCM.ArtificialIntelligence
        ),
        anatomic_regions=None if segment.anatomy is None else [coded(segment.anatomy)],
        display_color=None if segment.color is None else highdicom.color.CIELabColor.from_rgb(*segment.color),
    )

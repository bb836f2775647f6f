"""Small volumes with a labelled voxel in four corners, in every format, orientation and obliquity, made when a test asks for them."""

from __future__ import annotations

import io
import itertools
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

__all__ = [
    "LPS",
    "OBLIQUE",
    "SHAPE",
    "dicom_files",
    "enhanced_dicom",
    "itk_bytes",
    "labelled_corners",
    "nifti_bytes",
    "orientations",
    "positions",
    "zipped",
]

SHAPE = (4, 5, 6)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACING = (0.5, 1.25, 3.0)
ORIGIN = (-12.5, 31.0, 7.25)


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    x, y, z = np.radians(degrees)
    one = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    two = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    three = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return one @ two @ three


OBLIQUE = {"upright": np.eye(3), "oblique": _rotation((11.0, -17.0, 23.0))}


def orientations(rotation: np.ndarray = OBLIQUE["upright"]) -> Iterator[tuple[str, np.ndarray]]:
    """All 48 ways in which three axes can run along three directions, both ways each; turned by ``rotation``."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turned = np.zeros((3, 3))
            for axis, (direction, sign) in enumerate(zip(order, signs, strict=True)):
                turned[direction, axis] = sign * SPACING[axis]
            affine = np.eye(4)
            affine[:3, :3] = rotation @ turned
            affine[:3, 3] = ORIGIN
            code = "".join("RAS"[d] if s > 0 else "LPI"[d] for d, s in zip(order, signs, strict=True))
            yield code, affine


def labelled_corners(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """int16 [X, Y, Z]: 1 in the first voxel, 2, 3 and 4 at the other end of each axis: any flip or swap puts one of them elsewhere."""
    labels = np.zeros(shape, np.int16)
    labels[0, 0, 0], labels[-1, 0, 0], labels[0, -1, 0], labels[0, 0, -1] = 1, 2, 3, 4
    return labels


def positions(values: np.ndarray, affine: np.ndarray) -> dict[int, np.ndarray]:
    """Where each label lies, in millimetres (RAS)."""
    found = {}
    for label in np.unique(values[values > 0]).tolist():
        (index,) = np.argwhere(values == label)
        found[int(label)] = affine[:3, :3] @ index + affine[:3, 3]
    return found


def nifti_bytes(values: np.ndarray, affine: np.ndarray, *, version: int = 1, sform: int = 1, qform: int = 0, **fields: Any) -> bytes:
    """A NIfTI file with these codes, and header fields such as ``pixdim={1: 0}`` or ``scl_slope=2`` changed as they are."""
    kind = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    image = kind(values, affine, dtype=values.dtype)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine, qform)
    content = bytearray(image.to_bytes())
    header = image.header_class(bytes(content[: image.header_class.sizeof_hdr]), check=False)
    for key, value in fields.items():
        if isinstance(value, Mapping):
            for position, item in value.items():
                header[key][position] = item
        else:
            header[key] = value
    content[: len(header.binaryblock)] = header.binaryblock
    return bytes(content)


def itk_bytes(values: np.ndarray, affine: np.ndarray, suffix: str, *, packed: bool = False, vector: bool = False) -> bytes:
    """[X, Y, Z] or, with ``vector``, [C, X, Y, Z], as ITK writes it; its world is LPS."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    placed = LPS @ affine
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T), isVector=vector)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(placed[:3, 3].tolist())
    image.SetDirection((placed[:3, :3] / spacing).ravel().tolist())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        SimpleITK.WriteImage(image, str(path), useCompression=packed)
        return path.read_bytes()


def dicom_files(
    values: np.ndarray, affine: np.ndarray, *, slopes: np.ndarray | None = None, series: str | None = None, **attributes: Any
) -> list[bytes]:
    """One MR image for each slice of int16 [X, Y, Z], in order; slice k holds (values - k) / slopes[k] if there are slopes."""
    placed = LPS @ affine
    spacing = np.linalg.norm(placed[:3, :3], axis=0)
    uids = {"series": series or generate_uid(), "study": generate_uid(), "frame": generate_uid()}
    files = []
    for index in range(values.shape[2]):
        dataset = _mr_image(uids)
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [f"{number:.10g}" for number in placed @ [0, 0, index, 1]][:3]
        dataset.ImageOrientationPatient = [f"{number:.10f}" for number in (placed[:3, :2] / spacing[:2]).T.ravel()]
        dataset.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        dataset.SliceThickness = float(spacing[2])
        _pixels(dataset, values[:, :, index].T)
        if slopes is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = float(slopes[index]), float(index)
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        files.append(_written(dataset))
    return files


def enhanced_dicom(values: np.ndarray, affine: np.ndarray, *, order: list[int] | None = None, slope: float = 1) -> bytes:
    """An Enhanced MR object with one frame for each slice of int16 [X, Y, Z], in this order; slice k means values * slope + k."""
    placed = LPS @ affine
    spacing = np.linalg.norm(placed[:3, :3], axis=0)
    order = list(range(values.shape[2])) if order is None else order
    dataset = _mr_image({"series": generate_uid(), "study": generate_uid(), "frame": generate_uid()})
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    shared = Dataset()
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [f"{number:.10f}" for number in (placed[:3, :2] / spacing[:2]).T.ravel()]
    measures.PixelSpacing, measures.SliceThickness = [float(spacing[1]), float(spacing[0])], float(spacing[2])
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    groups = []
    for index in order:
        group, position, scale, content = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [f"{number:.10g}" for number in placed @ [0, 0, index, 1]][:3]
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = slope, index, "US"
        content.FrameAcquisitionNumber = index + 1
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [scale]
        group.FrameContentSequence = [content]
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], groups
    _pixels(dataset, np.stack([values[:, :, index].T for index in order]))
    dataset.NumberOfFrames = len(order)
    return _written(dataset)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _mr_image(uids: Mapping[str, str]) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PatientID, dataset.PatientName = "phantom-7", "Phantom^Seven"
    dataset.PatientBirthDate, dataset.PatientSex = "19500101", "O"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uids["study"], uids["series"], uids["frame"]
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20240102", "030405", "1", "A7"
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = "MR", 3, "T1 gd"
    dataset.ReferringPhysicianName, dataset.Manufacturer, dataset.ImageType = "", "Fovea tests", ["ORIGINAL", "PRIMARY", "M"]
    return dataset


def _pixels(dataset: Dataset, stored: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = np.ascontiguousarray(stored.astype("<i2")).tobytes()


def _written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()

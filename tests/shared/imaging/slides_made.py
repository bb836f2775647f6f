"""Small whole slides of every kind, made on the spot."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

MPP = 0.5


def picture(height: int = 700, width: int = 600) -> np.ndarray:
    """Smooth, so that JPEG keeps it, and different everywhere, so that a shift shows."""
    row, column = np.mgrid[:height, :width].astype(float)
    channels = [128 + 100 * np.sin(row / 31), 128 + 100 * np.cos(column / 37), 128 + 100 * np.sin((row + 2 * column) / 53)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def halved(image: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in image.shape[:2])
    return image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)


def write_ome(path: Path, image: np.ndarray, *, mpp: float | None = MPP) -> None:
    """OME-TIFF with its lower levels in SubIFDs."""
    size = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(image, tile=(128, 128), subifds=2, photometric="rgb", compression="zlib", metadata={"axes": "YXS", **size})
        for level in (halved(image), halved(halved(image))):
            file.write(level, tile=(128, 128), subfiletype=1, photometric="rgb", compression="zlib")


def write_dicom(folder: Path, image: np.ndarray, *, jpeg_ls: bool = False, mpp: float = MPP) -> list[Path]:
    """A DICOM series with two levels, tiled fully, and a label; plain or JPEG-LS."""
    folder.mkdir(parents=True, exist_ok=True)
    series = {keyword: generate_uid() for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PyramidUID")}
    paths = []
    for number, (role, pixels, spacing) in enumerate(
        [("VOLUME", image, mpp), ("VOLUME", halved(image), 2 * mpp), ("LABEL", np.full((64, 64, 3), 200, np.uint8), mpp)]
    ):
        path = folder / f"{number}.dcm"
        instance = _instance(pixels, role, spacing, jpeg_ls=jpeg_ls, number=number, mpp=mpp, whole=image.shape)
        instance.update({pydicom.tag.Tag(keyword): pydicom.DataElement(keyword, "UI", uid) for keyword, uid in series.items()})
        instance.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _instance(pixels: np.ndarray, role: str, spacing: float, *, jpeg_ls: bool, number: int, mpp: float, whole: tuple[int, ...]) -> Dataset:
    side = 64
    height, width = pixels.shape[:2]
    rows, columns = -(-height // side), -(-width // side)
    padded = np.pad(pixels, ((0, rows * side - height), (0, columns * side - width), (0, 0)), mode="edge")
    frames = [padded[y : y + side, x : x + side] for y in range(0, rows * side, side) for x in range(0, columns * side, side)]
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = JPEGLSLossless if jpeg_ls else ExplicitVRLittleEndian
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    one.Modality = "SM"
    one.ImageType = ["DERIVED" if number else "ORIGINAL", "PRIMARY", role, "RESAMPLED" if number == 1 else "NONE"]
    one.PatientID, one.PatientName, one.StudyID, one.AccessionNumber = "1", "A^B", "1", "1"
    one.SeriesNumber, one.InstanceNumber = 1, number + 1
    one.StudyDate = one.ContentDate = one.SeriesDate = "20260101"
    one.StudyTime = one.ContentTime = one.SeriesTime = "000000"
    one.AcquisitionDateTime = "20260101000000"
    one.Rows = one.Columns = side
    one.NumberOfFrames = len(frames)
    one.TotalPixelMatrixColumns, one.TotalPixelMatrixRows, one.TotalPixelMatrixFocalPlanes = width, height, 1
    one.SamplesPerPixel, one.PlanarConfiguration, one.PhotometricInterpretation = 3, 0, "RGB"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 8, 8, 7, 0
    one.BurnedInAnnotation, one.LossyImageCompression, one.VolumetricProperties = "NO", "00", "VOLUME"
    one.SpecimenLabelInImage, one.FocusMethod, one.ExtendedDepthOfField = "NO", "AUTO", "NO"
    one.ImagedVolumeWidth, one.ImagedVolumeHeight, one.ImagedVolumeDepth = whole[1] * mpp / 1000, whole[0] * mpp / 1000, 0.001
    one.DimensionOrganizationType = "TILED_FULL"
    one.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 0.0, 0.0
    one.TotalPixelMatrixOriginSequence = [origin]
    path = Dataset()
    path.OpticalPathIdentifier = "0"
    kind = Dataset()
    kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = "111744", "DCM", "Brightfield illumination"
    path.IlluminationTypeCodeSequence = [kind]
    one.OpticalPathSequence, one.NumberOfOpticalPaths = [path], 1
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing / 1000, spacing / 1000], 0.001
    shared.PixelMeasuresSequence = [measures]
    one.SharedFunctionalGroupsSequence = [shared]
    content = [frame.tobytes() if not jpeg_ls else imagecodecs.jpegls_encode(np.ascontiguousarray(frame)) for frame in frames]
    one.PixelData = encapsulate(content) if jpeg_ls else b"".join(content)
    one["PixelData"].VR = "OB"
    return one

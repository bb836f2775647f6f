"""Reads volumes (NIfTI, DICOM series, MetaImage, NRRD), brings them onto a model's grid and back, and writes results like their source.

World coordinates are RAS+ millimetres everywhere. Every failure of an input is one InputError that names the file, what was found and what
to do. All of it may be called from many threads.
"""

from shared.imaging.volumes.cases import BRATS, MSD_BRAIN_TUMOUR, Case, Modalities, find_cases, read_case
from shared.imaging.volumes.dicom_segmentation import Code, Segment, SegmentationMaker, encode_segmentation, write_segmentation
from shared.imaging.volumes.dicom_series import Series
from shared.imaging.volumes.finding import VOLUME_INPUTS, find_volumes
from shared.imaging.volumes.formats import DICOM_SERIES_SUFFIXES, VOLUME_SUFFIXES
from shared.imaging.volumes.geometry import (
    Box,
    Order,
    crop,
    foreground_box,
    grid_with_axes,
    grid_with_spacing,
    pad,
    pad_to_multiple,
    reorient,
    resample,
    restore_labels,
    restore_probability,
)
from shared.imaging.volumes.grid import Grid
from shared.imaging.volumes.limits import VolumeLimits
from shared.imaging.volumes.reading import VolumeInput, read_labels, read_volume, series_in
from shared.imaging.volumes.volume import DicomSource, Source, Volume, check_same_grid, same_grid
from shared.imaging.volumes.writing import WRITTEN_SUFFIXES, encode_labels, encode_volume, write_labels, write_volume

__all__ = [
    "BRATS",
    "DICOM_SERIES_SUFFIXES",
    "MSD_BRAIN_TUMOUR",
    "VOLUME_INPUTS",
    "VOLUME_SUFFIXES",
    "WRITTEN_SUFFIXES",
    "Box",
    "Case",
    "Code",
    "DicomSource",
    "Grid",
    "Modalities",
    "Order",
    "Segment",
    "SegmentationMaker",
    "Series",
    "Source",
    "Volume",
    "VolumeInput",
    "VolumeLimits",
    "check_same_grid",
    "crop",
    "encode_labels",
    "encode_segmentation",
    "encode_volume",
    "find_cases",
    "find_volumes",
    "foreground_box",
    "grid_with_axes",
    "grid_with_spacing",
    "pad",
    "pad_to_multiple",
    "read_case",
    "read_labels",
    "read_volume",
    "reorient",
    "resample",
    "restore_labels",
    "restore_probability",
    "same_grid",
    "series_in",
    "write_labels",
    "write_segmentation",
    "write_volume",
]

"""Reads images, DICOM frames and videos as arrays, checked and limited in size; finds input files; writes PNG.

Every failure of an input is one InputError that names the file, what was found and what to do. All of it may be called from many threads.
"""

from shared.imaging.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from shared.imaging.limits import Limits
from shared.imaging.pairs import Dropped, Pair, Pairs, find_pairs
from shared.imaging.reading import Frame, read_image, read_mask, samples
from shared.imaging.sources import InputFile, find_inputs
from shared.imaging.writing import encode_png, write_png

__all__ = [
    "DICOM_SUFFIXES",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Dropped",
    "Frame",
    "InputFile",
    "Limits",
    "Pair",
    "Pairs",
    "encode_png",
    "find_inputs",
    "find_pairs",
    "read_image",
    "read_mask",
    "samples",
    "write_png",
]

"""DICOM whole-slide images whose compression OpenSlide refuses, such as JPEG-LS, through wsidicom."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from wsidicom import WsiDicom

from shared.imaging.slides.resolution import Resolution

__all__ = ["DicomPyramid"]


class DicomPyramid:
    """See ``Pyramid``.

    Args:
        paths: the instances of one series.
    """

    format = "DICOM"

    def __init__(self, paths: Sequence[Path]) -> None:
        self._slide = WsiDicom.open(list(paths))
        self._lock = threading.Lock()
        self._levels = list(self._slide.pyramids[0])
        self.sizes = tuple((level.size.width, level.size.height) for level in self._levels)
        mpp = self._levels[0].mpp
        self.resolution = Resolution(x=mpp.width, y=mpp.height, source="PixelSpacing")

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See ``Pyramid``."""
        with self._lock:  # wsidicom promises nothing of threads
            region = self._slide.read_region((x, y), self._levels[level].level, (width, height))
        return np.asarray(region.convert("RGB"))

    def close(self) -> None:
        """See ``Pyramid``."""
        self._slide.close()

"""Slides that OpenSlide opens: Aperio, Hamamatsu, Leica, MIRAX, Philips, Sakura, Trestle, Ventana, Zeiss, DICOM and generic tiled TIFF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from shared.imaging.slides.resolution import Resolution

__all__ = ["OpenSlidePyramid"]

_NAMES = {
    "aperio": "Aperio",
    "dicom": "DICOM",
    "generic-tiff": "tiled TIFF",
    "hamamatsu": "Hamamatsu",
    "leica": "Leica",
    "mirax": "MIRAX",
    "philips-tiff": "Philips TIFF",
    "sakura": "Sakura",
    "synthetic": "synthetic",
    "trestle": "Trestle",
    "ventana": "Ventana",
    "zeiss": "Zeiss",
}
_CACHE = openslide.OpenSlideCache(64 * 2**20)
"""Decoded tiles of all open slides together: by default each slide would have a cache of its own."""
_STATED = (
    ("openslide.mpp-x", "openslide.mpp-y"),
    ("aperio.MPP", "aperio.MPP"),
    ("openslide.mirax.MPP", "openslide.mirax.MPP"),
)
_UNITS_UM = {"centimeter": 10_000.0, "inch": 25_400.0}


class OpenSlidePyramid:
    """See ``Pyramid``. OpenSlide's handles may be shared by threads; its calls let others run meanwhile.

    Raises:
        openslide.OpenSlideError: if it cannot open the file.
    """

    def __init__(self, path: Path) -> None:
        self._slide = openslide.OpenSlide(path)
        self._slide.set_cache(_CACHE)
        vendor = self._slide.properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        self.format = _NAMES.get(vendor, vendor)
        self.sizes: tuple[tuple[int, int], ...] = tuple(self._slide.level_dimensions)
        self.resolution = _resolution(self._slide.properties)
        color = self._slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._background = np.array([int(color[index : index + 2], 16) for index in (0, 2, 4)], np.uint8)
        self._downsamples = self._slide.level_downsamples

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See ``Pyramid``."""
        factor = self._downsamples[level]
        image = self._slide.read_region((round(x * factor), round(y * factor)), level, (width, height))
        if image.getchannel("A").getextrema()[0] == 255:
            return np.asarray(image.convert("RGB"))
        region = np.asarray(image)
        weight = region[..., 3:].astype(np.uint16)
        mixed = (region[..., :3] * weight + self._background * (255 - weight) + 127) // 255
        return mixed.astype(np.uint8)

    def close(self) -> None:
        """See ``Pyramid``."""
        self._slide.close()


def _resolution(properties: Mapping[str, str]) -> Resolution:
    for across, down in _STATED:
        x, y = _number(properties.get(across)), _number(properties.get(down))
        if x and y:
            return Resolution(x=x, y=y, source=across)
    unit = _UNITS_UM.get(properties.get("tiff.ResolutionUnit", ""))
    x, y = _number(properties.get("tiff.XResolution")), _number(properties.get("tiff.YResolution"))
    if unit and x and y:
        return Resolution(x=unit / x, y=unit / y, source="tiff.XResolution")
    return Resolution()


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None

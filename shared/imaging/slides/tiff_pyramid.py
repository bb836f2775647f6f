"""TIFF slides that OpenSlide does not read, or not wholly: OME-TIFF with its levels in SubIFDs, striped and single-level TIFF."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.slides.resolution import Resolution

__all__ = ["TiffPyramid", "has_subresolutions"]

_CACHED_BYTES = 64 * 2**20
_UNITS_UM = {tifffile.RESUNIT.CENTIMETER: 10_000.0, tifffile.RESUNIT.INCH: 25_400.0}
_LENGTHS_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "in": 25_400.0}


def has_subresolutions(path: Path) -> bool:
    """Whether this is an OME-TIFF with a pyramid, of which OpenSlide would see level 0 only. False for anything that is not a TIFF."""
    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.is_ome and len(file.series[0].levels) > 1)
    except Exception:
        return False


class TiffPyramid:
    """See ``Pyramid``. The largest picture of the file and its reduced copies.

    Args:
        path: the file.

    Raises:
        InputError: if its pixels are not 8-bit grey or RGB.
    """

    def __init__(self, path: Path) -> None:
        self._file = tifffile.TiffFile(path)
        try:
            if not self._file.series:
                raise ValueError("no picture is listed in it")
            series = max(self._file.series, key=lambda one: one.size)
            self._pages = [_plane(level, path) for level in series.levels]
            self.sizes = tuple((page.imagewidth, page.imagelength) for page in self._pages)
            self.format = "OME-TIFF" if self._file.is_ome else "TIFF"
            self.resolution = _ome_resolution(self._file) or _tag_resolution(self._pages[0])
        except BaseException:
            self._file.close()
            raise
        self._lock = threading.Lock()
        self._decoded: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cached = 0

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See ``Pyramid``."""
        page = self._pages[level]
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = -(-self.sizes[level][0] // wide)
        canvas = np.full((height, width, 3), 255, np.uint8)
        for row in range(y // tall, -(-(y + height) // tall)):
            for column in range(x // wide, -(-(x + width) // wide)):
                tile = self._tile(level, row * across + column)
                if tile is None:
                    continue
                left, top = column * wide, row * tall
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = min(x + width, left + tile.shape[1]), min(y + height, top + tile.shape[0])
                canvas[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return canvas

    def close(self) -> None:
        """See ``Pyramid``."""
        self._file.close()

    def _tile(self, level: int, index: int) -> NDArray[np.uint8] | None:
        """One tile or strip, [H, W, 3]; None where the file left it out."""
        with self._lock:
            if (found := self._decoded.get((level, index))) is not None:
                self._decoded.move_to_end((level, index))
                return found
            page = self._pages[level]
            count = page.databytecounts[index]
            if count == 0:
                return None
            self._file.filehandle.seek(page.dataoffsets[index])
            content = self._file.filehandle.read(count)
        if len(content) < count:
            raise ValueError(f"the file ends within tile {index}")
        segment, *_ = page.decode(content, index, jpegtables=page.jpegtables)  # takes long; others read meanwhile
        if segment is None:
            return None
        tile: NDArray[np.uint8] = np.asarray(segment).reshape(tuple(segment.shape)[-3:])
        if tile.shape[-1] == 1:
            tile = np.repeat(tile, 3, axis=-1)
        tile = np.ascontiguousarray(tile[..., :3])
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            tile = 255 - tile
        with self._lock:
            self._decoded[level, index] = tile
            self._cached += tile.nbytes
            while self._cached > _CACHED_BYTES and len(self._decoded) > 1:
                self._cached -= self._decoded.popitem(last=False)[1].nbytes
        return tile


def _plane(level: tifffile.TiffPageSeries, path: Path) -> tifffile.TiffPage:
    page = level.keyframe
    colours = {
        tifffile.PHOTOMETRIC.RGB: 3,
        tifffile.PHOTOMETRIC.YCBCR: 3,
        tifffile.PHOTOMETRIC.MINISBLACK: 1,
        tifffile.PHOTOMETRIC.MINISWHITE: 1,
    }
    samples = page.samplesperpixel
    known = samples in (colours.get(tifffile.PHOTOMETRIC(page.photometric), 0), 4) and page.planarconfig == 1
    if page.dtype != np.uint8 or not known or level.shape.count(1) < level.ndim - (3 if samples > 1 else 2):
        raise InputError(
            f"{path}: holds {page.dtype} pixels, {'x'.join(map(str, level.shape))} along {level.axes}; a bright-field slide has 8-bit RGB "
            "(one plane, one channel group). Export it as RGB."
        )
    return page


def _ome_resolution(file: tifffile.TiffFile) -> Resolution | None:
    if not file.is_ome or not file.ome_metadata:
        return None
    try:
        pixels = next(one for one in ElementTree.fromstring(file.ome_metadata).iter() if one.tag.endswith("}Pixels"))
        x, y = (
            float(pixels.attrib[f"PhysicalSize{axis}"]) * _LENGTHS_UM[pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")] for axis in "XY"
        )
    except (ElementTree.ParseError, KeyError, StopIteration, ValueError):
        return None
    return Resolution(x=x, y=y, source="OME PhysicalSizeX")


def _tag_resolution(page: tifffile.TiffPage) -> Resolution:
    tags = page.tags
    if "XResolution" not in tags or "YResolution" not in tags or "ResolutionUnit" not in tags:
        return Resolution()
    unit = _UNITS_UM.get(tags["ResolutionUnit"].value)
    across, down = (tags[name].value[0] / max(1, tags[name].value[1]) for name in ("XResolution", "YResolution"))
    if unit is None or across <= 1 or down <= 1:  # 1 to the inch is what writers put who do not know
        return Resolution()
    return Resolution(x=unit / across, y=unit / down, source="XResolution")

"""PNG, JPEG, TIFF, WebP, BMP and GIF through Pillow.

Pillow's decoder for the recognised format is called directly: ``Image.open`` would try every plugin, and warn on its own of large images.
"""

from __future__ import annotations

import ctypes
import io
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin, ExifTags, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.formats import Raster
from shared.imaging.limits import Limits, check_pixels

__all__ = ["Pages", "count_pages", "to_mask", "to_rgb"]

_DECODERS: dict[Raster, Callable[[BinaryIO], ImageFile]] = {
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
with suppress(AttributeError, OSError):
    # libtiff prints what it dislikes, past Python, and Pillow has no switch. Linked statically (Windows), it still prints.
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)

_TWELVE_BITS = 4096
_LABELS = 16
_NEW_SUBFILE_TYPE, _TILE_WIDTH, _TILE_LENGTH = 254, 322, 323


def count_pages(file: BinaryIO, *, kind: Raster, name: str, limits: Limits) -> int:
    """How many pictures the file holds, from its headers alone."""
    with decoding(name, f"a {kind} file"):
        return len(_pages(_header(file, kind, name, limits), kind))


class Pages:
    """The pictures of one file, decoded on demand. May be called from any thread and in any order; in order is fastest."""

    def __init__(self, *, content: bytes, kind: Raster, name: str, limits: Limits) -> None:
        self._lock = threading.Lock()
        self._kind, self._name, self._limits = kind, name, limits
        with decoding(name, f"a {kind} file"):
            if kind == "PNG":  # Pillow skips the checksums when it decodes, and so would show damaged pixels as if they were sound
                _header(io.BytesIO(content), kind, name, limits).verify()
            self._file = _header(io.BytesIO(content), kind, name, limits)
            self._positions = _pages(self._file, kind)

    def __len__(self) -> int:
        return len(self._positions)

    def rgb(self, page: int) -> np.ndarray:
        """uint8 [H, W, 3]."""
        with self._lock, decoding(self._name, f"a {self._kind} file"):
            return to_rgb(self._decoded(page), name=self._name)

    def mask(self, page: int) -> np.ndarray:
        """bool [H, W]."""
        with self._lock, decoding(self._name, f"a {self._kind} file"):
            return to_mask(self._decoded(page), name=self._name, lossy=self._kind in {"JPEG", "WebP"})

    def _decoded(self, page: int) -> Image.Image:
        if len(self._positions) > 1:
            self._file.seek(self._positions[page])
        _check_size(self._file, self._name, self._limits)
        self._file.load()
        orientation = _orientation(self._file)
        return self._file.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else self._file


def to_rgb(image: Image.Image, *, name: str) -> np.ndarray:
    """uint8 [H, W, 3]. The rules are those of ``read_image``.

    Raises:
        InputError: if the pixel values have no agreed meaning as 8 bits.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _wide_grey(image, name)
        if grey.dtype == np.uint16:
            highest = int(grey.max())
            if 0 < highest < _TWELVE_BITS:
                raise InputError(
                    f"{name}: a 16-bit image whose highest value is {highest} of 65535: shown over the full range it would be black. It is "
                    "probably 10- or 12-bit data, or class numbers. Scale it to the full range, or save it with 8 bits."
                )
            grey = (grey >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def to_mask(image: Image.Image, *, name: str, lossy: bool) -> np.ndarray:
    """bool [H, W]. The rules are those of ``read_mask``; ``lossy`` if small values may be noise.

    Raises:
        InputError: if the values look like class numbers.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _wide_grey(image, name)
    else:
        colours = np.array(image.convert("RGB"))
        grey = colours.max(axis=2)
        if image.mode in {"P", "PA"} and (colours != grey[..., None]).any():
            return grey > 0
    highest, white = int(grey.max()), np.iinfo(grey.dtype).max
    if highest == 1 and not lossy:
        return grey > 0
    if 0 < highest < (_LABELS if white == 255 else _TWELVE_BITS) and not lossy:
        raise InputError(
            f"{name}: the highest value of this mask is {highest} of {white}: these look like class or instance numbers, and a mask is "
            "expected to be 0 and 255 (or 0 and 1). Save the wanted class alone, as 255."
        )
    return grey > white // 2


def _header(file: BinaryIO, kind: Raster, name: str, limits: Limits) -> ImageFile:
    try:
        image = _DECODERS[kind](file)
    except Image.DecompressionBombError as error:  # Pillow's own limit, where its decoder would take memory before telling the size
        raise InputError(
            f"{name}: claims more than 178 million pixels, but at most {limits.pixels / 1e6:,g} million are read. Scale it down or cut it "
            "into tiles."
        ) from error
    _check_size(image, name, limits)
    return image


def _check_size(image: ImageFile, name: str, limits: Limits) -> None:
    check_pixels(*image.size, name=name, limits=limits)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _TILE_WIDTH in image.tag_v2:  # a tile may claim more than its image
        check_pixels(int(image.tag_v2[_TILE_WIDTH]), int(image.tag_v2.get(_TILE_LENGTH, 1)), name=name, limits=limits)


def _pages(image: ImageFile, kind: Raster) -> list[int]:
    """The positions of the pictures proper: in a TIFF, thumbnails and transparency masks are not (tag 254)."""
    positions = range(getattr(image, "n_frames", 1))
    if kind != "TIFF" or len(positions) == 1:
        return list(positions)
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    proper = []
    for position in positions:
        image.seek(position)
        if not int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & 0b101:
            proper.append(position)
    image.seek(0)
    return proper or [0]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none, or none that can be read, as every viewer does."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _wide_grey(image: Image.Image, name: str) -> np.ndarray:
    """Grey of more than 8 bits as uint16, or float in 0 to 1 as uint8, [H, W]."""
    values = np.array(image)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(f"{name}: has pixels that are not numbers (NaN or infinite). Replace them and save it with 8 or 16 bits.")
        if values.min() < 0 or values.max() > 1:
            raise InputError(
                f"{name}: floating-point pixels from {values.min():g} to {values.max():g}, and only 0 to 1 has an agreed meaning. "
                "Scale them, or save the image with 8 or 16 bits."
            )
        return np.rint(values * 255).astype(np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"{name}: integer pixels from {values.min()} to {values.max()}, and only 0 to 65535 has an agreed meaning. "
            "Scale them and save the image with 8 or 16 bits."
        )
    return values.astype(np.uint16)

"""PNG files from arrays, written atomically."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from shared.files import write_bytes

__all__ = ["encode_png", "write_png"]


def encode_png(array: np.ndarray) -> bytes:
    """One PNG, lossless.

    Args:
        array: [H, W] bool (written as 0 and 255), uint8 or uint16 (such as a probability times 65535), or [H, W, 3] uint8 RGB.

    Raises:
        ValueError: for any other type or shape, or an array without pixels.
    """
    array = np.asarray(array)
    grey = array.ndim == 2 and array.dtype in (np.bool_, np.uint8, np.uint16)
    if not (grey or (array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8)) or not array.size:
        raise ValueError(
            f"PNG is written from [H, W] bool, uint8 or uint16, or [H, W, 3] uint8, not from {array.dtype} {list(array.shape)}"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(path: Path | str, array: np.ndarray) -> None:
    """``encode_png`` into a file that is either whole or absent.

    Raises:
        ValueError: as ``encode_png``.
        UserError: if the file cannot be written.
    """
    write_bytes(path, encode_png(array))

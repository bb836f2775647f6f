"""How large an input may be, and the checks before any memory is spent on it."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.errors import InputError

__all__ = ["Limits", "check_bytes", "check_pixels", "opened"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused before it is read or decoded."""

    bytes: int = 512 * 2**20
    """Largest file that is read into memory. A video on disk is streamed, so it may be larger; one given as bytes may not."""
    pixels: int = 50_000_000
    """Most pixels (width times height) of one frame. Pillow itself refuses TIFF and GIF frames above 178 million."""


@contextmanager
def opened(source: Path | bytes, *, name: str) -> Iterator[BinaryIO]:
    """The open file, or the bytes as one.

    Raises:
        InputError: if it is missing, empty, a folder, a device, or may not be read.
    """
    if isinstance(source, bytes):
        if not source:
            raise InputError(_EMPTY.format(name=name))
        yield io.BytesIO(source)
        return
    with _open(source, name) as file:
        yield file


def check_bytes(file: BinaryIO, *, name: str, limits: Limits) -> None:
    """Raises InputError if the file is larger than ``limits.bytes``. Leaves it at its start."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > limits.bytes:
        raise InputError(
            f"{name}: {_megabytes(size)}, but at most {_megabytes(limits.bytes)} are read. "
            "Split it, compress it, or raise the limit on bytes."
        )


def check_pixels(width: int, height: int, *, name: str, limits: Limits) -> None:
    """Raises InputError if a frame of this size is empty or larger than ``limits.pixels``."""
    if width < 1 or height < 1:
        raise InputError(f"{name}: claims {width} x {height} pixels, so there is nothing to see. Export it again.")
    if width * height > limits.pixels:
        raise InputError(
            f"{name}: claims {width:,} x {height:,} pixels ({width * height / 1e6:,.0f} million), but at most {limits.pixels / 1e6:,g} "
            "million are read. Scale it down, cut it into tiles, or raise the limit on pixels."
        )


_EMPTY = "{name}: is empty (0 bytes). Copy or export it again."


def _open(path: Path, name: str) -> BinaryIO:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name}: is a folder, and one file was expected. Name a file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name}: is a device or a pipe, and a file was expected. Copy its content into a file.")
        if not status.st_size:
            raise InputError(_EMPTY.format(name=name))
        return path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{name}: there is no such file. Check the path for a typing error.") from error
    except PermissionError as error:
        raise InputError(
            f"{name}: may not be read by this user (permission denied). Change the permissions of the file or its folder."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be opened ({getattr(error, 'strerror', None) or error}). Check the path and the disk.") from error


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size:,} bytes"

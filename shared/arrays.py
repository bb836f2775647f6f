"""NumPy's files, read without executing anything in them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError

__all__ = ["load_npy", "load_npz"]

_COPY = "Copy it again, or export it anew."
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def load_npy(path: Path | str, *, what: str = "an array", advice: str = _COPY, lazily: bool = False) -> NDArray:
    """The array of a .npy file.

    Args:
        path: the file.
        what: what it should hold, for the message.
        advice: what to do about a file that is none.
        lazily: whether it stays on disk, and is read where it is used.

    Raises:
        InputError: if it is missing, damaged, holds Python objects, or is another kind of file.
    """
    try:
        found = np.load(path, mmap_mode="r" if lazily else None, allow_pickle=False)
    except _DAMAGED as error:
        raise _unreadable(path, what, _reason(error), advice) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise _unreadable(path, what, "it is an .npz of several", advice)
    return found


def load_npz(path: Path | str, *, what: str = "arrays", advice: str = _COPY) -> Mapping[str, NDArray]:
    """The arrays of an .npz file, by name; as ``load_npy`` otherwise."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except TypeError as error:  # an array is no context
        raise _unreadable(path, what, "it is a single array, not an .npz", advice) from error
    except _DAMAGED as error:
        raise _unreadable(path, what, _reason(error), advice) from error


def _reason(error: Exception) -> str:
    if "pickle" in str(error):  # for which NumPy takes all that it does not know, with the advice to execute it
        return "it is none of NumPy's files, or holds Python objects"
    return str(getattr(error, "strerror", None) or error)


def _unreadable(path: Path | str, what: str, reason: str, advice: str) -> InputError:
    return InputError(f"{path}: cannot be read as {what} ({reason}). {advice}")

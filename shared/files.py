"""Files that are either whole or absent: everything is written beside its target and renamed into place."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.errors import UserError

__all__ = ["atomic_folder", "atomic_path", "write_bytes", "write_json", "write_text"]


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path with the same suffix in the same folder; renamed to ``path`` on success, removed on failure.

    Raises:
        UserError: if the folder cannot be written to or the disk is full; says which file it was and that nothing half-written stays.
    """
    path = Path(path)
    temporary = path.parent / f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}). Free some space or choose another folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path | str) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``folder``; takes its place on success (an older one goes), removed on failure.

    Raises:
        UserError: as ``atomic_path``.
    """
    folder = Path(folder)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    retired = temporary.with_name(temporary.name + ".old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            os.replace(folder, retired)
        os.replace(temporary, folder)
    except OSError as error:
        if retired.exists() and not folder.exists():
            os.replace(retired, folder)
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}). Free some space or choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """``content`` as a file; errors as ``atomic_path``."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, content: str) -> None:
    """``content`` as a UTF-8 file; errors as ``atomic_path``."""
    write_bytes(path, content.encode())


def write_json(path: Path | str, content: Any) -> None:
    """``content`` as indented JSON; non-finite numbers are refused, because they are not JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

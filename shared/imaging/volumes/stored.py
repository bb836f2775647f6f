"""The files of a folder, a list or a zip archive, each read when it is asked for; an archive is never unpacked to the disk."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.limits import opened
from shared.imaging.volumes.formats import printable
from shared.imaging.volumes.limits import VolumeLimits

__all__ = ["StoredFile", "stored_files"]


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One of several files."""

    name: str
    """Below the folder or in the archive, "/" between folders."""
    read: Callable[[], bytes]
    """The whole content; raises InputError if it cannot be read."""
    head: Callable[[int], bytes]
    """The first so many bytes."""
    path: Path | None = None
    """Where it lies, if it is a file of its own."""


@contextmanager
def stored_files(source: Path | bytes | Sequence[Path], *, name: str, limits: VolumeLimits) -> Iterator[list[StoredFile]]:
    """The files of a folder and its sub-folders, of a zip archive, or those listed; nothing hidden.

    Raises:
        InputError: if there are none, too many or too large ones, or the archive is damaged or has a password.
    """
    with ExitStack() as stack:
        if isinstance(source, bytes) or (isinstance(source, Path) and not source.is_dir()):
            files = _members(source, stack, name, limits)
        else:
            files = _on_disk(source, name, limits)
        if not files:
            raise InputError(f"{name}: holds no files. Check that it is the right one.")
        if len(files) > limits.files:
            raise InputError(f"{name}: holds {len(files):,} files, but at most {limits.files:,} are read. Give the files of one series.")
        yield files


def _on_disk(source: Path | Sequence[Path], name: str, limits: VolumeLimits) -> list[StoredFile]:
    if isinstance(source, Path):
        found = [(path, path.relative_to(source).as_posix()) for path in islice(_walk(source, name), limits.files + 1)]
    else:
        found = [(path, path.name) for path in source]
    total = 0
    for path, _ in found:
        try:
            total += path.stat().st_size
        except OSError:  # reading it will say what is wrong
            continue
        _check_total(total, name, limits)
    return [StoredFile(name=below, read=partial(_read, path), head=partial(_head, path), path=path) for path, below in found]


def _walk(folder: Path, name: str) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise InputError(f"{name}: this folder cannot be read ({error.strerror or error}). Change its permissions.") from error

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(below for below in folders if not _hidden(below))
        yield from (Path(parent, file) for file in sorted(files) if not _hidden(file))


def _members(source: Path | bytes, stack: ExitStack, name: str, limits: VolumeLimits) -> list[StoredFile]:
    file = stack.enter_context(opened(source, name=name))
    with decoding(name, "a zip archive"):
        archive = stack.enter_context(zipfile.ZipFile(file))
        infos = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
        if any(info.flag_bits & 0x1 for info in infos):
            raise InputError(f"{name}: is protected by a password. Unpack it and give the folder.")
        if any(stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) for info in infos):
            raise InputError(f"{name}: holds links or devices. Pack the files themselves.")
        _check_total(sum(info.file_size for info in infos), name, limits)
    infos.sort(key=lambda info: info.filename)
    return [
        StoredFile(
            name=_called(info),
            read=partial(_member, archive, info, name, None),
            head=partial(_member, archive, info, name),
        )
        for info in infos
    ]


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, count: int | None) -> bytes:
    """At most what the archive's list announces: zipfile reads no further, and checks the checksum at the end."""
    with decoding(f"{name} ({_called(info)})", "a member of a zip archive"), archive.open(info) as file:
        return file.read(-1 if count is None else count)


def _called(info: zipfile.ZipInfo) -> str:
    return printable(info.filename.replace("\\", "/"), longest=300)


def _read(path: Path) -> bytes:
    with opened(path, name=str(path)) as file:
        return file.read()


def _head(path: Path, count: int) -> bytes:
    with opened(path, name=str(path)) as file:
        return file.read(count)


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _check_total(size: int, name: str, limits: VolumeLimits) -> None:
    if size > limits.bytes:
        raise InputError(
            f"{name}: its files have more than {limits.bytes / 2**30:,.3g} GiB together, the limit. Give the files of one series, or raise "
            "the limit on bytes."
        )

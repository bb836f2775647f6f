"""Unpacks zip and tar archives from strangers: nothing lands outside the folder, nothing is overwritten, nothing swells without limit."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from shared.errors import UserError

__all__ = ["ArchiveError", "check_space", "extract"]

_MAX_MEMBERS = 1_000_000
_MAX_EXPANSION = 100
"""Unpacked size over archive size. Images hardly shrink; bitmaps of masks do, by up to about 50 over a whole archive."""
_EXPANSION_FLOOR = 100 * 2**20
"""Bytes that any archive may unpack to, however small it is."""


class ArchiveError(UserError):
    """The archive itself is at fault: damaged, unsafe, or of a kind that is not unpacked here."""


def extract(archive: Path, folder: Path) -> None:
    """Unpacks every regular file of a zip or tar (plain, gz, bz2, xz) archive into ``folder``, which must exist.

    macOS's resource files (``__MACOSX``, ``._*``, ``.DS_Store``) are left out.

    Raises:
        ArchiveError: if it is of another kind, damaged, encrypted or unsafe (a path that leaves the folder, a link, a device, two members
            of one name, a size out of all proportion); says which member, and what to do. What was unpacked so far stays in ``folder``.
        UserError: if it does not fit on the disk.
    """
    limit = archive.stat().st_size * _MAX_EXPANSION + _EXPANSION_FLOOR
    with _opened(archive) as members:
        if isinstance(members, list):  # a zip archive lists its members up front
            declared = sum(member.size for member in members)
            _check_expansion(archive, declared, limit)
            check_space(folder, declared, f"unpacking {archive.name}")
        total = 0
        seen: set[str] = set()
        for count, member in enumerate(members, start=1):
            if count > _MAX_MEMBERS:
                raise _unsafe(archive, f"it has more than {_MAX_MEMBERS:,} members")
            name = _safe_name(archive, member)
            if member.is_folder or _is_litter(name):
                continue
            if name.as_posix().casefold() in seen:
                raise _unsafe(archive, f"two members are called {member.name!r}, one would overwrite the other")
            seen.add(name.as_posix().casefold())
            total += member.size
            _check_expansion(archive, total, limit)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, open(target, "xb") as file:
                _copy(source, file, member.size, archive, member.name)
        if not seen:
            raise ArchiveError(f"{archive}: holds no files. Download it again, or check that it is the right archive.")


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises UserError if the disk of ``folder`` has less than ``needed`` bytes free."""
    standing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(standing).free
    if free < needed:
        raise UserError(
            f"{folder}: {what} needs about {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free. "
            "Free some space, or choose a folder on another disk with --root."
        )


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    size: int
    is_folder: bool
    is_regular: bool
    open: Callable[[], IO[bytes]]


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[_Member]]:
    with open(path, "rb") as file:
        start = file.read(512)
    again = f"It has {path.stat().st_size:,} bytes here: compare that with the publisher's figure, and download it again."
    try:
        # Asked for its first bytes too, because a tar archive that ends with a zip file looks like a zip archive from its end.
        if start.startswith(b"PK") and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as bag:
                if any(info.flag_bits & 0x1 for info in bag.infolist()):
                    raise ArchiveError(f"{path}: is protected by a password. Unpack it yourself and pass the folder with --archive.")
                yield [_zip_member(bag, info) for info in bag.infolist()]
        elif start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            raise ArchiveError(f"{path}: is the beginning of a zip archive; its end is missing. {again}")
        elif start.startswith((b"Rar!", b"7z\xbc\xaf\x27\x1c")):
            raise ArchiveError(
                f"{path}: RAR and 7z archives are not unpacked here. Unpack it (7-Zip, unar) and pass the folder with --archive."
            )
        elif start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            raise ArchiveError(
                f"{path}: is a web page, not an archive: the server probably asked for a login or a confirmation. "
                "Download the file in a browser and pass it with --archive."
            )
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                yield _tar_members(tar)
        else:
            raise ArchiveError(f"{path}: is neither a zip nor a tar archive. {again}")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"{path}: is damaged ({error}). {again}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ArchiveError(
            f"{path}: is damaged ({error}). {again}"
        ) from error  # gzip and bz2 report bad data as an OSError without a number


def _zip_member(bag: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return _Member(
        # ZipInfo.filename has been cleaned for this system; the name as it stands in the archive is what must be judged.
        name=info.orig_filename,
        size=info.file_size,
        is_folder=info.is_dir(),
        is_regular=kind in (0, stat.S_IFREG),
        open=lambda: bag.open(info),
    )


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    def content() -> IO[bytes]:
        file = tar.extractfile(info)
        assert file is not None  # true of regular files, and only those are opened
        return file

    return _Member(name=info.name, size=info.size, is_folder=info.isdir(), is_regular=info.isreg(), open=content)


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        yield _tar_member(tar, info)
    # The checksum of gzip, bz2 and xz stands at the very end, which reading the members does not reach.
    while tar.fileobj is not None and tar.fileobj.read(1 << 20):
        pass


def _safe_name(archive: Path, member: _Member) -> PurePosixPath:
    name = member.name.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]) or "\0" in name:
        raise _unsafe(archive, f"its member {member.name!r} would be written outside the folder")
    if not member.is_folder and not member.is_regular:
        raise _unsafe(archive, f"its member {member.name!r} is a link or a device, not a file")
    return path


def _is_litter(name: PurePosixPath) -> bool:
    return "__MACOSX" in name.parts or name.name.startswith("._") or name.name == ".DS_Store"


def _copy(source: IO[bytes], target: IO[bytes], size: int, archive: Path, member: str) -> None:
    written = 0
    while block := source.read(1 << 20):
        written += len(block)
        if written > size:
            raise _unsafe(archive, f"its member {member!r} is larger than it claims")
        target.write(block)
    if written < size:
        raise EOFError(f"member {member!r} ends after {written:,} of {size:,} bytes")


def _check_expansion(archive: Path, unpacked: int, limit: int) -> None:
    if unpacked > limit:
        size = archive.stat().st_size
        raise _unsafe(archive, f"it would unpack to {unpacked / 1e6:,.0f} MB or more, out of all proportion to its {size / 1e6:,.1f} MB")


def _unsafe(archive: Path, why: str) -> ArchiveError:
    return ArchiveError(f"{archive}: was not unpacked, because {why}. Do not trust this file; get it from the publisher.")

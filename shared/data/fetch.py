"""Gets a public data set: downloads it (or takes the file a person downloaded), checks, unpacks, and brings it into one layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from shared.data.archives import ArchiveError, check_space, extract
from shared.data.checksums import PROVENANCE, write_listing
from shared.data.download import Retry, download, sha256_of
from shared.data.manifest import Archive, Manifest, load
from shared.data.pairing import place
from shared.errors import UserError
from shared.files import atomic_folder, write_json

__all__ = ["fetch"]


def fetch(name: str | Path, *, root: Path, archive: Path | None = None, mirror: str | None = None, retry: Retry | None = None) -> Path:
    """Makes ``root/<name>`` with ``images/`` and ``masks/`` (or ``<split>/images`` and ``<split>/masks``), whole or not at all.

    Beside them stand ``provenance.json`` (where from, when, checksums, terms) and ``sha256sums.txt`` (every file; see ``verify``). Where
    the publisher names no checksum, that of the first fetch is written to ``root/<name>.lock.json`` and later fetches must match it.
    A download that was cut off goes on where it stopped. If the data set is already there, nothing is done.

    Args:
        name: name of a data set, or the path of a manifest.
        root: folder of the data sets; made if it is not there.
        archive: file or unpacked folder that a person downloaded; nothing is downloaded then. It is left as it is.
        mirror: address of a folder on another server that holds the archives under their own names.
        retry: when to give up on a server.

    Returns:
        The folder of the data set.

    Raises:
        UserError: if the data set is unknown, has to be downloaded by a person, cannot be had, has the wrong checksum or number of pairs,
            is unsafe or damaged, or does not fit on the disk.
    """
    manifest = load(name)
    root = Path(root)
    folder = root / manifest.name
    if manifest.in_place:
        page = manifest.archives[0].url or manifest.homepage
        raise UserError(
            f"{manifest.title} is used where it lies.\n  where: {page}\n  how:   {manifest.in_place}\n  terms: {manifest.terms}"
        )
    _check_options(manifest, archive, mirror)
    if _is_there(folder):
        return folder
    downloads = root / ".downloads" / manifest.name
    try:
        downloads.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}). Choose another folder with --root.") from error
    with _alone(downloads, manifest):
        if _is_there(folder):  # another process has just fetched it
            return folder
        _remove_leftovers(folder)
        lock = _read_lock(root, manifest)
        if archive is not None:
            sources = [_take(manifest, archive, lock)]
        else:
            sources = [_get(manifest, entry, downloads, mirror, lock, retry) for entry in manifest.archives]
        with atomic_folder(folder) as temporary:
            _unpack(manifest, sources, temporary)
        _write_lock(root, manifest, sources, lock)
        shutil.rmtree(downloads, ignore_errors=True)
    return folder


_CONSOLE = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Something to unpack, and what is known of it."""

    path: Path
    file: str
    """Name in the manifest."""
    origin: str
    """The address, or how else it came here."""
    sha256: str | None
    bytes: int | None
    checked: str
    """Against what the checksum was held."""
    downloaded: bool
    """Whether it is ours to delete."""


def _check_options(manifest: Manifest, archive: Path | None, mirror: str | None) -> None:
    if archive is not None and mirror is not None:
        raise UserError("--archive and --mirror exclude each other: with --archive nothing is downloaded.")
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise UserError(f"--mirror must start with http:// or https://, found {mirror!r}. For a file on this machine use --archive.")
    if archive is not None and not archive.exists():
        raise UserError(
            f"{archive}: there is no such file or folder. Pass the archive of {manifest.title} that you downloaded with --archive."
        )
    if archive is not None and archive.is_file() and len(manifest.archives) > 1:
        files = ", ".join(entry.file for entry in manifest.archives)
        raise UserError(f"{manifest.name} comes in {len(manifest.archives)} archives ({files}). Unpack them into one folder and pass that.")


def _is_there(folder: Path) -> bool:
    if (folder / PROVENANCE).is_file():
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is in the way and was not made by `data fetch`. Move it, or choose another folder with --root.")
    return False


@contextmanager
def _alone(downloads: Path, manifest: Manifest) -> Iterator[None]:
    try:
        with FileLock(downloads.with_name(f"{manifest.name}.lock"), timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"{manifest.name}: another process is fetching it into {downloads.parents[1]}. Wait for it to end.") from error


def _remove_leftovers(folder: Path) -> None:
    """What a killed fetch had unpacked so far; its download is kept."""
    for path in folder.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}", path.name):
            shutil.rmtree(path)


def _take(manifest: Manifest, archive: Path, lock: dict[str, str]) -> _Source:
    entry = manifest.archives[0]
    origin = f"given by hand: {archive.name}"
    if archive.is_dir():
        files = ", ".join(entry.file for entry in manifest.archives)
        return _Source(
            path=archive, file=files, origin=origin, sha256=None, bytes=None, checked="unpacked by hand: not known", downloaded=False
        )
    size = archive.stat().st_size
    if entry.bytes is not None and size != entry.bytes:
        raise UserError(f"{archive}: has {size:,} bytes, the manifest expects {entry.bytes:,}. Download it again.")
    found = sha256_of(archive)
    if entry.sha256 is not None and found != entry.sha256:
        raise UserError(f"{archive}: has SHA-256 {found}, the manifest expects {entry.sha256}. Download it again.")
    checked = _checked(manifest, entry, found, lock, archive)
    return _Source(path=archive, file=entry.file, origin=origin, sha256=found, bytes=size, checked=checked, downloaded=False)


def _get(manifest: Manifest, entry: Archive, downloads: Path, mirror: str | None, lock: dict[str, str], retry: Retry | None) -> _Source:
    page = entry.url if entry.how == "manual" and entry.url else manifest.homepage
    if mirror is not None:
        url = f"{mirror.rstrip('/')}/{entry.file}"
    elif entry.how == "direct" and entry.url is not None:
        url = entry.url
    else:
        raise UserError(
            f"{manifest.title} has to be downloaded by a person.\n  where: {page}\n  how:   {entry.note}\n  terms: {manifest.terms}\n"
            f"Then run: data fetch {manifest.name} --archive FILE_OR_FOLDER"
        )
    target = downloads / entry.file
    if target.exists():
        found = sha256_of(target)  # whole, but an earlier run ended before it was unpacked
    else:
        if manifest.size_mb is not None:
            check_space(downloads, int(manifest.size_mb * 2e6), f"downloading and unpacking {manifest.name}")
        by_hand = f"You can also download it in a browser (start at {page}) and run: data fetch {manifest.name} --archive FILE"
        found = download(url, target, sha256=entry.sha256, size=entry.bytes, by_hand=by_hand, retry=retry)
    checked = _checked(manifest, entry, found, lock, target)
    return _Source(path=target, file=entry.file, origin=url, sha256=found, bytes=target.stat().st_size, checked=checked, downloaded=True)


def _checked(manifest: Manifest, entry: Archive, found: str, lock: dict[str, str], path: Path) -> str:
    if entry.sha256 is not None:
        return "as in the manifest"
    if entry.file not in lock:
        _CONSOLE.print(
            f"{entry.file}: the manifest names no checksum. Trusting what came this time (SHA-256 {found}); "
            f"it is kept in {manifest.name}.lock.json, and later fetches must match it.",
            markup=False,
            highlight=False,
        )
        return "trusted on first use"
    if lock[entry.file] != found:
        raise UserError(
            f"{path}: has SHA-256 {found}, but the first fetch had {lock[entry.file]}. The publisher changed the file, or one of the two "
            f"was damaged. If you trust the new one, delete {manifest.name}.lock.json beside the data set and try again."
        )
    return "same as at the first fetch"


def _unpack(manifest: Manifest, sources: list[_Source], folder: Path) -> None:
    unpacked = folder / ".unpacked"
    unpacked.mkdir()
    for source in sources:
        if source.path.is_dir():
            check_space(folder, sum(path.stat().st_size for path in source.path.rglob("*") if path.is_file()), f"copying {source.path}")
            placed = place(manifest, source.path, folder, move=False)
            break
        _CONSOLE.print(f"unpacking {source.file}", markup=False, highlight=False)
        try:
            extract(source.path, unpacked)
        except ArchiveError:
            if source.downloaded:
                source.path.unlink()  # or the next call would take it up again
            raise
    else:
        placed = place(manifest, unpacked, folder, move=True)
    shutil.rmtree(unpacked)
    if placed.unpaired:
        shown = ", ".join(placed.unpaired[:5]) + (", ..." if len(placed.unpaired) > 5 else "")
        _CONSOLE.print(f"left out {len(placed.unpaired)} files without a partner: {shown}", markup=False, highlight=False)
    write_listing(folder)
    described = ("file", "origin", "sha256", "bytes", "checked")
    write_json(
        folder / PROVENANCE,
        {
            "dataset": manifest.name,
            "title": manifest.title,
            "homepage": manifest.homepage,
            "terms": manifest.terms,
            "citation": manifest.citation,
            "manifest_sha256": manifest.sha256,
            "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
            "pairs": placed.pairs,
            "unpaired": placed.unpaired,
            "archives": [{key: value for key, value in asdict(source).items() if key in described} for source in sources],
        },
    )


def _lock_path(root: Path, manifest: Manifest) -> Path:
    return root / f"{manifest.name}.lock.json"


def _read_lock(root: Path, manifest: Manifest) -> dict[str, str]:
    """File name -> SHA-256 seen at the first fetch."""
    path = _lock_path(root, manifest)
    if not path.exists():
        return {}
    try:
        lock = json.loads(path.read_text())
        return {str(file): str(digest) for file, digest in lock["sha256"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read. Delete it to trust the next fetch as if it were the first.") from error


def _write_lock(root: Path, manifest: Manifest, sources: list[_Source], lock: dict[str, str]) -> None:
    new = {source.file: source.sha256 for source in sources if source.sha256 is not None}
    if new.items() - lock.items():
        write_json(_lock_path(root, manifest), {"dataset": manifest.name, "sha256": lock | new})

"""The listing of a fetched data set, and checking the files against it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from shared.data.download import sha256_of
from shared.errors import UserError
from shared.files import write_text

__all__ = ["LISTING", "PROVENANCE", "Verification", "verify", "write_listing"]

LISTING = "sha256sums.txt"
"""In the format of ``sha256sum``, so that ``sha256sum -c sha256sums.txt`` checks it too."""
PROVENANCE = "provenance.json"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What stands in a data set's folder, compared with what was fetched. Paths are relative to the folder."""

    folder: Path
    listed: int
    """Number of files in the listing."""
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every file is there and unchanged, and there are no others."""
        return not (self.missing or self.changed or self.extra)


def write_listing(folder: Path) -> None:
    """Writes the SHA-256 of every file under ``folder`` into its listing."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in track(_files(folder), "checksums", console=_CONSOLE, transient=True)]
    write_text(folder / LISTING, "".join(lines))


def verify(name: str, root: Path) -> Verification:
    """Compares the files of ``root/name`` with the listing made when the data set was fetched.

    Raises:
        UserError: if the data set is not there or has no readable listing.
    """
    folder = root / name
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder. Fetch the data set first: data fetch {name} --root {root}")
    try:
        lines = (folder / LISTING).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{folder / LISTING}: cannot be read, so there is nothing to compare with. Move {folder} away and fetch the data set again."
        ) from error
    expected: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        digest, separator, path = line.partition("  ")
        if len(digest) != 64 or not separator or not path:
            raise UserError(f"{folder / LISTING}: line {number} is not 'SHA-256, two spaces, path'. Move {folder} away and fetch it again.")
        expected[path] = digest
    there = set(_files(folder))
    common = sorted(there & set(expected))
    return Verification(
        folder=folder,
        listed=len(expected),
        missing=sorted(set(expected) - there),
        changed=[
            path
            for path in track(common, f"verifying {name}", console=_CONSOLE, transient=True)
            if sha256_of(folder / path) != expected[path]
        ],
        extra=sorted(there - set(expected)),
    )


_CONSOLE = Console(stderr=True)


def _files(folder: Path) -> list[str]:
    own = {LISTING, PROVENANCE}
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path not in own)

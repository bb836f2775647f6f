"""Finds the input files that a person means by files, folders and patterns, and names their results so that none overwrites another's."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from shared.errors import UserError
from shared.imaging.formats import DICOM_MARK, DICOM_SUFFIXES

__all__ = ["InputFile", "files_below", "find_inputs", "suffix_of"]


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file to read, and what its results are called."""

    path: Path
    stem: str
    """Relative path without suffix, "/" between folders, unique among the inputs even where upper and lower case are the same."""


def find_inputs(paths: Sequence[Path | str], *, suffixes: frozenset[str]) -> list[InputFile]:
    """The files that ``paths`` mean, each once, in the order given and sorted within a folder or pattern.

    A file is taken whatever its suffix. A folder is searched with all its sub-folders (links to folders included) for files with one of the
    suffixes, hidden ones left out; if DICOM is wanted, also for DICOM files without a suffix. A pattern (``*``, ``?``, ``[...]``, ``**``)
    stands for the files with one of the suffixes, and the folders, that match it.

    The stem is the path below the given folder, or below the fixed beginning of the pattern, and only the name for a file. Where two inputs
    would share one, it tells them apart by suffix ("1_png", "1_jpg"), else by the folders in which they differ ("a/1", "b/1").

    Args:
        paths: files, folders and patterns.
        suffixes: in lower case with the dot; may have two dots (".nii.gz").

    Raises:
        UserError: if nothing was given, a path does not exist, or a folder or pattern yields no file; says what was looked for.
    """
    if not paths:
        raise UserError("no input was given. Name a file, a folder, or a pattern such as 'frames/*.png'.")
    found: dict[Path, str] = {}
    for given in paths:
        for path, below in _expand(Path(given), suffixes):
            found.setdefault(path, below)
    unique: dict[str, tuple[Path, str]] = {}
    for path, below in found.items():
        unique.setdefault(os.path.realpath(path), (path, below))
    return _named(list(unique.values()), suffixes)


def files_below(folder: Path, *, suffixes: frozenset[str]) -> list[Path]:
    """The fitting files of a folder and its sub-folders, sorted; nothing hidden.

    Raises:
        UserError: if a folder may not be read.
    """
    return sorted((path for path in _walk(folder) if _fits(path, suffixes)), key=lambda path: path.parts)


def suffix_of(path: PurePath, suffixes: Iterable[str]) -> str:
    """The longest of these suffixes that the file has, as written in its name; "" if none."""
    fitting = [suffix for suffix in suffixes if path.name.lower().endswith(suffix)]
    return path.name[-len(max(fitting, key=len)) :] if fitting else ""


def _expand(given: Path, suffixes: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """Each file that is meant, with its path below what was given."""
    if given.is_dir():
        files = files_below(given, suffixes=suffixes)
        if not files:
            raise UserError(f"{given}: this folder has {_no_fitting(_walk(given), suffixes)}")
        yield from ((file, file.relative_to(given).as_posix()) for file in files)
    elif os.path.lexists(given):
        yield given, given.name
    elif glob.has_magic(str(given)):
        yield from _matches(given, suffixes)
    else:
        parent = next(folder for folder in given.parents if folder.exists())
        raise UserError(
            f"{given}: there is no such file or folder ({parent} exists, the rest does not). Check the path for a typing error."
        )


def _matches(pattern: Path, suffixes: frozenset[str]) -> Iterator[tuple[Path, str]]:
    fixed = Path(*pattern.parts[: next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))])
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (Path.glob finds hidden files)
    files = [file for match in matches for file in (files_below(match, suffixes=suffixes) if match.is_dir() else [match])]
    fitting = [file for file in files if _fits(file, suffixes)]
    if not fitting:
        found = f"matches {_no_fitting(files, suffixes)}" if matches else "nothing matches this pattern. Check it, and put it in quotes."
        raise UserError(f"{pattern}: {found}")
    for file in fitting:
        below = os.path.normpath(file.relative_to(fixed))
        yield file, file.name if below.startswith("..") else Path(below).as_posix()


def _no_fitting(files: Iterable[Path], suffixes: frozenset[str]) -> str:
    others = sorted(path.name for path in files)
    looked_for = f"{', '.join(sorted(suffixes))} were looked for"
    if not others:
        return f"no files at all ({looked_for}). Check that it is the right one."
    examples = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return f"{len(others)} files, but none of the right kind ({looked_for}; found: {examples}). Check that it is the right one."


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below that is not hidden; follows links to folders, each folder once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"{error.filename}: this folder cannot be read ({error.strerror}). Change its permissions, or choose another."
    ) from error


def _fits(path: Path, suffixes: frozenset[str]) -> bool:
    if suffix_of(path, suffixes):
        return path.is_file()
    return bool(suffixes & DICOM_SUFFIXES) and _is_bare_dicom(path)


def _is_bare_dicom(path: Path) -> bool:
    """Archives export DICOM as IM000001 or as a UID ("1.2.840.113619.2"); DICOMDIR is the list of contents beside them."""
    if (path.suffix and not path.suffix[1:].isdigit()) or path.name == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return file.read(DICOM_MARK.stop)[DICOM_MARK] == b"DICM"
    except OSError:
        return False


def _named(found: list[tuple[Path, str]], suffixes: frozenset[str]) -> list[InputFile]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, (path, below) in enumerate(found):
        groups[_bare(below, path, suffixes).casefold()].append(index)
    common = os.path.commonpath([path.parent.resolve() for path, _ in found])
    stems: dict[int, str] = {}
    taken: set[str] = set()
    for group in sorted(groups.values(), key=len):  # stable: inputs without a rival keep their name
        members = [found[index] for index in group]
        for names in _attempts(members, common, suffixes):
            folded = {name.casefold() for name in names}
            if len(folded) == len(names) and not folded & taken:
                break
        stems.update(zip(group, names, strict=True))
        taken |= folded
    return [InputFile(path=path, stem=stems[index]) for index, (path, _) in enumerate(found)]


def _attempts(members: list[tuple[Path, str]], common: str, suffixes: frozenset[str]) -> Iterator[list[str]]:
    """Ever longer names for inputs that would share one."""
    short = [_bare(below, path, suffixes) for path, below in members]
    full = [_bare((path.parent.resolve() / path.name).relative_to(common).as_posix(), path, suffixes) for path, _ in members]
    endings = [(suffix_of(path, suffixes) or path.suffix).replace(".", "_") for path, _ in members]
    yield short
    yield [name + ending for name, ending in zip(short, endings, strict=True)]
    yield full
    yield [name + ending for name, ending in zip(full, endings, strict=True)]
    attempt = 2
    while True:
        yield [f"{name}{ending}_{number}" for number, (name, ending) in enumerate(zip(full, endings, strict=True), start=attempt)]
        attempt += len(members)


def _bare(below: str, path: Path, suffixes: frozenset[str]) -> str:
    """Without the suffix if it is a known one; else the whole name, because "1.2.840.113" has none."""
    suffix = suffix_of(path, suffixes)
    return below[: -len(suffix)] if suffix and len(suffix) < len(path.name) else below

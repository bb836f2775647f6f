"""Finds the slides that a person means by files, folders and patterns: each once, however many files it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shared.errors import UserError
from shared.imaging.formats import DICOM_SUFFIXES
from shared.imaging.slides.dicom_series import is_dicom, slides_among
from shared.imaging.sources import InputFile, find_inputs

__all__ = ["SLIDE_SUFFIXES", "find_slides"]

SLIDE_SUFFIXES = DICOM_SUFFIXES | {
    ".bif",
    ".btf",
    ".czi",
    ".mrxs",
    ".ndpi",
    ".ome.tif",
    ".ome.tiff",
    ".qptiff",
    ".scn",
    ".svs",
    ".svslide",
    ".tif",
    ".tiff",
    ".vms",
    ".vmu",
}
"""File name endings that are looked for in folders. A file that is named is opened whatever its ending."""


def find_slides(paths: Sequence[Path | str], *, suffixes: frozenset[str] = SLIDE_SUFFIXES) -> list[InputFile]:
    """As ``find_inputs``; of a DICOM slide's many files the largest level stands for all, under its folder's name if it is alone there.

    DICOM labels, overviews, thumbnails, annotations and segmentations in a folder are not slides; one that is named itself is kept, so that
    opening it says what it is.

    Args:
        paths: files, folders and patterns.
        suffixes: what is looked for in folders; may hold endings of other files besides those of slides.

    Raises:
        UserError: as ``find_inputs``, or if a folder holds nothing but such companions.
    """
    found = find_inputs(paths, suffixes=suffixes)
    named = {Path(path).absolute() for path in paths if Path(path).is_file()}
    dicom = [file for file in found if is_dicom(file.path)]
    slides = slides_among(file.path for file in dicom if file.path.absolute() not in named)
    dropped = {file.path for file in dicom if file.path.absolute() not in named and file.path not in slides}
    kept = [file for file in found if file.path not in dropped]
    if not kept:
        raise UserError(f"{paths[0]}: holds DICOM files, but none is a level of a whole slide. Check that it is the right folder.")
    folders = Counter(file.path.parent for file in kept)
    taken = {file.stem.casefold() for file in kept}
    return [_by_folder(file, taken) if file.path in slides and folders[file.path.parent] == 1 else file for file in kept]


def _by_folder(file: InputFile, taken: set[str]) -> InputFile:
    """A series alone in its folder is called as the folder: its files are called by numbers."""
    parent = Path(file.stem).parent.as_posix()
    name = file.path.parent.resolve().name if parent == "." else parent
    return file if not name or name.casefold() in taken else replace(file, stem=name)

"""Finds the volumes that a person means by files, folders and patterns; a folder with a DICOM series counts as one."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from shared.imaging.formats import DICOM_MARK
from shared.imaging.sources import InputFile, find_inputs
from shared.imaging.volumes.formats import DICOM_SERIES_SUFFIXES, VOLUME_SUFFIXES, volume_suffix

__all__ = ["VOLUME_INPUTS", "find_volumes"]

VOLUME_INPUTS = VOLUME_SUFFIXES | DICOM_SERIES_SUFFIXES
"""Endings of all files that hold a volume or a part of one; what a predictor of volumes reads."""


def find_volumes(paths: Sequence[Path | str], *, suffixes: frozenset[str] = VOLUME_INPUTS) -> list[InputFile]:
    """The volumes that ``paths`` mean, each once, as ``find_inputs``: NIfTI, MetaImage, NRRD and zip files, and DICOM series.

    The DICOM files of one folder become one input, the folder, if there are several and they are single images; a multi-frame object
    stays an input of its own. The stem of a folder is its path below what was given, or its name.

    Raises:
        UserError: as ``find_inputs``.
    """
    files = find_inputs(paths, suffixes=suffixes)
    series: dict[Path, list[InputFile]] = defaultdict(list)
    for file in files:
        if _is_dicom(file.path):
            series[file.path.parent].append(file)
    whole = {folder: members for folder, members in series.items() if len(members) > 1 and not _is_multiframe(members[0].path)}
    taken = {file.stem.casefold() for file in files if file.path.parent not in whole or not _is_dicom(file.path)}
    found: list[InputFile] = []
    for file in files:
        folder = file.path.parent
        if folder not in whole or not _is_dicom(file.path):
            found.append(file)
        elif file is whole[folder][0]:
            stem = next(stem for stem in _stems(folder, file.stem, [other.path for other in files]) if stem.casefold() not in taken)
            taken.add(stem.casefold())
            found.append(InputFile(path=folder, stem=stem))
    return found


def _stems(folder: Path, stem: str, paths: list[Path]) -> Iterator[str]:
    """Ever longer names for a folder, of which the first that is free is taken."""
    parent = str(PurePosixPath(stem).parent)
    short = folder.resolve().name or "dicom" if parent == "." else parent
    yield short
    common = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    below = folder.resolve().relative_to(common).as_posix()
    yield short + "_dicom" if below == "." else below
    number = 2
    while True:
        yield f"{short}_dicom_{number}"
        number += 1


def _is_dicom(path: Path) -> bool:
    if volume_suffix(path.name):
        return False
    if volume_suffix(path.name, DICOM_SERIES_SUFFIXES):
        return True
    try:
        with path.open("rb") as file:
            return file.read(DICOM_MARK.stop)[DICOM_MARK] == b"DICM"
    except OSError:
        return False


def _is_multiframe(path: Path) -> bool:
    """By its header; whatever is damaged or missing is left for the reader to say."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        return int(header.get("NumberOfFrames") or 1) > 1
    except Exception:
        return False

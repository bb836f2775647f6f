"""Several sequences of one examination, one file each, found by their names and read as the channels of one volume."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from shared.errors import InputError
from shared.imaging.formats import HEAD_BYTES
from shared.imaging.limits import opened
from shared.imaging.sources import InputFile
from shared.imaging.volumes.finding import VOLUME_INPUTS, find_volumes
from shared.imaging.volumes.formats import VOLUME_SUFFIXES, recognise, volume_suffix
from shared.imaging.volumes.limits import VolumeLimits
from shared.imaging.volumes.reading import read_volume
from shared.imaging.volumes.stored import stored_files
from shared.imaging.volumes.volume import Volume, check_same_grid

__all__ = ["BRATS", "MSD_BRAIN_TUMOUR", "Case", "Modalities", "find_cases", "read_case"]

Modalities = Mapping[str, Sequence[str]]
"""The sequences that a model takes, in the order of its channels, and the words that stand for each in file names (lower case)."""

BRATS: Modalities = {
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
}
"""As BraTS names them, until 2021 (patient_t1ce.nii.gz) and since (patient-t1c.nii.gz)."""

MSD_BRAIN_TUMOUR = ("flair", "t1", "t1ce", "t2")
"""The channels of a file of the Medical Segmentation Decathlon, task 1."""

File = TypeVar("File")

_SEPARATORS = re.compile(r"[^0-9A-Za-z]+")


@dataclass(frozen=True, kw_only=True)
class Case(InputFile):
    """One examination. ``path`` is what ``read_case`` takes: a folder with this case alone, or one of its files."""

    files: Mapping[str, Path]
    """By modality, in the order of the model; empty for a single file that holds them all."""
    missing: tuple[str, ...] = ()
    """Modalities without a file."""


def find_cases(paths: Sequence[Path | str], *, modalities: Modalities = BRATS, suffixes: frozenset[str] = VOLUME_INPUTS) -> list[Case]:
    """The examinations that ``paths`` mean; incomplete ones too, so that a batch can say what is missing and go on.

    Files of one folder whose names differ only in the word for the modality belong together: ``a_t1.nii.gz`` and ``a_flair.nii.gz``, or the
    DICOM folders ``a/T1`` and ``a/FLAIR``. Where a folder has such files, others in it (labels, masks) are left out; where it has none,
    each volume is a case with all modalities as its channels.

    Raises:
        UserError: as ``find_volumes``.
    """
    inputs = find_volumes(paths, suffixes=suffixes)
    cases: dict[tuple[Path, str], Case] = {}
    alone: list[InputFile] = []
    folders: dict[Path, dict[str, dict[str, Path]]] = {}
    for file in inputs:
        modality, rest = _split(file.path.name, modalities)
        folder = file.path.parent
        if modality is None:
            alone.append(file)
        elif (folder, rest) not in cases:
            groups = folders.setdefault(folder, _grouped([(path.name, path) for path in _volumes_in(folder)], modalities))
            cases[folder, rest] = _case(file, groups[rest], modalities, rest, only=len(groups) == 1)
    cases |= {(file.path, ""): Case(path=file.path, stem=file.stem, files={}) for file in alone if file.path.parent not in folders}
    order = {file.path: index for index, file in enumerate(inputs)}
    found = sorted(cases.values(), key=lambda case: min(order.get(path, len(order)) for path in [case.path, *case.files.values()]))
    return _distinct(found)


def read_case(
    source: Path | str | bytes,
    *,
    modalities: Modalities = BRATS,
    channels: Sequence[str] | None = None,
    name: str | None = None,
    limits: VolumeLimits = VolumeLimits(),  # noqa: B008 (frozen)
) -> Volume:
    """All modalities of one examination as [C, X, Y, Z] float32, in the order of ``modalities``, on the grid of the first.

    Args:
        source: a folder with one case, one of the files of a case (its siblings are found), a zip archive of the files, or one volume with
            a channel for each modality; a path, or the content of a file.
        modalities: what the model takes.
        channels: the order in which a volume with channels holds them; that of ``modalities`` by default.
        name: what messages call it.
        limits: what is refused before it is decoded.

    Raises:
        InputError: if a modality is missing or there twice, the grids differ, or as ``read_volume``.
    """
    source = Path(source) if isinstance(source, str) else source
    name = name or ("the case" if isinstance(source, bytes) else str(source))
    parts = _parts(source, modalities, name, limits)
    if parts is None:
        return _channels(read_volume(source, name=name, limits=limits), modalities, channels)
    missing = [modality for modality in modalities if modality not in parts]
    if missing:
        found = [modality for modality in modalities if modality in parts]
        raise InputError(_missing(name, missing, found, modalities))
    volumes = [read_volume(parts[modality], name=f"{name} ({modality})", limits=limits) for modality in modalities]
    for volume in volumes:
        if volume.values.ndim != 3:
            raise InputError(f"{volume.name}: has {len(volume.values)} channels, and a file for one modality has one. Split it.")
        check_same_grid(volume, replace(volumes[0], name=next(iter(modalities))))
    notes = tuple(f"{modality}: {note}" for modality, volume in zip(modalities, volumes, strict=True) for note in volume.notes)
    stacked = np.stack([volume.values for volume in volumes])
    return Volume(values=stacked, affine=volumes[0].affine, name=name, source=volumes[0].source, notes=notes)


def _case(first: InputFile, members: Mapping[str, Path], modalities: Modalities, rest: str, *, only: bool) -> Case:
    files = {modality: members[modality] for modality in modalities if modality in members}
    folder = str(PurePosixPath(first.stem).parent)
    stem = folder if only and folder != "." else str(PurePosixPath(folder, rest or first.path.parent.resolve().name))
    missing = tuple(modality for modality in modalities if modality not in files)
    return Case(path=first.path.parent if only else next(iter(files.values())), stem=stem, files=files, missing=missing)


def _distinct(cases: list[Case]) -> list[Case]:
    """With a number behind each stem that an earlier case has."""
    taken: set[str] = set()
    result = []
    for case in cases:
        names = chain([case.stem], (f"{case.stem}_{number}" for number in count(2)))
        stem = next(name for name in names if name.casefold() not in taken)
        taken.add(stem.casefold())
        result.append(replace(case, stem=stem))
    return result


def _parts(source: Path | bytes, modalities: Modalities, name: str, limits: VolumeLimits) -> dict[str, Path | bytes] | None:
    """The file of each modality that was found; None if the source is one volume."""
    if isinstance(source, Path) and source.is_dir():
        return dict(_one_case([(path.name, path) for path in _volumes_in(source)], modalities, name)) or None
    if _is_zip(source, name):
        with stored_files(source, name=name, limits=limits) as files:
            fitting = [file for file in files if volume_suffix(file.name, VOLUME_SUFFIXES - {".zip"})]
            volumes = [(PurePosixPath(file.name).name, file) for file in fitting]
            if len(volumes) < 2:
                return None
            return {modality: file.read() for modality, file in _one_case(volumes, modalities, name).items()}
    if isinstance(source, Path):
        modality, rest = _split(source.name, modalities)
        if modality is not None:
            beside = [(path.name, path) for path in _volumes_in(source.parent) if _split(path.name, modalities)[1] == rest]
            return dict(_one_case(beside, modalities, name))
    return None


def _volumes_in(folder: Path) -> list[Path]:
    try:
        below = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: this folder cannot be read ({error.strerror or error}). Change its permissions.") from error
    return [path for path in below if path.is_dir() or volume_suffix(path.name)]


def _grouped(files: Sequence[tuple[str, File]], modalities: Modalities) -> dict[str, dict[str, File]]:
    """By what is left of the name, then by modality; the first of equal ones."""
    groups: dict[str, dict[str, File]] = defaultdict(dict)
    for called, file in files:
        modality, rest = _split(called, modalities)
        if modality is not None:
            groups[rest].setdefault(modality, file)
    return dict(groups)


def _one_case(files: Sequence[tuple[str, File]], modalities: Modalities, name: str) -> dict[str, File]:
    """By modality. Names must differ in nothing else, or two patients might be taken for one."""
    told = [(called, *_split(called, modalities)) for called, _ in files]
    named = [(called, modality, rest) for called, modality, rest in told if modality is not None]
    for called, modality, rest in named:
        if rest != named[0][2]:
            raise InputError(
                f"{name}: holds files of several cases: the names {named[0][0]} and {called} differ in more than the modality. "
                "Put each case into a folder of its own, and name its files alike."
            )
        twin = next(other for other, same, _ in named if same == modality)
        if twin != called:
            raise InputError(f"{name}: has two files for {modality}: {twin} and {called}. Remove one.")
    return next(iter(_grouped(files, modalities).values()), {})


def _channels(volume: Volume, modalities: Modalities, channels: Sequence[str] | None) -> Volume:
    order = list(modalities if channels is None else channels)
    held = len(volume.values) if volume.values.ndim == 4 else 1
    if held != len(order):
        raise InputError(
            f"{volume.name}: has {held} channel{'s' if held > 1 else ''}, and {len(order)} were expected ({', '.join(order)}). Give one "
            "volume with all of them, or a folder with a file for each."
        )
    values = volume.values if volume.values.ndim == 4 else volume.values[None]
    return volume.with_values(np.ascontiguousarray(values[[order.index(modality) for modality in modalities]]))


def _split(name: str, modalities: Modalities) -> tuple[str | None, str]:
    """The modality that a file name tells, and the rest of the name; of several words the last counts."""
    suffix = volume_suffix(name)
    words = [word for word in _SEPARATORS.split(name[: len(name) - len(suffix)]) if word]
    for index in reversed(range(len(words))):
        for modality, names in modalities.items():
            if words[index].lower() in names:
                return modality, "_".join(words[:index] + words[index + 1 :])
    return None, ""


def _missing(name: str, missing: Sequence[str], found: Sequence[str], modalities: Modalities) -> str:
    looked_for = "; ".join(f"{modality}: a file name with the word {' or '.join(modalities[modality])}" for modality in missing)
    return (
        f"{name}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing (found: {', '.join(found)}; looked for {looked_for})."
    )


def _is_zip(source: Path | bytes, name: str) -> bool:
    with opened(source, name=name) as file:
        return recognise(file.read(HEAD_BYTES)) == "ZIP"

"""Labelled volumes: where they lie, how they are divided by patient, and how one is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.data.download import sha256_of
from shared.data.splits import split
from shared.errors import UserError
from shared.imaging.sources import files_below, suffix_of
from shared.imaging.volumes import VOLUME_SUFFIXES, Volume, check_same_grid, find_cases, read_case, read_labels
from shared.segmentation.config import TaskConfig, VolumeDataConfig
from shared.segmentation.labels import Labels

__all__ = ["LabelledVolume", "describe", "divide", "group_of", "labelled_volumes", "read_image", "read_labelled"]

_FOLDERS = (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"), ("images", "labels"), ("images", "masks"))
_LABEL_WORDS = {"seg", "label", "labels", "mask", "segmentation", "gt", "otmulticlass"}
_SEPARATORS = re.compile(r"[^0-9A-Za-z]+")


@dataclass(frozen=True, kw_only=True)
class LabelledVolume:
    """An examination and its label map."""

    name: str
    image: Path
    """What ``read_case`` takes: a file, one of the files of a case, or a folder."""
    labels: Path


def labelled_volumes(root: Path, task: TaskConfig) -> list[LabelledVolume]:
    """The labelled examinations of a folder, sorted by name; says on the terminal what has no partner.

    Two layouts: ``imagesTr/a.nii.gz`` with ``labelsTr/a.nii.gz`` (or imagesTs, images, labels, masks), as the Medical Segmentation
    Decathlon has them; and a folder for each case with a file for each sequence and one whose name says seg, label or mask, as BraTS.

    Raises:
        UserError: if the folder is missing or holds not one labelled examination.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Name one with labelled volumes, or fetch or make some: the verb `data` does both.")
    found = [pair for images, labels in _FOLDERS for pair in _paired(root, images, labels)] or _case_folders(root, task)
    if not found:
        raise UserError(
            f"{root}: holds no labelled volumes. Expected imagesTr/a.nii.gz with labelsTr/a.nii.gz, or a folder for each case with "
            f"{', '.join(f'case_{words[0]}.nii.gz' for words in task.modalities.values())} and case_seg.nii.gz."
        )
    return sorted(found, key=lambda one: one.name)


def read_image(source: Path | bytes, task: TaskConfig, *, name: str | None = None) -> Volume:
    """[C, X, Y, Z] float32, a channel for each modality of the task; errors as ``read_case``."""
    return read_case(source, modalities=task.modalities, channels=task.channels, name=name)


def read_labelled(one: LabelledVolume, labels: Labels) -> tuple[Volume, Volume]:
    """The image [C, X, Y, Z] and its label map [X, Y, Z], uint8, on the same voxels.

    Raises:
        InputError: if one cannot be read, they are not on the same grid, or a value has no meaning.
    """
    image = read_image(one.image, labels.task, name=str(one.image))
    truth = read_labels(one.labels)
    check_same_grid(truth, image)
    labels.check(truth.values, name=str(one.labels))
    return image, truth.with_values(truth.values.astype(np.uint8))


def divide(volumes: Sequence[LabelledVolume], config: VolumeDataConfig, *, seed: int) -> tuple[list[LabelledVolume], list[LabelledVolume]]:
    """Training and validation volumes; those of one patient stay together.

    Raises:
        UserError: if the settings leave a part empty, or there are too few patients.
    """
    names = [one.name for one in volumes]
    groups = [group_of(config.group_pattern, name) for name in names]
    if config.fold is not None:
        if config.fold >= config.folds:
            raise UserError(f"data.fold is {config.fold}, and data.folds {config.folds}: folds are counted from 0.")
        parts = split(names, fractions={str(fold): 1 / config.folds for fold in range(config.folds)}, seed=seed, groups=groups)
        held = set(parts[str(config.fold)])
    else:
        if not 0 < config.validation < 1:
            raise UserError(f"data.validation is {config.validation}, and both parts need volumes: a number between 0 and 1, such as 0.15.")
        fractions = {"train": 1 - config.validation, "validation": config.validation}
        held = set(split(names, fractions=fractions, seed=seed, groups=groups)["validation"])
    return [one for one in volumes if one.name not in held], [one for one in volumes if one.name in held]


def group_of(pattern: str | None, name: str) -> str:
    """The patient by a regular expression with a group; the name itself without one. Raises UserError if it finds no group."""
    if pattern is None:
        return name
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise UserError(f"group_pattern {pattern!r} is not a regular expression: {error}.") from error
    if match is None or not match.groups():
        raise UserError(f"group_pattern {pattern!r} finds no group (in parentheses) in {name!r}.")
    return match[1]


def describe(root: Path, volumes: Sequence[LabelledVolume]) -> dict[str, str]:
    """What a bundle says of its training data: the folder's name, and a checksum over names, images and labels."""
    files = [f"{one.name} {_sum(one.image)} {sha256_of(one.labels)}\n" for one in volumes]
    return {"data": root.resolve().name, "data_sha256": hashlib.sha256("".join(files).encode()).hexdigest()}


def _sum(path: Path) -> str:
    if path.is_dir():
        return " ".join(sha256_of(file) for file in sorted(path.rglob("*")) if file.is_file())
    return sha256_of(path)


def _paired(root: Path, images: str, labels: str) -> list[LabelledVolume]:
    if not ((root / images).is_dir() and (root / labels).is_dir()):
        return []
    sides = [
        {path.relative_to(root / side).as_posix().removesuffix(suffix_of(path, VOLUME_SUFFIXES)): path for path in _volumes(root / side)}
        for side in (images, labels)
    ]
    for side, other, files in ((images, labels, sides[0]), (labels, images, sides[1])):
        for name in sorted(files.keys() - sides[side == images].keys()):
            print(f"left out: {root / side / files[name].name}: {other} has no file of this name")
    return [LabelledVolume(name=name, image=sides[0][name], labels=sides[1][name]) for name in sides[0].keys() & sides[1].keys()]


def _case_folders(root: Path, task: TaskConfig) -> list[LabelledVolume]:
    found = []
    for case in find_cases([root], modalities=task.modalities) if _volumes(root) else []:
        folder = case.path if case.path.is_dir() else case.path.parent
        labels = [path for path in sorted(folder.iterdir()) if _is_label(path)]
        beside = [path for path in labels if len(labels) == 1 or path.name.startswith(Path(case.stem).name)]
        if case.missing:
            print(f"left out: {folder}: {', '.join(case.missing)} {'is' if len(case.missing) == 1 else 'are'} missing")
        elif case.files and len(beside) == 1:
            found.append(LabelledVolume(name=case.stem, image=case.path, labels=beside[0]))
        elif case.files:
            what = f"{len(beside)} label maps" if beside else "no label map"
            print(f"left out: {folder}: holds {what} (a file whose name says seg, label or mask)")
    return found


def _volumes(folder: Path) -> list[Path]:
    return files_below(folder, suffixes=VOLUME_SUFFIXES - {".zip"})


def _is_label(path: Path) -> bool:
    suffix = suffix_of(path, VOLUME_SUFFIXES)
    return bool(suffix) and bool(_LABEL_WORDS & {word.lower() for word in _SEPARATORS.split(path.name.removesuffix(suffix))})

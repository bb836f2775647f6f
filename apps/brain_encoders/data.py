"""Where studies come from: our own folders and phantoms, the Algonauts challenge, BOLD5000, Pereira's; and what training makes of one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.brain_encoders.algonauts import is_algonauts, read_algonauts
from apps.brain_encoders.bold5000 import is_bold5000, read_bold5000
from apps.brain_encoders.config import BackboneConfig, DataConfig, PhantomConfig
from apps.brain_encoders.features import FeatureStore, read_input
from apps.brain_encoders.pereira import is_pereira, read_pereira
from apps.brain_encoders.study import TABLE, Study, checked, read_own, write_phantom
from shared.data.splits import split
from shared.errors import InputError, UserError
from shared.files import atomic_folder
from shared.imaging import read_image
from shared.phantoms.brain import brain_phantom

__all__ = ["Examples", "Parts", "check_pictures", "divide", "make_phantom", "make_phantoms", "open_study", "read_study", "unreadable"]

Item = dict[str, Tensor]


def read_study(root: Path, *, subject: str = "") -> Study:
    """The study in a folder, whichever of the known layouts it has; not checked yet.

    Args:
        subject: of folders with several.

    Raises:
        UserError: if there is no such folder, it has none of the layouts, or something of it cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. `apps.brain_encoders data list` shows what there is to fetch; your own: see the README.")
    if (root / TABLE).is_file():
        return read_own(root)
    if is_algonauts(root):
        return read_algonauts(root)
    if is_bold5000(root):
        return read_bold5000(root, subject=subject)
    if is_pereira(root, subject):
        return read_pereira(root, subject=subject)
    raise UserError(
        f"{root}: is no study. Expected {TABLE} (our own layout, see the README), training_split/ (a subject of Algonauts 2023), "
        "*_ROIs_TR*.mat (BOLD5000) or examples_180concepts_pictures.mat (Pereira 2018)."
    )


def open_study(config: DataConfig) -> Study:
    """The study that the settings name, checked."""
    study = read_study(config.root, subject=config.subject)
    return checked(study, bad_units=config.bad_units, allow_repeats=config.allow_repeats)


def unreadable(images: Sequence[Path]) -> dict[Path, str]:
    """The pictures that cannot be decoded, with the reason; a second for some hundred of them."""
    with ThreadPoolExecutor() as pool:
        reasons = pool.map(_why_not, images)
    return {path: reason for path, reason in zip(images, reasons, strict=True) if reason}


def check_pictures(images: Sequence[Path]) -> None:
    """Before anything dear is done.

    Raises:
        InputError: if some cannot be decoded; names the first.
    """
    bad = unreadable(images)
    if bad:
        remedy = "Or leave its presentations out of the study."
        if len(bad) > 1:
            remedy = f"{len(bad):,} pictures are like that: copy them again, or leave their presentations out of the study."
        raise InputError(f"{next(iter(bad.values()))} {remedy}")


def _why_not(path: Path) -> str:
    try:
        read_image(path)
    except InputError as error:
        return str(error)
    return ""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Images to fit and to validate on, with the mean response to each."""

    train: list[Path]
    validation: list[Path]
    train_responses: NDArray[np.float32]
    """[train, V]"""
    validation_responses: NDArray[np.float32]


def divide(study: Study, *, validation: float, seed: int) -> Parts:
    """Training images in two parts; each image with all its presentations is in one of them.

    Raises:
        UserError: if there are too few.
    """
    if not 0 < validation < 1:
        raise UserError(f"data.validation is {validation}, and both parts need images: a number between 0 and 1, such as 0.1.")
    training = study.part(test=False)
    names = [str(study.images[index].relative_to(study.root)) for index in training]
    if len(names) < 10:
        raise UserError(f"{study.root}: {len(names)} training images; at least 10 are needed.")
    found = split(names, fractions={"train": 1 - validation, "validation": validation}, seed=seed)
    place = dict(zip(names, training, strict=True))
    train, held_out = (np.array([place[name] for name in found[part]]) for part in ("train", "validation"))
    return Parts(
        train=[study.images[index] for index in train],
        validation=[study.images[index] for index in held_out],
        train_responses=study.mean_responses(train),
        validation_responses=study.mean_responses(held_out),
    )


class Examples(torch.utils.data.Dataset[Item]):
    """Images with responses, as the trained part takes them: "input" is features [C, h, w], or the picture [3, S, S] without a store.

    Takes an index, or an index with a seed, which changes nothing: there is no augmentation, as published.
    """

    def __init__(self, images: list[Path], responses: NDArray[np.float32], store: FeatureStore, backbone: BackboneConfig) -> None:
        self.images, self.responses, self.store, self.backbone = images, responses, store, backbone

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        index = key[0] if isinstance(key, tuple) else key
        path = self.images[index]
        stimulus = read_input(path, self.backbone) if self.store.folder is None else self.store.read(path)
        return {"input": stimulus, "response": torch.from_numpy(self.responses[index])}


def make_phantom(folder: Path, *, count: int, seed: int) -> None:
    """A phantom brain as ``train`` makes it on request: on fsaverage5, a sixth as many test images, shown three times each."""
    with atomic_folder(folder) as temporary:
        write_phantom(temporary, brain_phantom(seed, train=count, test=max(12, count // 6)))


def make_phantoms(config: PhantomConfig) -> None:
    """Writes a phantom brain into a new folder."""
    if config.output.exists() and any(config.output.iterdir()):
        raise UserError(f"{config.output}: is not empty. Name a new folder, so that nothing is lost.")
    if not 0 < config.signal_share < 1:
        raise UserError(f"--signal_share {config.signal_share}: must be between 0 and 1, such as 0.4.")
    phantom = brain_phantom(
        config.seed,
        train=config.count,
        test=config.test,
        repeats=config.repeats,
        side=config.size,
        signal_share=config.signal_share,
        space=config.space,
    )
    if config.output.exists():
        config.output.rmdir()
    with atomic_folder(config.output) as temporary:
        write_phantom(temporary, phantom)
    units = phantom.responses.shape[1]
    shown = config.count + config.test
    print(f"{config.output}: {units:,} units that saw {shown} pictures. Train: apps.brain_encoders train --data.root {config.output}")

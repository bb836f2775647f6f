"""Labelled colonoscopy frames: where they lie, how they are divided, and what training makes of them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from apps.pranet.config import DataConfig, PhantomConfig
from apps.pranet.preprocessing import resize, to_input, to_target
from shared.data.download import sha256_of
from shared.data.splits import split
from shared.errors import InputError, UserError
from shared.imaging import Pair, find_pairs, read_image, read_mask
from shared.phantoms.colonoscopy import write_colonoscopy

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
import albumentations as A

__all__ = [
    "SMALLEST_SIDE",
    "TrainingFrames",
    "ValidationFrames",
    "describe",
    "divide",
    "labelled_frames",
    "make_phantoms",
    "read_pair",
    "rescale",
]

Batch = dict[str, Tensor]
SMALLEST_SIDE = 64
"""At 32 the deepest features are single pixels, and batch norms cannot be trained on a single frame of them."""


def labelled_frames(root: Path) -> list[Pair]:
    """The pairs under ``root/images`` and ``root/masks``, or under ``root/TrainDataset``; says on the terminal what has no partner.

    Raises:
        UserError: if there is no such folder or no pair in it.
    """
    if (root / "TrainDataset").is_dir():
        root = root / "TrainDataset"
    found = find_pairs(root)
    for dropped in found.dropped:
        print(f"left out: {dropped.path}: {dropped.reason}")
    return list(found.pairs)


def describe(root: Path, pairs: list[Pair]) -> dict[str, str]:
    """What a bundle says of the frames it was trained on: the folder's name, not its path, and a checksum over every stem and file."""
    files = [f"{pair.stem} {sha256_of(pair.image)} {sha256_of(pair.mask)}\n" for pair in pairs]
    return {"data": root.resolve().name, "data_sha256": hashlib.sha256("".join(files).encode()).hexdigest()}


def divide(pairs: list[Pair], config: DataConfig, *, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and validation frames; those of one group stay together.

    Raises:
        UserError: if ``group_pattern`` is no regular expression with a group, does not match a stem, or leaves too few groups.
    """
    stems = [pair.stem for pair in pairs]
    groups = None if config.group_pattern is None else [_group(config.group_pattern, stem) for stem in stems]
    if not 0 < config.validation < 1:
        raise UserError(f"data.validation is {config.validation}, and both parts need frames: a number between 0 and 1, such as 0.1.")
    parts = split(stems, fractions={"train": 1 - config.validation, "validation": config.validation}, seed=seed, groups=groups)
    by_stem = dict(zip(stems, pairs, strict=True))
    return [by_stem[stem] for stem in parts["train"]], [by_stem[stem] for stem in parts["validation"]]


def read_pair(pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """RGB uint8 [H, W, 3] and mask bool [H, W].

    Raises:
        InputError: if one cannot be read, or they differ in size.
    """
    image, mask = read_image(pair.image), read_mask(pair.mask)
    if image.shape[:2] != mask.shape:
        sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels and its image {pair.image} {image.shape[1]} x {image.shape[0]}"
        raise InputError(f"{pair.mask}: has {sizes}. Export the mask at the size of the image.")
    return image, mask


class TrainingFrames:
    """Frames as the network takes them: resized to a square, augmented if asked for, normalised.

    Args:
        pairs: what to read.
        size: side of the square.
        augment: random flips, quarter turns, small affine changes, colour and blur.
    """

    def __init__(self, pairs: list[Pair], *, size: int, augment: bool) -> None:
        self.pairs, self.size = pairs, size
        self.augmentation = _augmentation() if augment else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """key: index, and seed of the augmentation. Returns "image" [3, size, size] and "mask" [1, size, size], 0 to 1."""
        index, seed = key
        image, mask = read_pair(self.pairs[index])
        image, grey = resize(image, self.size), resize(mask.astype(np.uint8) * 255, self.size)
        if self.augmentation is not None:
            self.augmentation.set_random_seed(seed)
            changed = self.augmentation(image=image, mask=grey)
            image, grey = changed["image"], changed["mask"]
        return {"image": to_input(image, size=self.size), "mask": to_target(grey, size=self.size)}


class ValidationFrames(torch.utils.data.Dataset[Batch]):
    """Frames without anything random; "mask" is [1, size, size], 0 or 1."""

    def __init__(self, pairs: list[Pair], *, size: int) -> None:
        self.frames = TrainingFrames(pairs, size=size, augment=False)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Batch:
        """ "image" [3, size, size] and "mask" [1, size, size]."""
        sample = self.frames[index, 0]
        return {**sample, "mask": (sample["mask"] > 0.5).float()}


def rescale(batch: Batch, scale: float) -> Batch:
    """The batch at ``scale`` times its side, rounded to a multiple of 32 (paper, section 3.1); corners aligned, as published."""
    side = max(SMALLEST_SIDE, round(batch["image"].shape[-1] * scale / 32) * 32)
    if side == batch["image"].shape[-1]:
        return batch
    return {name: F.interpolate(value, size=(side, side), mode="bilinear", align_corners=True) for name, value in batch.items()}


def make_phantoms(config: PhantomConfig) -> None:
    """Writes colonoscopy phantoms into a new folder."""
    if config.output.exists() and any(config.output.iterdir()):
        raise UserError(f"{config.output}: is not empty. Name a new folder, so that nothing is lost.")
    write_colonoscopy(
        config.output, count=config.count, seed=config.seed, height=config.height, width=config.width, empty_fraction=config.empty_fraction
    )
    print(f"{config.output}: {config.count} phantom frames with masks. Train: apps.pranet train --data.root {config.output}")


def _augmentation() -> A.Compose:
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.RandomRotate90(p=0.5),
            A.Affine(scale=(0.8, 1.2), rotate=(-20, 20), translate_percent=(-0.1, 0.1), p=0.7),
            A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.03, 0.03), p=0.7),
            A.GaussianBlur(blur_limit=(3, 5), p=0.2),
        ]
    )


def _group(pattern: str, stem: str) -> str:
    try:
        match = re.search(pattern, stem)
    except re.error as error:
        raise UserError(f"data.group_pattern {pattern!r} is not a regular expression: {error}.") from error
    if match is None or not match.groups():
        raise UserError(f"data.group_pattern {pattern!r} finds no group (in parentheses) in {stem!r}.")
    return match[1]

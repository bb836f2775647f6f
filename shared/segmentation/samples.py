"""What training and validation see: volumes prepared once and kept on disk, and windows cut out of them at random."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Transform,
)
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from shared.errors import InputError, UserError
from shared.files import atomic_folder, write_text
from shared.segmentation.cases import LabelledVolume, read_labelled
from shared.segmentation.config import SamplingConfig
from shared.segmentation.labels import Labels
from shared.segmentation.preparation import Prepare

__all__ = ["PreparedVolume", "TrainingWindows", "WholeVolumes", "prepare_volumes"]

Batch = dict[str, Tensor]

_FOREGROUND_KEPT = 20_000
"""Places of labelled voxels that are remembered of each class, to lay windows around."""
_TURN = np.deg2rad(20)


@dataclass(frozen=True, kw_only=True)
class PreparedVolume:
    """One labelled volume on the network's voxels, mapped from files."""

    name: str
    folder: Path

    @property
    def image(self) -> NDArray[np.float32]:
        """[C, X, Y, Z]."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    @property
    def labels(self) -> NDArray[np.uint8]:
        """[X, Y, Z]: values as in the data set's label maps."""
        return np.load(self.folder / "labels.npy", mmap_mode="r")

    @property
    def places(self) -> list[NDArray[np.int32]]:
        """Of each class that occurs, labelled voxels [N, 3]."""
        table = np.load(self.folder / "places.npy")
        return [table[table[:, 0] == number, 1:] for number in np.unique(table[:, 0])]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the voxels."""
        x, y, z = json.loads((self.folder / "about.json").read_text())["spacing_mm"]
        return x, y, z


def prepare_volumes(
    volumes: Sequence[LabelledVolume], prepare: Prepare, labels: Labels, *, folder: Path, workers: int = 2
) -> list[PreparedVolume]:
    """Reads and prepares each volume once; what ``folder`` holds already is taken up. Unusable ones are said on the terminal.

    Raises:
        UserError: if not one could be used, or the folder cannot be written.
    """
    prepared: list[PreparedVolume] = []
    reasons: list[str] = []

    def one(volume: LabelledVolume) -> PreparedVolume | InputError:
        target = folder / hashlib.sha256(volume.name.encode()).hexdigest()[:16]  # a name may hold anything
        if not target.exists():
            try:
                image, truth = read_labelled(volume, labels)
                ready = prepare(image)
                placed = ready.place(truth)
            except InputError as error:
                return error
            with atomic_folder(target) as temporary:
                np.save(temporary / "image.npy", ready.image)
                np.save(temporary / "labels.npy", placed)
                np.save(temporary / "places.npy", _places(placed, labels))
                write_text(temporary / "about.json", json.dumps({"name": volume.name, "spacing_mm": ready.spacing_mm}))
        return PreparedVolume(name=volume.name, folder=target)

    with Progress(console=Console(stderr=True), transient=True) as progress, ThreadPoolExecutor(max(1, workers)) as pool:
        task = progress.add_task("preparing", total=len(volumes))
        for outcome in pool.map(one, volumes):
            progress.advance(task)
            if isinstance(outcome, InputError):
                reasons.append(str(outcome))
            else:
                prepared.append(outcome)
    for reason in reasons:
        print(f"left out: {reason}")
    if not prepared:
        raise UserError(f"none of {len(volumes)} labelled volumes could be used; the first: {reasons[0] if reasons else 'there is none'}")
    return prepared


class TrainingWindows:
    """Windows of prepared volumes, as ``shared.training.loader`` asks for them: index and seed decide everything.

    Args:
        volumes: where from.
        size: of a window; a smaller volume is padded with 0.
        config: how many, where, and how they are changed.
    """

    def __init__(self, volumes: Sequence[PreparedVolume], *, size: Sequence[int], config: SamplingConfig) -> None:
        self.volumes, self.size, self.config = list(volumes), tuple(size), config
        self.places = [volume.places for volume in self.volumes]

    def __len__(self) -> int:
        return len(self.volumes) * self.config.patches

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """ "image" [C, *size] and "labels" [1, *size], uint8."""
        index, seed = key
        number = index // self.config.patches
        rng = np.random.default_rng(seed)
        volume = self.volumes[number]
        image, labels = volume.image, volume.labels
        corner = self._corner(labels.shape, self.places[number], rng)
        window = {"image": _cut(image, corner, self.size), "labels": _cut(labels[None], corner, self.size)}
        if self.config.augment or self.config.flip_axes:
            window = self._changed(window, seed)
        return window

    def _corner(self, shape: Sequence[int], places: list[NDArray[np.int32]], rng: np.random.Generator) -> list[int]:
        """Of a window: anywhere, or around a labelled voxel of a class drawn evenly; inside the volume where that is large enough."""
        around: NDArray[np.int32] | None = None
        if places and rng.uniform() < self.config.foreground:
            of_class = places[int(rng.integers(len(places)))]
            around = of_class[int(rng.integers(len(of_class)))]
        corner = []
        for axis, (whole, size) in enumerate(zip(shape, self.size, strict=True)):
            last = whole - size
            if last <= 0:
                corner.append(last // 2)
            elif around is None:
                corner.append(int(rng.integers(last + 1)))
            else:
                low, high = max(0, int(around[axis]) - size + 1), min(last, int(around[axis]))
                corner.append(int(rng.integers(low, high + 1)))
        return corner

    def _changed(self, window: Batch, seed: int) -> Batch:
        transforms = augmentation(self.config, self.size)
        transforms.set_random_state(seed=seed)
        changed = transforms(window)
        return {name: torch.as_tensor(np.asarray(value)).to(window[name].dtype).contiguous() for name, value in changed.items()}


class WholeVolumes(torch.utils.data.Dataset[Batch]):
    """Prepared volumes as they are, one by one, for validation."""

    def __init__(self, volumes: Sequence[PreparedVolume]) -> None:
        self.volumes = list(volumes)

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> Batch:
        """ "image" [C, X, Y, Z] and "labels" [1, X, Y, Z], uint8."""
        volume = self.volumes[index]
        return {"image": torch.from_numpy(np.array(volume.image)), "labels": torch.from_numpy(np.array(volume.labels))[None]}


def augmentation(config: SamplingConfig, size: Sequence[int]) -> Compose:
    """As nnU-Net and the papers of the AGU-Net family: mirror, turn, zoom, and change intensities, each for a part of the windows."""
    both = ["image", "labels"]
    steps: list[Transform] = [RandFlipd(keys=both, prob=0.5, spatial_axis=axis) for axis in config.flip_axes]
    if config.augment:
        steps += [
            RandAffined(
                keys=both,
                prob=0.3,
                rotate_range=[_TURN] * 3,
                scale_range=[0.2] * 3,
                spatial_size=tuple(size),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandGaussianSmoothd(keys="image", prob=0.1, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
            RandScaleIntensityd(keys="image", prob=0.3, factors=0.25, channel_wise=True),
            RandShiftIntensityd(keys="image", prob=0.3, offsets=0.1, channel_wise=True),
            RandAdjustContrastd(keys="image", prob=0.2, gamma=(0.7, 1.5), retain_stats=True),
            RandGaussianNoised(keys="image", prob=0.15, std=0.1),
        ]
    return Compose(steps)


def _cut(values: NDArray[np.generic], corner: Sequence[int], size: Sequence[int]) -> Tensor:
    """[C, *size] of [C, X, Y, Z]; 0 where the window sticks out."""
    result = np.zeros((len(values), *size), values.dtype)
    taken = tuple(slice(max(start, 0), start + extent) for start, extent in zip(corner, size, strict=True))
    part = values[(slice(None), *taken)]
    place = tuple(slice(max(-start, 0), max(-start, 0) + extent) for start, extent in zip(corner, part.shape[1:], strict=True))
    result[(slice(None), *place)] = part
    return torch.from_numpy(result)


def _places(labels: NDArray[np.uint8], classes: Labels) -> NDArray[np.int32]:
    """Labelled voxels of each class, a row each: the class's number and x, y, z; evenly spaced where there are many."""
    found = [np.empty((0, 4), np.int32)]
    for number, mask in enumerate(classes.masks(labels).values()):
        voxels = np.argwhere(mask).astype(np.int32)
        some = voxels[:: max(1, -(-len(voxels) // _FOREGROUND_KEPT))]
        found.append(np.pad(some, [(0, 0), (1, 0)], constant_values=number))
    return np.concatenate(found)

"""Bags of drawn features in which it is known what makes a slide positive: several kinds of witnesses, some easy to see and some hard.

It is the situation that ACMIL is about. A network that has found the easy kind can classify every slide, and has no reason to look for the
others; a pathologist who is shown its attention sees a part of the tumour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apps.acmil.bags import Bag, Tiles, write_bag
from shared.files import write_text

__all__ = ["ENCODER", "WitnessBag", "WitnessSettings", "draw_bags", "witness_recall", "write_witness_bags"]

ENCODER = "witnesses"
"""What the bags say they were made by."""
_TILE = 256


@dataclass(frozen=True, kw_only=True)
class WitnessSettings:
    """What the bags are like. Distances are in standard deviations of an instance's features."""

    features: int = 16
    kinds: tuple[float, ...] = (5.0, 4.0, 4.0, 4.0)
    """How far from the rest the witnesses of each kind lie, each kind in a direction of its own."""
    share: float = 0.1
    """Part of a positive bag's instances that are witnesses, all kinds together."""
    smallest: int = 60
    largest: int = 160
    """Instances of a bag."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WitnessBag:
    """One slide's drawn features."""

    name: str
    features: NDArray[np.float32]
    """[N, D]."""
    kinds: NDArray[np.int64]
    """[N]: 0 for an instance that says nothing, 1, 2, ... for a witness of that kind."""

    @property
    def witnesses(self) -> NDArray[np.bool_]:
        """[N]."""
        return self.kinds > 0

    @property
    def label(self) -> int:
        """1 if there are witnesses."""
        return int(self.witnesses.any())


def draw_bags(count: int, *, seed: int, settings: WitnessSettings = WitnessSettings()) -> Iterator[WitnessBag]:
    """``count`` bags, every second one positive. The directions of the kinds are the same for every seed."""
    directions = np.linalg.qr(np.random.default_rng(1).standard_normal((settings.features, len(settings.kinds))))[0].T
    random = np.random.default_rng(seed)
    for number in range(count):
        size = int(random.integers(settings.smallest, settings.largest + 1))
        features = random.standard_normal((size, settings.features))
        kinds = np.zeros(size, dtype=np.int64)
        if number % 2:
            chosen = random.permutation(size)[: max(len(settings.kinds), round(settings.share * size))]
            kinds[chosen] = 1 + np.arange(len(chosen)) % len(settings.kinds)
            features[chosen] += (np.array(settings.kinds)[:, None] * directions)[kinds[chosen] - 1]
        yield WitnessBag(name=f"bag_{number:04d}", features=features.astype(np.float32), kinds=kinds)


def witness_recall(attention: ArrayLike, witnesses: ArrayLike) -> float:
    """Of a bag with W witnesses, the share of them among the W instances with the highest attention: 1 if these are the witnesses.

    Args:
        attention: [N].
        witnesses: bool [N], at least one.
    """
    attention, witnesses = np.asarray(attention), np.asarray(witnesses, dtype=bool)
    count = int(witnesses.sum())
    return float(witnesses[np.argsort(-attention, kind="stable")[:count]].mean())


def write_witness_bags(folder: Path, *, count: int, seed: int, settings: WitnessSettings = WitnessSettings()) -> None:
    """A folder to train on: bags/, labels.csv (two slides a patient), and witnesses.csv, which no training reads."""
    labels, found = ["slide,label,patient"], ["slide,instance,kind"]
    for number, bag in enumerate(draw_bags(count, seed=seed, settings=settings)):
        side = int(np.ceil(np.sqrt(len(bag.features))))
        places = np.arange(len(bag.features))
        tiles = Tiles(
            coordinates=np.column_stack([places % side, places // side]) * _TILE,
            slide=bag.name,
            tile_px_level0=_TILE,
            mpp=0.5,
            size=(side * _TILE, side * _TILE),
        )
        write_bag(folder / "bags" / f"{bag.name}.h5", Bag.of(tiles, bag.features, encoder=ENCODER))
        labels.append(f"{bag.name},{'positive' if bag.label else 'negative'},patient_{number // 4 * 2 + number % 2:04d}")
        found.extend(f"{bag.name},{place},{bag.kinds[place]}" for place in np.flatnonzero(bag.witnesses))
    write_text(folder / "labels.csv", "\n".join(labels) + "\n")
    write_text(folder / "witnesses.csv", "\n".join(found) + "\n")

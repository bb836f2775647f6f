"""Batches whose order and augmentation depend on the seed and the epoch alone: a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

__all__ = ["TrainingLoader", "TrainingSet"]


class TrainingSet(Protocol):
    """Samples for training."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """key: index of the sample, and the seed of everything random about it (augmentation)."""


class TrainingLoader:
    """Shuffled batches, epoch after epoch.

    Args:
        samples: what to draw from.
        batch_size: samples in a batch and process; the last batch of an epoch may be smaller.
        seed: decides order and augmentation.
        variants: each batch is given once for each of these, as ``vary(batch, variant)``; such as the scales of multi-scale training.
        vary: makes the variant of a batch.
        workers: processes that read samples; 0 reads in this one.
    """

    def __init__(
        self,
        samples: TrainingSet,
        *,
        batch_size: int,
        seed: int,
        variants: Sequence[Any] = (None,),
        vary: Callable[[Any, Any], Any] = lambda batch, _: batch,
        workers: int = 0,
    ) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.variants, self.vary, self.workers = tuple(variants), vary, workers
        self.epoch, self.done = 0, 0

    def __len__(self) -> int:
        """Batches of one epoch on one process, variants counted."""
        return len(self._batches(0)) * len(self.variants)

    def __iter__(self) -> Iterator[Any]:
        """One epoch. The next call gives the next epoch; after ``resume`` the first call gives the rest of that epoch.

        A generator, so that an epoch begins when its first batch is asked for: Lightning also makes iterators that it never uses.
        """
        epoch, done = self.epoch, self.done
        self.epoch, self.done = epoch + 1, 0
        skipped, variants_done = divmod(done, len(self.variants))
        loader: DataLoader[Any] = DataLoader(
            self.samples,  # type: ignore[arg-type]
            batch_sampler=self._batches(epoch)[skipped:],  # type: ignore[arg-type]
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            # Else each start of a loader would draw from the random state that dropout draws from, and a resumed epoch starts twice.
            generator=torch.Generator().manual_seed(epoch),
        )
        varied = ((batch, variant) for batch in loader for variant in self.variants)
        for batch, variant in itertools.islice(varied, variants_done, None):
            yield self.vary(batch, variant)

    def resume(self, epoch: int, done: int) -> None:
        """The next iteration is of ``epoch``, without its first ``done`` batches."""
        self.epoch, self.done = epoch, done

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is kept by ``shared.training.callbacks.Position``, which knows what was trained on and not just fetched."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

    def _batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """(index, seed) of each sample of each batch; every process of a parallel run takes its share, all of one size."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.samples))
        seeds = rng.integers(2**31, size=len(order))
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _parallel() else (0, 1)
        share = -(-len(order) // world)
        mine = [(rank + world * position) % len(order) for position in range(share)]
        keys = [(int(order[position]), int(seeds[position])) for position in mine]
        return [keys[start : start + self.batch_size] for start in range(0, share, self.batch_size)]


def _parallel() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()

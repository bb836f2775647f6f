"""Between label maps and what a network answers: exclusive classes with a softmax, or regions that overlap with a sigmoid each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import InputError
from shared.segmentation.config import TaskConfig

__all__ = ["Labels"]


@dataclass(frozen=True)
class Labels:
    """The classes of a task."""

    task: TaskConfig

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, without the background."""
        return tuple(self.task.labels)

    @property
    def written(self) -> dict[int, str]:
        """Name by the value that results are written with."""
        return {values[0]: name for name, values in self.task.labels.items()}

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """Of overlapping classes, those made of several written values, such as {"whole tumour": (1, 2, 4)}."""
        written = self.written
        regions = {name: tuple(value for value in sorted(values) if value in written) for name, values in self.task.labels.items()}
        return {name: values for name, values in regions.items() if len(values) > 1}

    @property
    def channels(self) -> int:
        """Of the network's answer: one for each region, or one for each class and the background before them."""
        return len(self.names) + (not self.task.overlapping)

    @property
    def outside(self) -> tuple[float, ...]:
        """The probabilities where the network has not looked."""
        return (0.0,) * len(self.names) if self.task.overlapping else (1.0, *(0.0,) * len(self.names))

    def masks(self, labels: NDArray[np.integer]) -> dict[str, NDArray[np.bool_]]:
        """The mask of each class in a label map, each of its shape."""
        return {name: np.isin(labels, values) for name, values in self.task.labels.items()}

    def check(self, labels: NDArray[np.integer], *, name: str) -> None:
        """Raises InputError if a value occurs that is of no class; names the file and the value."""
        known = {0, *(value for values in self.task.labels.values() for value in values)}
        strange = sorted(set(np.unique(labels).tolist()) - known)
        if strange:
            classes = "; ".join(f"{what}: {', '.join(map(str, values))}" for what, values in self.task.labels.items())
            raise InputError(
                f"{name}: holds the value {strange[0]}, which is no class of this task ({classes}; background: 0). Say in task.labels what "
                "it means, or check that it is the right label map."
            )

    def encode(self, labels: Tensor) -> Tensor:
        """What a loss compares with: of a label map [B, 1, *spatial] of integers, class numbers from 0 [B, 1, *spatial] as uint8, or for
        overlapping regions their masks [B, R, *spatial]."""
        codes = self._codes.to(labels.device)[:, labels[:, 0].long()]
        return codes.movedim(0, 1)

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities of logits [B, K, *spatial], in float32."""
        return torch.sigmoid(logits.float()) if self.task.overlapping else torch.softmax(logits.float(), dim=1)

    def classes(self, probability: NDArray[np.floating]) -> NDArray[np.floating]:
        """Without the background: [K, *spatial], in the order of ``names``."""
        return probability if self.task.overlapping else probability[1:]

    def decode(self, probability: NDArray[np.floating], *, threshold: float = 0.5) -> NDArray[np.uint8]:
        """A label map of probabilities [K, *spatial].

        Overlapping regions are painted over one another in their order, each from ``threshold`` on. Of exclusive classes the most probable
        is taken where together they have at least ``threshold``; with one class and 0.5 that is the most probable of all.
        """
        values = np.array([0, *self.written], np.uint8)
        if self.task.overlapping:
            painted = np.zeros(probability.shape[1:], np.uint8)
            for value, one in zip(values[1:], probability, strict=True):
                painted[one >= threshold] = value
            return painted
        best = values[1:][probability[1:].argmax(axis=0)] if len(probability) > 2 else values[1]
        return np.where(1 - probability[0] >= threshold, best, 0).astype(np.uint8)

    def entropy(self, probability: NDArray[np.floating]) -> NDArray[np.float32]:
        """How unsure an answer is, 0 to 1, [*spatial] of [K, *spatial]: the entropy of the classes as a part of the largest there can be;
        of overlapping regions the largest of their own entropies."""
        p = np.clip(probability.astype(np.float32), 1e-7, 1)
        if self.task.overlapping:
            q = np.clip(1 - p, 1e-7, 1)
            return ((-p * np.log2(p) - q * np.log2(q)).max(axis=0)).clip(0, 1)
        return (-(p * np.log(p)).sum(axis=0) / np.float32(np.log(len(p)))).clip(0, 1)

    @cached_property
    def _codes(self) -> Tensor:
        """[1 or R, 256]: by the value in a label map."""
        codes = torch.zeros(len(self.names) if self.task.overlapping else 1, 256, dtype=torch.uint8)
        for number, values in enumerate(self.task.labels.values()):
            for value in values:
                codes[number if self.task.overlapping else 0, value] = 1 if self.task.overlapping else number + 1
        return codes

"""Every registered block in every rank, small, with inputs: what the promises are tested on."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.attention import create, find, list_blocks, settings_of
from shared.attention.registry import Entry

__all__ = ["CASES", "FIRST_OF_THEIR_MODULES", "Case", "answer", "close", "one_of_each_block"]

GRIDS = {1: (11,), 2: (7, 9), 3: (3, 5, 4)}
"""Odd sizes that no window divides."""
EVEN_GRIDS = {1: (16,), 2: (8, 8), 3: (4, 4, 4)}


@dataclass(frozen=True)
class Case:
    """A block in one rank. A sequence has rank 0; the grid then only says how many tokens there are."""

    name: str
    rank: int

    def __str__(self) -> str:
        return f"{self.name}-{self.rank}d" if self.rank else self.name

    @property
    def entry(self) -> Entry:
        return find(self.name)

    @property
    def grid(self) -> tuple[int, ...]:
        return GRIDS[self.rank or 1]

    @property
    def settings(self) -> dict[str, Any]:
        accepted = inspect.signature(self.entry.block.__init__).parameters
        common = {"channels": 16, "rank": self.rank or None}
        return {key: value for key, value in common.items() if key in accepted and value is not None} | dict(self.entry.example)

    def build(self, *, seed: int = 0) -> nn.Module:
        """In evaluation mode, with every weight moved off its initial value: a gate of 0 would hide what follows it."""
        torch.manual_seed(seed)
        block = create(self.name, **self.settings)
        with torch.no_grad():
            for weight in block.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
            for name, buffer in block.named_buffers():
                if name.endswith("running_var"):
                    buffer.uniform_(0.8, 1.2)
                elif name.endswith("running_mean"):
                    buffer.normal_(std=0.1)
        return block.eval()

    def inputs(self, *, batch: int = 2, grid: tuple[int, ...] | None = None, seed: int = 1) -> dict[str, Any]:
        torch.manual_seed(seed)
        filled = settings_of(self.name)(**self.settings)
        return self.entry.inputs(filled, batch, grid or self.grid)


CASES = [Case(entry.name, rank) for entry in list_blocks() for rank in (entry.ranks or (0,))]
FIRST_OF_THEIR_MODULES = {entry.block.__module__: entry.name for entry in reversed(list(list_blocks()))}.values()
"""Blocks that share a module share most of their operations."""


def one_of_each_block(by_default: Collection[str]) -> list[Any]:
    """Parameters for what takes seconds, and the same path in other ranks; all blocks but these are left to ``make test-all``."""
    assert set(by_default) <= {case.name for case in CASES}
    chosen = [case for case in CASES if case.rank in (0, 2)]
    return [pytest.param(case, id=str(case), marks=() if case.name in by_default else pytest.mark.thorough) for case in chosen]


def answer(output: Any) -> tuple[Tensor, ...]:
    """What a block returned, as tensors."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


def close(one: Any, other: Any, *, tolerance: float = 1e-5) -> None:
    """Two answers of blocks, output by output."""
    for a, b in zip(answer(one), answer(other), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)

"""How each published block is run: functions from its fixture's config, weights and inputs to its outputs, by name.

A module here holds one family's. ``@runs("scse-2d")`` enters a function for the fixture whose "block" is that.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from shared.attention import create, load_published

__all__ = ["RUNS", "below", "built", "runs"]

Run = Callable[[Mapping[str, Any], dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]

RUNS: dict[str, Run] = {}


def runs(block: str) -> Callable[[Run], Run]:
    def enter(run: Run) -> Run:
        RUNS[block] = run
        return run

    return enter


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict under ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def built(name: str, state: Mapping[str, Tensor], **settings: Any) -> nn.Module:
    """A block with published weights, in evaluation mode."""
    block = create(name, **settings).eval()
    load_published(name, block, state)
    return block


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

"""Blocks with weights that hide nothing: in float64, and moved off their initial values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shared.attention import create

__all__ = ["load", "random_block", "random_tokens"]


def random_block(name: str, *, seed: int = 0, **settings: Any) -> nn.Module:
    """In float64 and evaluation mode, with 0.3 of normal noise on every weight."""
    torch.manual_seed(seed)
    block = create(name, **settings).double().eval()
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return block


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    """Normal, in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def load(block: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The block, with these weights."""
    block.load_state_dict(state)
    return block

"""A block for volumes that must answer like one for images, where there is only one slice."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["give_depth"]


def give_depth(flat: nn.Module, deep: nn.Module) -> nn.Module:
    """Loads weights of a rank of 2 into the same block of a rank of 3: each window's middle slice is the window, the others are 0."""
    given, state = flat.state_dict(), deep.state_dict()
    for name, value in state.items():
        if value.ndim == given[name].ndim:
            state[name] = given[name]
        else:
            state[name] = torch.zeros_like(value).index_copy(2, torch.tensor([value.shape[2] // 2]), given[name].unsqueeze(2))
    deep.load_state_dict(state)
    return deep.eval()

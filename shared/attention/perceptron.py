"""The other half of a transformer's block: a perceptron for each token, added to what it was given."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, linear_cost, norm_cost

__all__ = ["Perceptron", "perceptron_cost"]


def perceptron_cost(channels: int, positions: int, *, expansion: int) -> Cost:
    """A ``Perceptron`` at so many positions."""
    wide = channels * expansion
    return norm_cost(channels) + linear_cost(channels, wide, positions) + linear_cost(wide, channels, positions)


class Perceptron(nn.Module):
    """x + perceptron(norm(x)), with one hidden layer and a GELU.

    Args:
        channels: width of the tokens.
        expansion: how many times wider the hidden layer is.
        eps: of the layer normalisation.
        gelu: "none" for the exact one, "tanh" for its approximation.

    Raises:
        ValueError: if ``channels`` or ``expansion`` is not positive.
    """

    def __init__(self, *, channels: int, expansion: int = 4, eps: float = 1e-5, gelu: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        if min(channels, expansion) < 1:
            raise ValueError(f"must be positive: channels={channels}, expansion={expansion}")
        self.gelu = gelu
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.expand = nn.Linear(channels, channels * expansion)
        self.contract = nn.Linear(channels * expansion, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, *any, C]. Returns the same shape."""
        return x + self.contract(F.gelu(self.expand(self.norm(x)), approximate=self.gelu))

"""Shifting a few channels by one position: what is left of attention when it has no weights.

Wang et al., "When Shift Operation Meets Vision Transformer: An Extremely Simple Alternative to Attention Mechanism", AAAI 2022, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, linear_cost, norm_cost
from shared.attention.registry import register
from shared.layers import conv

__all__ = ["Shift", "ShiftBlock"]

_PAPER = "Wang et al., ShiftViT, AAAI 2022, section 3"


@register("shift", paper=_PAPER, ranks=(1, 2, 3), cost=lambda settings, grid: Cost())
class Shift(nn.Module):
    """Moves some of the channels by one position in each direction along each axis, and leaves the others where they are.

    Of ``channels // division`` channels each, the first group moves towards the beginning of the last axis (left), the second towards
    its end, the next two along the axis before, and so on. What comes in at the border is 0.

    Args:
        channels: channels of the feature map.
        division: one in how many channels moves in each direction.

    Raises:
        ValueError: if ``division`` is not positive, or larger than ``channels``: nothing would move.
    """

    def __init__(self, *, channels: int, division: int = 12) -> None:
        super().__init__()
        if not 1 <= division <= channels:
            raise ValueError(f"division={division} must be between 1 and channels={channels}")
        self.group = channels // division

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]; enough channels for a group in each of two directions along each axis. Returns the same shape."""
        axes = x.ndim - 2
        moving = 2 * axes * self.group
        if moving > x.shape[1]:
            raise ValueError(f"{2 * axes} directions of {self.group} channels each are more than the {x.shape[1]} channels of the map")
        *groups, still = x.split([self.group] * (2 * axes) + [x.shape[1] - moving], dim=1)
        moved = []
        for direction, part in enumerate(groups):
            from_end, backwards = divmod(direction, 2)
            # One position is cut off on one side, and a zero put on the other.
            moved.append(F.pad(part, [0, 0] * from_end + ([1, -1] if backwards else [-1, 1])))
        return torch.cat([*moved, still], dim=1)


def _block_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, wide, n = settings.channels, settings.channels * settings.expansion, math.prod(grid)
    return norm_cost(channels) + linear_cost(channels, wide, n) + linear_cost(wide, channels, n)


@register(
    "shift_block",
    paper=_PAPER,
    ranks=(1, 2, 3),
    cost=_block_cost,
    published={"norm2": "norm", "mlp.fc1": "expand", "mlp.fc2": "contract"},
)
class ShiftBlock(nn.Module):
    """A block of ShiftViT: shifts some channels, then adds a perceptron of each position to the shifted map.

    Args:
        channels, division: as ``Shift``.
        expansion: how many times wider the perceptron's hidden layer is.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``expansion`` is not positive, or as ``Shift``.
    """

    def __init__(self, *, channels: int, division: int = 12, expansion: int = 2, rank: int = 2) -> None:
        super().__init__()
        if expansion < 1:
            raise ValueError(f"expansion must be positive, not {expansion}")
        self.shift = Shift(channels=channels, division=division)
        self.norm = nn.GroupNorm(1, channels)
        self.expand = conv(channels, channels * expansion, kernel=1, rank=rank)
        self.contract = conv(channels * expansion, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        x = self.shift(x)
        return x + self.contract(F.gelu(self.expand(self.norm(x))))

"""Attention in attention: a block weighs for each image how much of its answer passes through attention at all.

Chen et al., "Attention in Attention Network for Image Super-Resolution", 2021, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, linear_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv

__all__ = ["AttentionInAttention"]

_SLOPE = 0.2
"""Of the leaky rectifiers, for negative values."""


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    window = conv_cost(channels, channels, n, kernel=3, rank=settings.rank, bias=False)
    point = linear_cost(channels, channels, n, bias=False)
    inner = channels // settings.reduction
    branches = linear_cost(channels, inner, 1, bias=False) + linear_cost(inner, 2, 1, bias=False)
    return 4 * window + 3 * point + Cost(channels) + branches


@register(
    "a2n",
    paper="Chen et al., A2N, 2021, section 3",
    ranks=(1, 2, 3),
    cost=_cost,
    published={
        "conv_first": "first",
        "conv_last": "last",
        "ADM.0": "squeeze",
        "ADM.2": "branch",
        "attention.k1": "look",
        "attention.k2": "gate",
        "attention.k3": "value",
        "attention.k4": "attended",
        "non_attention": "plain",
    },
)
class AttentionInAttention(nn.Module):
    """Attention in attention (A2N): a gated and an ungated branch, weighed against each other by the image's channel means.

    Recorded are the gate, [B, C, *spatial], and the two branches' weights, [B, 2, ...] with the gated branch first.

    Args:
        channels: channels of the feature map.
        reduction: how many times narrower the hidden layer is that weighs the branches.
        temperature: divides the branches' logits; the higher, the more equal their weights.
        rank: number of spatial axes, 1 to 3; published for 2.

    Raises:
        ValueError: if ``channels`` is smaller than ``reduction``, ``temperature`` is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, reduction: int = 4, temperature: float = 30.0, rank: int = 2) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction={reduction} must be between 1 and channels={channels}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.temperature = temperature
        self.first = conv(channels, channels, kernel=1, rank=rank, bias=False)
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.branch = nn.Linear(channels // reduction, 2, bias=False)
        self.look = conv(channels, channels, kernel=3, rank=rank, bias=False)
        self.gate = conv(channels, channels, kernel=1, rank=rank)
        self.value = conv(channels, channels, kernel=3, rank=rank, bias=False)
        self.attended = conv(channels, channels, kernel=3, rank=rank, bias=False)
        self.plain = conv(channels, channels, kernel=3, rank=rank, bias=False)
        self.last = conv(channels, channels, kernel=1, rank=rank, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        features = F.leaky_relu(self.first(x), _SLOPE)
        logits = self.branch(F.relu(self.squeeze(features.flatten(2).mean(-1))))
        weights = torch.softmax(logits / self.temperature, dim=1).reshape(-1, 2, *(1 for _ in x.shape[2:]))
        gate = torch.sigmoid(self.gate(F.leaky_relu(self.look(features), _SLOPE)))
        if recording():
            note(GivenMap(gate), part="gate")
            note(GivenMap(weights), part="branches")
        attended = self.attended(self.value(features) * gate)
        mixed = attended * weights[:, :1] + self.plain(features) * weights[:, 1:]
        return self.last(F.leaky_relu(mixed, _SLOPE)) + x

"""Dual attention: every position looks at all positions, every channel at all channels.

Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, sections 3.2 and 3.3, equations 1 to 4.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.attend import attend
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv

__all__ = ["ChannelAttention", "PositionAttention"]


def _position_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, inner, n = settings.channels, settings.channels // settings.reduction, math.prod(grid)
    bias = settings.bias
    projections = 2 * linear_cost(channels, inner, n, bias=bias) + linear_cost(channels, channels, n, bias=bias)
    return projections + attention_cost(n, n, channels) + Cost(1)


@register(
    "pam",
    paper="Fu et al., DANet, CVPR 2019, eq. 1-2",
    ranks=(1, 2, 3),
    cost=_position_cost,
    published={"query_conv": "query", "key_conv": "key", "value_conv": "value"},
)
class PositionAttention(nn.Module):
    """Position attention (PAM): each position receives the values of all positions whose keys agree with its query.

    The sum is scaled by a learned number that starts at 0: a new block changes nothing.

    Args:
        channels: channels of the feature map.
        reduction: queries and keys have ``channels // reduction`` channels.
        bias: whether queries, keys and values have a bias.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` is smaller than ``reduction``, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, reduction: int = 8, bias: bool = True, rank: int = 2) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(f"channels={channels} must be at least reduction={reduction}")
        self.query = conv(channels, channels // reduction, kernel=1, rank=rank, bias=bias)
        self.key = conv(channels, channels // reduction, kernel=1, rank=rank, bias=bias)
        self.value = conv(channels, channels, kernel=1, rank=rank, bias=bias)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        query, key, value = (layer(x).flatten(2).mT.unsqueeze(1) for layer in (self.query, self.key, self.value))
        attended = attend(query, key, value, scale=1.0)
        return self.gamma * attended.squeeze(1).mT.reshape(x.shape) + x


def _channel_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    return Cost(1, 2 * settings.channels**2 * math.prod(grid))


@register("cam", paper="Fu et al., DANet, CVPR 2019, eq. 3-4", ranks=(1, 2, 3), cost=_channel_cost)
class ChannelAttention(nn.Module):
    """Channel attention (CAM): each channel receives the channels that are least like it, without any projection.

    The published code subtracts each row's energies from their maximum, so that the least similar channel weighs most; the paper's
    equation 3 has no such sign. Energies are summed in float32, whatever the input: they grow with the number of positions.

    Args:
        channels: channels of the feature map; any number works, this one is for tables and configs.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, not {channels}")
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        flat = x.flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            wide = flat if flat.dtype == torch.float64 else flat.float()
            weights = torch.softmax(-(wide @ wide.mT), dim=-1).to(flat.dtype)
        if recording():
            note(GivenMap(weights.unsqueeze(1)))
        return self.gamma * (weights @ flat).reshape(x.shape) + x

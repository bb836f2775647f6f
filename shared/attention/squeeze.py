"""Squeeze and excitation: channels and positions are recalibrated by gates computed from averages.

Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; Roy et al., "Recalibrating fully convolutional networks with spatial and channel
squeeze and excitation blocks", IEEE TMI 2019; Rickmann et al., "Project & Excite modules", MICCAI 2019.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, linear_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv

__all__ = ["ChannelSqueeze", "ProjectExcite", "SpatialChannelSqueeze", "SpatialSqueeze"]


def _channel_cost(settings: Any, _: tuple[int, ...], positions: int = 1) -> Cost:
    channels, inner = settings.channels, settings.channels // settings.reduction
    return linear_cost(channels, inner, positions) + linear_cost(inner, channels, positions)


def _spatial_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    return linear_cost(settings.channels, 1, math.prod(grid))


@register("cse", paper="Hu et al., SE, CVPR 2018", ranks=(1, 2, 3), cost=_channel_cost, published={"fc1": "squeeze", "fc2": "excite"})
class ChannelSqueeze(nn.Module):
    """Channel squeeze and excitation (cSE, SE): scales each channel by a gate computed from all channels' means.

    Args:
        channels: channels of the feature map.
        reduction: how many times narrower the hidden layer is.

    Raises:
        ValueError: if ``channels`` is smaller than ``reduction``.
    """

    def __init__(self, *, channels: int, reduction: int = 2) -> None:
        super().__init__()
        _check(channels, reduction)
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.flatten(2).mean(-1)))))
        gate = gate.reshape(*gate.shape, *(1 for _ in x.shape[2:]))
        if recording():
            note(GivenMap(gate))
        return x * gate


@register("sse", paper="Roy et al., scSE, TMI 2019, eq. 4", ranks=(1, 2, 3), cost=_spatial_cost, published={"conv": "score"})
class SpatialSqueeze(nn.Module):
    """Spatial squeeze and excitation (sSE): scales each position by a gate computed from its own channels.

    Args:
        channels: channels of the feature map.
        rank: number of spatial axes, 1 to 3.
    """

    def __init__(self, *, channels: int, rank: int = 2) -> None:
        super().__init__()
        self.score = conv(channels, 1, kernel=1, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        gate = torch.sigmoid(self.score(x))
        if recording():
            note(GivenMap(gate))
        return x * gate


@register(
    "scse",
    paper="Roy et al., scSE, TMI 2019, section III-C",
    ranks=(1, 2, 3),
    cost=lambda settings, grid: _channel_cost(settings, grid) + _spatial_cost(settings, grid),
    published={"cSE.fc1": "channel.squeeze", "cSE.fc2": "channel.excite", "sSE.conv": "spatial.score"},
)
class SpatialChannelSqueeze(nn.Module):
    """Concurrent spatial and channel squeeze and excitation (scSE).

    Args:
        channels: channels of the feature map.
        reduction: of the channel gate's hidden layer.
        fusion: how the two recalibrated maps meet: "max" (the 2019 paper and its code) or "add" (the 2018 conference paper, and
            segmentation_models_pytorch).
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` is smaller than ``reduction``.
    """

    def __init__(self, *, channels: int, reduction: int = 2, fusion: Literal["max", "add"] = "max", rank: int = 2) -> None:
        super().__init__()
        self.channel = ChannelSqueeze(channels=channels, reduction=reduction)
        self.spatial = SpatialSqueeze(channels=channels, rank=rank)
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        by_channel, by_position = self.channel(x), self.spatial(x)
        return torch.maximum(by_channel, by_position) if self.fusion == "max" else by_channel + by_position


@register(
    "project_excite",
    paper="Rickmann et al., Project & Excite, MICCAI 2019, eq. 2-4",
    ranks=(1, 2, 3),
    cost=lambda settings, grid: _channel_cost(settings, grid, positions=math.prod(grid)),
    published={"conv1": "squeeze", "conv2": "excite", "conv_c": "squeeze", "conv_cT": "excite"},
)
class ProjectExcite(nn.Module):
    """Project and excite: means along each axis keep where along the others, and together gate channels and positions.

    Args:
        channels: channels of the feature map.
        reduction: how many times narrower the hidden layer is.
        rank: number of spatial axes, 1 to 3; published for 3.

    Raises:
        ValueError: if ``channels`` is smaller than ``reduction``.
    """

    def __init__(self, *, channels: int, reduction: int = 2, rank: int = 3) -> None:
        super().__init__()
        _check(channels, reduction)
        self.squeeze = conv(channels, channels // reduction, kernel=1, rank=rank)
        self.excite = conv(channels // reduction, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        axes = tuple(range(2, x.ndim))
        projected = x.new_zeros(x.shape)
        for axis in axes:
            others = tuple(other for other in axes if other != axis)
            projected = projected + (x.mean(others, keepdim=True) if others else x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(projected))))
        if recording():
            note(GivenMap(gate))
        return x * gate


def _check(channels: int, reduction: int) -> None:
    if channels < reduction:
        raise ValueError(f"channels={channels} must be at least reduction={reduction}")

"""Residual attention: a small hourglass network weighs the features of a trunk beside it.

Wang et al., "Residual Attention Network for Image Classification", CVPR 2017, section 3, equations 1 and 3.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, linear_cost, norm_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv, norm, resize
from shared.layers.pooling import max_pool

__all__ = ["ResidualAttention"]


def _bottleneck_cost(channels: int, n: int, rank: int) -> Cost:
    inner = channels // 4
    convs = linear_cost(channels, inner, n, bias=False) + conv_cost(inner, inner, n, kernel=3, rank=rank, bias=False)
    return convs + linear_cost(inner, channels, n, bias=False) + norm_cost(channels) + 2 * norm_cost(inner)


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, poolings, rank = settings.channels, settings.poolings, settings.rank
    total = 4 * _bottleneck_cost(channels, math.prod(grid), rank)
    total += 2 * (linear_cost(channels, channels, math.prod(grid), bias=False) + norm_cost(channels))
    for level in range(poolings):
        grid = tuple(-(-extent // 2) for extent in grid)
        # On the way down, past the hourglass and on the way up; at its bottom two in a row.
        total += (3 if level < poolings - 1 else 2) * _bottleneck_cost(channels, math.prod(grid), rank)
    return total


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the PyTorch port, which numbers the mask's stages from 1 at the top, down, and up again to its head."""
    head = max(int(found[1]) for name in state if (found := re.match(r"softmax(\d+)_", name)))
    poolings = head // 2
    names = {"first_residual_blocks": "first", "trunk_branches": "trunk", "last_blocks": "last"}
    names |= {f"skip{level}_connection_residual_block": f"past.{level - 1}" for level in range(1, poolings)}
    names |= {f"softmax{level}_blocks": f"down.{level - 1}.0" for level in range(1, poolings)}
    names |= {f"softmax{poolings}_blocks": f"down.{poolings - 1}"}
    names |= {f"softmax{head - level}_blocks": f"up.{level - 1}" for level in range(1, poolings)}
    names |= {f"softmax{head}_blocks.{index}": f"mask.{index}" for index in (0, 2, 3, 5)}
    layers = {"bn1": "norm1", "bn2": "norm2", "bn3": "norm3", "conv1": "narrow", "conv2": "conv", "conv3": "widen"}
    renamed = {}
    for name, value in state.items():
        if ".conv4." in name:
            # For a change of width, which an attention module does not make.
            continue
        theirs = max((each for each in names if name.startswith(f"{each}.")), key=len)
        rest = name.removeprefix(theirs).split(".")
        renamed[".".join([names[theirs], *(layers.get(part, part) for part in rest[1:])])] = value
    return renamed


class _Bottleneck(nn.Module):
    """A residual block that normalises first, and convolves a quarter of the channels."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        inner = channels // 4
        self.norm1 = norm(channels, rank=rank)
        self.narrow = conv(channels, inner, kernel=1, rank=rank, bias=False)
        self.norm2 = norm(inner, rank=rank)
        self.conv = conv(inner, inner, kernel=3, rank=rank, bias=False)
        self.norm3 = norm(inner, rank=rank)
        self.widen = conv(inner, channels, kernel=1, rank=rank, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.narrow(F.relu(self.norm1(x)))
        inside = self.conv(F.relu(self.norm2(inside)))
        return x + self.widen(F.relu(self.norm3(inside)))


@register(
    "residual_attention",
    paper="Wang et al., residual attention network, CVPR 2017, eq. 1 and 3",
    ranks=(1, 2, 3),
    cost=_cost,
    published=_published,
)
class ResidualAttention(nn.Module):
    """Multiplies a trunk's features by one plus a mask, which an hourglass of residual blocks beside the trunk computes.

    Args:
        channels: channels of the feature map; at least 4.
        poolings: how often the mask branch halves the size: 3, 2 and 1 in the paper's three stages.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` is smaller than 4, ``poolings`` is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, poolings: int = 3, rank: int = 2) -> None:
        super().__init__()
        if channels < 4 or poolings < 1:
            raise ValueError(f"channels={channels} must be at least 4, and poolings={poolings} at least 1")

        def blocks(count: int) -> nn.Sequential:
            return nn.Sequential(*(_Bottleneck(channels, rank) for _ in range(count)))

        self.first = _Bottleneck(channels, rank)
        self.trunk = blocks(2)
        self.down = nn.ModuleList([*(blocks(1) for _ in range(poolings - 1)), blocks(2)])
        self.past = nn.ModuleList(blocks(poolings - 1))
        self.up = nn.ModuleList(blocks(poolings - 1))
        self.mask = nn.Sequential(
            norm(channels, rank=rank),
            nn.ReLU(),
            conv(channels, channels, kernel=1, rank=rank, bias=False),
            norm(channels, rank=rank),
            nn.ReLU(),
            conv(channels, channels, kernel=1, rank=rank, bias=False),
        )
        self.last = _Bottleneck(channels, rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        x = self.first(x)
        trunk = self.trunk(x)
        levels = []
        for layer in self.down:
            x = layer(max_pool(x, 3, stride=2, padding=1))
            levels.append(x)
        levels.pop()
        # The lists begin at the finest level.
        for level, past, layer in reversed(list(zip(levels, self.past, self.up, strict=True))):
            x = layer(resize(x, level.shape[2:], align_corners=True) + level + past(level))
        mask = torch.sigmoid(self.mask(resize(x, trunk.shape[2:], align_corners=True) + trunk))
        if recording():
            note(GivenMap(mask))
        return self.last((1 + mask) * trunk)

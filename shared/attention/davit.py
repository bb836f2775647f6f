"""Dual attention of vision transformers: tokens that look at tokens within windows, and channels that look at channels everywhere.

Ding et al., "DaViT: Dual Attention Vision Transformers", ECCV 2022, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.attend import merge_heads, split_heads
from shared.attention.cost import Cost, conv_cost, linear_cost, norm_cost
from shared.attention.maps import GivenMap
from shared.attention.perceptron import Perceptron, perceptron_cost
from shared.attention.recording import note, recording
from shared.attention.registry import register, tokens
from shared.attention.twins import LocallyGroupedAttention, local_cost
from shared.attention.windows import grid_of
from shared.layers import conv

__all__ = ["ChannelBlock", "ChannelGroupAttention", "PositionEncoding", "SpatialBlock"]


class PositionEncoding(nn.Module):
    """Convolutional position encoding: x + depthwise convolution of x, which knows places by what surrounds them (Chu et al., 2021).

    Args:
        channels: width of the tokens.
        rank: number of spatial axes, 1 to 3.
    """

    def __init__(self, *, channels: int, rank: int = 2) -> None:
        super().__init__()
        self.local = conv(channels, channels, kernel=3, groups=channels, rank=rank)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x: [B, N, C], the places of ``grid`` in order. Returns the same shape."""
        return x + self.local(x.mT.unflatten(2, grid)).flatten(2).mT


class ChannelGroupAttention(nn.Module):
    """Channel group attention: within a group, each channel receives the channels whose values agree with its keys at all positions.

    As in the published code the map is that of keys and values, and what it mixes are the queries; the paper names them
    otherwise. Agreements are summed over all positions in float32: they grow with their number.

    Args:
        channels: width of the tokens; a multiple of ``groups``.
        groups: number of channel groups.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: if ``groups`` does not divide ``channels``.
    """

    def __init__(self, *, channels: int, groups: int = 8, qkv_bias: bool = False) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"groups={groups} must divide channels={channels}")
        self.groups = groups
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, C], in any order. Returns the same shape."""
        query, key, value = (split_heads(each, self.groups) for each in self.qkv(x).chunk(3, dim=-1))
        with torch.autocast(x.device.type, enabled=False):
            scale = key.shape[-1] ** -0.5
            wide_key, wide_value = (each if each.dtype == torch.float64 else each.float() for each in (key, value))
            weights = torch.softmax((scale * wide_key).mT @ wide_value, dim=-1).to(query.dtype)
        if recording():
            note(GivenMap(weights))
        return self.out(merge_heads(query @ weights.mT))


def _around_cost(settings: Any, n: int) -> Cost:
    """Of all but the attention: two position encodings, a norm, a perceptron."""
    channels = settings.channels
    place = conv_cost(channels, channels, n, kernel=3, rank=settings.rank, groups=channels)
    return 2 * place + norm_cost(channels) + perceptron_cost(channels, n, expansion=settings.expansion)


def _spatial_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    return _around_cost(settings, math.prod(grid)) + local_cost(settings, grid)


def _channel_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    projections = linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + linear_cost(channels, channels, n)
    products = Cost(0, 2 * n * channels * (channels // settings.groups))
    return _around_cost(settings, n) + projections + products


_NAMES = {
    "cpe.0.proj": "place.local",
    "cpe.1.proj": "place_again.local",
    "norm1": "norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "perceptron.norm",
    "mlp.fc1": "perceptron.expand",
    "mlp.fc2": "perceptron.contract",
}
_SPATIAL: dict[str, Any] = {
    "ranks": (1, 2, 3),
    "cost": _spatial_cost,
    "inputs": tokens,
    "example": {"heads": 2, "window": 4},
    "published": _NAMES,
}


@register("davit_spatial", paper="Ding et al., DaViT, ECCV 2022, section 3", **_SPATIAL)
@register(
    "davit_spatial_published", paper="Ding et al., DaViT, ECCV 2022, section 3, as published", preset={"mask_padding": False}, **_SPATIAL
)
class SpatialBlock(nn.Module):
    """DaViT's spatial block: attention within windows, then a perceptron, each after a convolution that encodes places.

    Where a window does not divide the grid, the published code pads with zeros after the norm, and lets the padding take part in the
    softmax.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads; 3, 6, 12 and 24 in the published stages of 96 to 768 channels.
        window: side of the windows; one number, or one for each axis.
        expansion: how many times wider the perceptron's hidden layer is.
        qkv_bias: whether queries, keys and values have a bias.
        mask_padding: False: padding takes part, as published.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or another number is not positive.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        window: int | tuple[int, ...] = 7,
        expansion: int = 4,
        qkv_bias: bool = True,
        mask_padding: bool = True,
        rank: int = 2,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.place = PositionEncoding(channels=channels, rank=rank)
        self.norm = nn.LayerNorm(channels)
        self.attention = LocallyGroupedAttention(
            channels=channels, heads=heads, window=window, qkv_bias=qkv_bias, mask_padding=mask_padding
        )
        self.place_again = PositionEncoding(channels=channels, rank=rank)
        self.perceptron = Perceptron(channels=channels, expansion=expansion)
        _initialise(self)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x: [B, N, C], the places of ``grid`` in order. Returns the same shape.

        Raises:
            ValueError: if N is not the grid's number of places, or the grid has not ``rank`` axes.
        """
        grid = grid_of(x, grid, rank=self.rank)
        x = self.place(x, grid)
        x = x + self.attention(self.norm(x), grid)
        return self.perceptron(self.place_again(x, grid))


@register(
    "davit_channel",
    paper="Ding et al., DaViT, ECCV 2022, section 3",
    ranks=(1, 2, 3),
    cost=_channel_cost,
    inputs=tokens,
    example={"groups": 2},
    published=_NAMES,
)
class ChannelBlock(nn.Module):
    """DaViT's channel block: attention among the channels of a group, then a perceptron, each after a convolution that encodes places.

    Args:
        channels: width of the tokens; a multiple of ``groups``.
        groups: number of channel groups; 3, 6, 12 and 24 in the published stages of 96 to 768 channels.
        expansion: how many times wider the perceptron's hidden layer is.
        qkv_bias: whether queries, keys and values have a bias.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``groups`` does not divide ``channels``, or another number is not positive.
    """

    def __init__(self, *, channels: int, groups: int = 8, expansion: int = 4, qkv_bias: bool = False, rank: int = 2) -> None:
        super().__init__()
        self.rank = rank
        self.place = PositionEncoding(channels=channels, rank=rank)
        self.norm = nn.LayerNorm(channels)
        self.attention = ChannelGroupAttention(channels=channels, groups=groups, qkv_bias=qkv_bias)
        self.place_again = PositionEncoding(channels=channels, rank=rank)
        self.perceptron = Perceptron(channels=channels, expansion=expansion)
        _initialise(self)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x: [B, N, C], the places of ``grid`` in order. Returns the same shape.

        Raises:
            ValueError: if N is not the grid's number of places, or the grid has not ``rank`` axes.
        """
        grid = grid_of(x, grid, rank=self.rank)
        x = self.place(x, grid)
        x = x + self.attention(self.norm(x))
        return self.perceptron(self.place_again(x, grid))


def _initialise(block: nn.Module) -> None:
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(layer.weight, std=0.02)
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)

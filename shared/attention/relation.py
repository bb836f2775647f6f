"""Relations between two kinds of features of one picture: lesions and the vessels that they sit on.

Huang et al., "RTNet: Relation Transformer Network for Diabetic Retinopathy Multi-lesion Segmentation", IEEE TMI 2022, sections III-B and
III-C. No code of the authors is published: the formulas are a reconstruction, and what it had to choose is a setting.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.attention.attend import attend
from shared.attention.cost import Cost, attention_cost, conv_cost, linear_cost
from shared.attention.registry import feature_map, register
from shared.layers import conv
from shared.layers.pooling import average_pool

__all__ = ["GlobalContext", "RelationAttention"]

Source = Literal["x", "context"]


def _context_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n, rank = settings.channels, math.prod(grid), settings.rank
    return 3 * conv_cost(channels, channels, n, kernel=3, rank=rank) + attention_cost(1, n, channels) + linear_cost(channels, channels, 1)


@register("global_context", paper="Huang et al., RTNet, TMI 2022, global transformer block", ranks=(1, 2, 3), cost=_context_cost)
class GlobalContext(nn.Module):
    """Adds one vector to all positions: the values' average, weighted by how well each position's key fits the mean query.

    The last projection starts at 0: a new block changes nothing.

    Args:
        channels: channels of the feature map.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, rank: int = 2) -> None:
        super().__init__()
        _check(channels, 1)
        self.query = conv(channels, channels, kernel=3, rank=rank)
        self.key = conv(channels, channels, kernel=3, rank=rank)
        self.value = conv(channels, channels, kernel=3, rank=rank)
        self.out = _zeroed(conv(channels, channels, kernel=1, rank=rank))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        query = self.query(x).flatten(2).mean(-1)[:, None, None]
        context = attend(query, _tokens(self.key(x)), _tokens(self.value(x)), scale=1.0)
        return x + self.out(context.reshape(*x.shape[:2], *(1 for _ in x.shape[2:])))


def _relation_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n, rank, side = settings.channels, math.prod(grid), settings.rank, settings.pooling
    keys = math.prod(-(-extent // side) for extent in grid)
    head = (
        conv_cost(channels, channels, n, kernel=3, rank=rank)
        + 2 * conv_cost(channels, channels, keys, kernel=3, rank=rank)
        + attention_cost(n, keys, channels)
        + linear_cost(channels, channels, n)
    )
    return 2 * head + linear_cost(2 * channels, channels, n)


def _relation_inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return feature_map(settings, batch, grid) | {"context": torch.randn(batch, settings.channels, *grid)}


class _Head(nn.Module):
    """Attention of a map to itself or another, with 3x3 projections, added to a map."""

    def __init__(self, channels: int, scale: float, pooling: int, rank: int) -> None:
        super().__init__()
        self.query = conv(channels, channels, kernel=3, rank=rank)
        self.key = conv(channels, channels, kernel=3, rank=rank)
        self.value = conv(channels, channels, kernel=3, rank=rank)
        self.out = _zeroed(conv(channels, channels, kernel=1, rank=rank))
        self.scale, self.pooling = scale, pooling

    def forward(self, asking: Tensor, asked: Tensor, residual: Tensor) -> Tensor:
        asked = asked if self.pooling == 1 else average_pool(asked, self.pooling)
        attended = attend(_tokens(self.query(asking)), _tokens(self.key(asked)), _tokens(self.value(asked)), scale=self.scale)
        return residual + self.out(attended.squeeze(1).mT.reshape(asking.shape))


@register(
    "relation",
    paper="Huang et al., RTNet, TMI 2022, relation transformer block",
    ranks=(1, 2, 3),
    cost=_relation_cost,
    inputs=_relation_inputs,
)
class RelationAttention(nn.Module):
    """A self-attention of features and their cross-attention to features of another kind, fused into one map.

    Args:
        channels: channels of both maps and of the output.
        scale: of queries times keys; ``channels ** -0.5`` by default.
        cross_query: which of the two asks in the cross-attention, "x" or "context"; the other one answers.
        cross_residual: which of the two the cross-attention's answer is added to.
        pooling: keys and values are taken from maps averaged in windows of this side: with 2, a quarter of the work in 2-D.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` or ``pooling`` is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(
        self,
        *,
        channels: int,
        scale: float | None = None,
        cross_query: Source = "x",
        cross_residual: Source = "x",
        pooling: int = 1,
        rank: int = 2,
    ) -> None:
        super().__init__()
        _check(channels, pooling)
        scale = channels**-0.5 if scale is None else scale
        self.self_head = _Head(channels, scale, pooling, rank)
        self.cross_head = _Head(channels, scale, pooling, rank)
        self.fuse = conv(2 * channels, channels, kernel=1, rank=rank)
        self.cross_query: Source = cross_query
        self.cross_residual: Source = cross_residual

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: features [B, C, *spatial]; context: features of another kind, of the same shape. Returns the same shape."""
        asking, asked = (x, context) if self.cross_query == "x" else (context, x)
        own = self.self_head(x, x, x)
        crossed = self.cross_head(asking, asked, x if self.cross_residual == "x" else context)
        return self.fuse(torch.cat([own, crossed], dim=1))


def _tokens(x: Tensor) -> Tensor:
    """[B, C, *spatial] to one head's [B, 1, N, C]."""
    return x.flatten(2).mT.unsqueeze(1)


def _zeroed(layer: nn.Module) -> nn.Module:
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def _check(channels: int, pooling: int) -> None:
    if min(channels, pooling) < 1:
        raise ValueError(f"must be positive: channels={channels}, pooling={pooling}")

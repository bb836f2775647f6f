"""Kronecker attention: a feature map is summed up by its averages along each axis, and attention is among these.

Gao et al., "Kronecker attention networks", KDD 2020, section 3: KAO_KV and KAO_QKV.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.attend import attend, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.registry import register

__all__ = ["KroneckerAttention", "KroneckerKeyAttention"]


def _inner(settings: Any) -> int:
    return settings.heads * (settings.channels // settings.heads if settings.head_channels is None else settings.head_channels)


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, inner, lines = settings.channels, _inner(settings), sum(grid)
    return linear_cost(channels, 3 * inner, lines, bias=False) + attention_cost(lines, lines, inner) + linear_cost(inner, channels, lines)


def _key_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, inner, lines, n = settings.channels, _inner(settings), sum(grid), math.prod(grid)
    projections = linear_cost(channels, inner, n, bias=False) + linear_cost(channels, 2 * inner, lines, bias=False)
    return projections + attention_cost(n, lines, inner) + linear_cost(inner, channels, n)


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published projections are convolutions with a kernel of one."""
    renamed = {name.removeprefix("to_"): value.squeeze(-1) if value.ndim == 3 else value for name, value in state.items()}
    query, key_value = renamed["qkv.weight"].tensor_split([renamed["qkv.weight"].shape[0] // 3])
    return {name: value for name, value in renamed.items() if name != "qkv.weight"} | {"query.weight": query, "key_value.weight": key_value}


@register("kronecker_qkv", paper="Gao et al., KANets, KDD 2020, section 3, KAO_QKV", ranks=(1, 2, 3), cost=_cost, published=_published)
class KroneckerAttention(nn.Module):
    """Kronecker attention (KAO_QKV): the averages along all axes attend to each other, and their answers are summed crosswise.

    Of a map of H x W positions these are H + W tokens. Logits are not scaled, as published.

    Args:
        channels: channels of the feature map.
        heads: number of heads.
        head_channels: width of a head; ``channels // heads`` by default.

    Raises:
        ValueError: if ``heads`` is not positive, or does not divide ``channels`` where ``head_channels`` is not given.
    """

    def __init__(self, *, channels: int, heads: int = 8, head_channels: int | None = None) -> None:
        super().__init__()
        self.heads, inner = heads, _checked(channels, heads, head_channels)
        self.query = nn.Linear(channels, inner, bias=False)
        self.key_value = nn.Linear(channels, 2 * inner, bias=False)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        lines = _axis_means(x)
        query, key, value = (split_heads(each, self.heads) for each in (self.query(lines), *self.key_value(lines).chunk(2, dim=-1)))
        answers = self.out(merge_heads(attend(query, key, value, scale=1.0))).mT
        return _outer_sum(answers, x.shape[2:])


@register("kronecker_kv", paper="Gao et al., KANets, KDD 2020, section 3, KAO_KV", ranks=(1, 2, 3), cost=_key_cost, published=_published)
class KroneckerKeyAttention(nn.Module):
    """Kronecker attention (KAO_KV): every position attends to the averages along all axes, H + W of a map of H x W positions.

    Args:
        channels, heads, head_channels: as ``KroneckerAttention``.

    Raises:
        ValueError: as ``KroneckerAttention``.
    """

    def __init__(self, *, channels: int, heads: int = 8, head_channels: int | None = None) -> None:
        super().__init__()
        self.heads, inner = heads, _checked(channels, heads, head_channels)
        self.query = nn.Linear(channels, inner, bias=False)
        self.key_value = nn.Linear(channels, 2 * inner, bias=False)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        query = self.query(x.flatten(2).mT)
        key, value = self.key_value(_axis_means(x)).chunk(2, dim=-1)
        attended = attend(*(split_heads(each, self.heads) for each in (query, key, value)), scale=1.0)
        return self.out(merge_heads(attended)).mT.reshape(x.shape)


def _axis_means(x: Tensor) -> Tensor:
    """x: [B, C, *spatial]. Returns [B, sum of the sides, C]: for each place along each axis the mean over the other axes."""
    axes = range(2, x.ndim)
    others = [tuple(other for other in axes if other != axis) for axis in axes]
    return torch.cat([x.mean(rest) if rest else x for rest in others], dim=-1).mT


def _outer_sum(lines: Tensor, grid: tuple[int, ...]) -> Tensor:
    """lines: [B, C, sum of the sides]. Returns [B, C, *grid]: at each position the sum of its places along the axes."""
    total = lines.new_zeros(())
    for axis, line in enumerate(lines.split(list(grid), dim=-1)):
        total = total + line.unflatten(-1, [-1 if other == axis else 1 for other in range(len(grid))])
    return total


def _checked(channels: int, heads: int, head_channels: int | None) -> int:
    if heads < 1 or (head_channels is None and channels % heads):
        raise ValueError(f"heads={heads} must divide channels={channels}, or head_channels must be given")
    if head_channels is not None and head_channels < 1:
        raise ValueError(f"head_channels must be positive, not {head_channels}")
    return heads * (channels // heads if head_channels is None else head_channels)

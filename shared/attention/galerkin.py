"""Attention without softmax, for functions known at points: Galerkin and Fourier type.

Cao, "Choose a transformer: Fourier or Galerkin", NeurIPS 2021, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.attend import check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, linear_cost, norm_cost
from shared.attention.linear import linear_attend, linear_attend_cost
from shared.attention.registry import register

__all__ = ["FourierAttention", "GalerkinAttention"]


class _HeadNorm(nn.Module):
    """Layer normalisation of [B, h, N, d] with a weight and a bias for each head."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.weight.unsqueeze(1) + self.bias.unsqueeze(1)


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, heads, n = settings.channels, settings.heads, math.prod(grid)
    width = channels // heads + settings.axes
    projections = 3 * linear_cost(channels, channels, n) + linear_cost(heads * width, channels, n) + 2 * norm_cost(channels)
    return projections + linear_attend_cost(n, n, width, width=width, heads=heads, normalised=False)


def _inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    n = math.prod(grid)
    return {"x": torch.randn(batch, n, settings.channels), "coordinates": torch.rand(batch, n, settings.axes)}


_LAYERS = {"linears.0": "query", "linears.1": "key", "linears.2": "value", "fc": "out"}
_NORMS = {"norm_Q": "query_norm", "norm_K": "key_norm", "norm_V": "value_norm"}


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published norms are one module for each head."""
    renamed: dict[str, Tensor] = {}
    for theirs, ours in _LAYERS.items():
        renamed |= {f"{ours}{name.removeprefix(theirs)}": value for name, value in state.items() if name.startswith(f"{theirs}.")}
    for theirs, ours in _NORMS.items():
        for kind in ("weight", "bias"):
            heads = [name for name in state if name.startswith(f"{theirs}.") and name.endswith(kind)]
            if heads:
                renamed[f"{ours}.{kind}"] = torch.stack([state[f"{theirs}.{head}.{kind}"] for head in range(len(heads))])
    return renamed


@register(
    "galerkin",
    paper="Cao, Galerkin transformer, NeurIPS 2021, section 3",
    ranks=(),
    cost=_cost,
    inputs=_inputs,
    example={"heads": 4},
    published=_published,
)
class GalerkinAttention(nn.Module):
    """Galerkin attention of points: q (k^T v) / N, with keys and values normalised; a projection onto learned bases, in linear time.

    The coordinates of the points are put before the channels of every head. The published code drops weights at random in evaluation too,
    by mistake; nothing is dropped here.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        axes: number of coordinates of a point; 0 for none.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or ``axes`` is negative.
    """

    def __init__(self, *, channels: int, heads: int = 4, axes: int = 2) -> None:
        super().__init__()
        _check(channels, heads, axes)
        self.heads, self.axes = heads, axes
        self.query, self.key, self.value = (_near_identity(channels) for _ in range(3))
        self.key_norm = _HeadNorm(heads, channels // heads)
        self.value_norm = _HeadNorm(heads, channels // heads)
        self.out = nn.Linear(channels + heads * axes, channels)

    def forward(self, x: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; coordinates: [B, N, axes], of any unit. Returns [B, N, C].

        Raises:
            ValueError: if the coordinates are not as many as ``axes``.
        """
        query, key, value = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        query, key, value = _placed((query, self.key_norm(key), self.value_norm(value)), coordinates, self.axes)
        return self.out(merge_heads(linear_attend(query, key, value, normaliser=1 / x.shape[1])))


@register(
    "fourier",
    paper="Cao, Galerkin transformer, NeurIPS 2021, section 3",
    ranks=(),
    cost=_cost,
    inputs=_inputs,
    example={"heads": 4},
    published=_published,
)
class FourierAttention(nn.Module):
    """Fourier attention of points: (q k^T) v / N without softmax, with queries and keys normalised; an integral with a learned kernel.

    The published code forms q k^T, and drops weights at random in evaluation too, by mistake. The product is the same in linear time.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        axes: number of coordinates of a point, put before the channels of every head; 0 for none.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or ``axes`` is negative.
    """

    def __init__(self, *, channels: int, heads: int = 4, axes: int = 2) -> None:
        super().__init__()
        _check(channels, heads, axes)
        self.heads, self.axes = heads, axes
        self.query, self.key, self.value = (_near_identity(channels) for _ in range(3))
        self.query_norm = _HeadNorm(heads, channels // heads)
        self.key_norm = _HeadNorm(heads, channels // heads)
        self.out = nn.Linear(channels + heads * axes, channels)

    def forward(self, x: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; coordinates: [B, N, axes], of any unit. Returns [B, N, C].

        Raises:
            ValueError: if the coordinates are not as many as ``axes``.
        """
        query, key, value = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        query, key, value = _placed((self.query_norm(query), self.key_norm(key), value), coordinates, self.axes)
        return self.out(merge_heads(linear_attend(query, key, value, normaliser=query.shape[-1] ** -0.5 / x.shape[1])))


def _placed(each: tuple[Tensor, ...], coordinates: Tensor | None, axes: int) -> tuple[Tensor, ...]:
    """Each [B, h, N, d], with the coordinates [B, N, axes] before its channels."""
    given = 0 if coordinates is None else coordinates.shape[-1]
    if given != axes:
        raise ValueError(f"coordinates must be [B, N, {axes}], not {given} for each point")
    if coordinates is None or not axes:
        return each
    places = coordinates.unsqueeze(1).expand(-1, each[0].shape[1], -1, -1)
    return tuple(torch.cat((places.to(x.dtype), x), dim=-1) for x in each)


def _near_identity(channels: int) -> nn.Linear:
    """Almost nothing, plus a hundredth of the identity: how the paper starts its projections."""
    layer = nn.Linear(channels, channels)
    nn.init.xavier_uniform_(layer.weight, gain=1e-4)
    with torch.no_grad():
        layer.weight.add_(0.01 * torch.eye(channels))
    nn.init.zeros_(layer.bias)
    return layer


def _check(channels: int, heads: int, axes: int) -> None:
    check_heads(channels, heads)
    if axes < 0:
        raise ValueError(f"axes must not be negative, but is {axes}")

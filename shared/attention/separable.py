"""Separable self-attention: one query channel chooses what the keys are summed up by, and the sum gates every position.

Mehta and Rastegari, "Separable self-attention for mobile vision transformers", TMLR 2023 (MobileViTv2), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, linear_cost
from shared.attention.linear import full_precision, widen
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.attention.windows import crop, pad_to_multiple, padded_grid, per_axis

__all__ = ["SeparableAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    return linear_cost(channels, 1 + 2 * channels, n) + linear_cost(channels, channels, n)


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published projections are convolutions with a kernel of one: the authors', timm's or transformers'."""
    renamed = {}
    for name, value in state.items():
        layer, kind = name.split(".", 1)[0], name.rsplit(".", 1)[1]
        renamed[f"{layer.removesuffix('_proj')}.{kind}"] = value.flatten(1) if kind == "weight" else value
    return renamed


@register("separable", paper="Mehta and Rastegari, MobileViTv2, TMLR 2023, section 3.2", ranks=(1, 2, 3), cost=_cost, published=_published)
class SeparableAttention(nn.Module):
    """Separable self-attention: a softmax over the map weighs the keys into one context vector, which gates the values everywhere.

    As in MobileViTv2, each place within a patch has a context of its own, over all patches. Maps that patches do not fill are padded, and
    the padding is not seen. (The published code resizes them, or wants them filled.)

    Args:
        channels: channels of the feature map.
        patch: side of a patch; one number, or one for each spatial axis. 1: one context for the whole map.

    Raises:
        ValueError: if ``channels`` or ``patch`` is not positive; in ``forward``, if ``patch`` has not as many numbers as the map has axes.
    """

    def __init__(self, *, channels: int, patch: int | tuple[int, ...] = 2) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, not {channels}")
        per_axis(patch, 1 if isinstance(patch, int) else len(patch), name="patch")
        self.patch = patch
        self.qkv = nn.Linear(channels, 1 + 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, C, *spatial], gives the values; context: [B, C, *any], gives query and keys, by default x. Returns x's shape."""
        channels = x.shape[1]
        patch = per_axis(self.patch, x.ndim - 2, name="patch")
        if context is None:
            query, key, value = self.qkv(x.movedim(1, -1)).split((1, channels, channels), dim=-1)
        else:
            of_query, of_value = (1 + channels, channels)
            weights, biases = self.qkv.weight.split((of_query, of_value)), self.qkv.bias.split((of_query, of_value))
            query, key = F.linear(context.movedim(1, -1), weights[0], biases[0]).split((1, channels), dim=-1)
            value = F.linear(x.movedim(1, -1), weights[1], biases[1])
        vector = _context(query, key, patch).to(value.dtype)
        gated = _whole(_patches(F.relu(value), patch) * vector, value.shape[1:-1], patch)
        return self.out(gated).movedim(-1, 1)


def _context(query: Tensor, key: Tensor, patch: tuple[int, ...]) -> Tensor:
    """query: [B, *grid, 1]; key: [B, *grid, C]. Returns [B, 1, p, 1, p, ..., C]: for each place in a patch the weighted sum of the keys."""
    grid, over_patches = query.shape[1:-1], tuple(range(1, 2 * len(patch), 2))
    with full_precision(query):
        real = _patches(torch.ones((1, *grid, 1), dtype=torch.bool, device=query.device), patch)
        # The lowest number and not minus infinity: a place that no patch has at all would have no softmax.
        logits = _patches(widen(query), patch).masked_fill(~real, torch.finfo(widen(query).dtype).min)
        weights = torch.exp(logits - logits.logsumexp(over_patches, keepdim=True))
        if recording():
            note(GivenMap(_whole(weights, grid, patch).movedim(-1, 1)))
        return (weights * _patches(widen(key), patch)).sum(over_patches, keepdim=True)


def _patches(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """x: [B, *grid, c]. Returns [B, patches, p, patches, p, ..., c], their number and side along each axis, padded with zeros."""
    counts = [-(-extent // side) for extent, side in zip(x.shape[1:-1], patch, strict=True)]
    pairs = [size for pair in zip(counts, patch, strict=True) for size in pair]
    return pad_to_multiple(x, patch).reshape(x.shape[0], *pairs, x.shape[-1])


def _whole(x: Tensor, grid: Sequence[int], patch: tuple[int, ...]) -> Tensor:
    """The inverse of ``_patches``, without the padding."""
    return crop(x.reshape(x.shape[0], *padded_grid(grid, patch), x.shape[-1]), grid)

"""Linear attention made injective by subtraction, with a convolution whose kernels each sample makes for itself (InLine).

Han et al., "Bridging the divide: reconsidering softmax and linear attention", NeurIPS 2024, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.attend import check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, conv_cost, linear_cost, product_cost
from shared.attention.linear import full_precision, linear_attend, linear_attend_cost, widen
from shared.attention.registry import register, tokens
from shared.attention.windows import grid_of
from shared.layers import conv

__all__ = ["InLineAttention"]

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, heads, taps, n = settings.channels, settings.heads, 3**settings.rank, math.prod(grid)
    count = n + settings.class_token
    products = linear_attend_cost(count, count, channels // heads, width=channels // heads, heads=heads)
    kernels = conv_cost(channels, channels, 1, kernel=1, groups=heads) + conv_cost(channels, taps * channels, 1, kernel=1, groups=heads)
    projections = linear_cost(channels, 3 * channels, count, bias=settings.qkv_bias) + linear_cost(channels, channels, count)
    return projections + products + kernels + product_cost(n, channels, taps)


@register(
    "inline",
    paper="Han et al., InLine, NeurIPS 2024, section 4",
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=tokens,
    published={"residual": "kernels", "proj": "out"},
)
class InLineAttention(nn.Module):
    """InLine attention: linear weights q.k that are made to sum to 1 by subtraction, not by division, so that no two queries look alike.

    To it comes a depthwise convolution of the values, with a kernel of side 3 that is computed from the mean of the tokens.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        qkv_bias: whether queries, keys and values have a bias.
        class_token: the first token is no place of the grid; the convolution leaves it out.
        rank: number of spatial axes, 1 to 3; published for 2.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or ``rank`` is not 1, 2 or 3; in ``forward``, if the tokens do not fill the
            grid.
    """

    def __init__(self, *, channels: int, heads: int = 8, qkv_bias: bool = True, class_token: bool = False, rank: int = 2) -> None:
        super().__init__()
        check_heads(channels, heads)
        if rank not in _CONVOLVE:
            raise ValueError(f"rank must be 1, 2 or 3, not {rank}")
        self.heads, self.class_token, self.rank = heads, class_token, rank
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.kernels = nn.Sequential(
            conv(channels, channels, kernel=1, groups=heads, rank=1),
            nn.GELU(),
            conv(channels, 3**rank * channels, kernel=1, groups=heads, rank=1),
        )
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """x: [B, N, C], a class token if there is one, then those of a grid with so many places along each axis. Returns the same shape."""
        first = int(self.class_token)
        grid = grid_of(x[:, first:], grid, rank=self.rank)
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        kernels = self.kernels(x.mean(1).unsqueeze(-1)).reshape(-1, x.shape[-1], *(3,) * self.rank)
        local = _convolved(value[:, first:].mT.reshape(x.shape[0], x.shape[-1], *grid), kernels).flatten(2).mT
        attended = self._attended(*(split_heads(each, self.heads) for each in (query, key, value)))
        return self.out(attended + F.pad(local, (0, 0, first, 0)))

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All [B, h, N, d]. Returns [B, N, C]."""
        count, scale = key.shape[2], query.shape[-1] ** -0.5
        with full_precision(query):
            # The mean of a query's weights, which is taken off each of them so that with 1/N they sum to 1.
            offset = (1 - scale * widen(query) @ widen(key).mean(2, keepdim=True).mT) / count
        return merge_heads(linear_attend(query, key, value, normaliser=scale / count, offset=offset))


def _convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """x: [B, C, *spatial], convolved depthwise with each sample's own kernels [B, C, 3, ...]. Zeros lie outside."""
    if x.shape[0] == 0:
        return x
    folded, groups = x.reshape(1, -1, *x.shape[2:]), x.shape[0] * x.shape[1]
    kernels = kernels.reshape(groups, 1, *kernels.shape[2:]).to(x.dtype)
    return _CONVOLVE[x.ndim - 2](folded, kernels, padding=1, groups=groups).reshape(x.shape)

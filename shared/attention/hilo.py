"""HiLo: some heads look closely at their neighbours, the others at averages of everything.

Pan et al., "Fast Vision Transformers with HiLo Attention", NeurIPS 2022, section 4.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.registry import register, tokens
from shared.attention.windows import grid_of, merge_grid, padded_grid, per_axis, split_grid, window_attend
from shared.layers.pooling import average_pool

__all__ = ["HiLoAttention"]


def _low_heads(heads: int, low_share: float, window: int | tuple[int, ...]) -> int:
    """Windows of one token have nothing to look at: all heads are global then."""
    sides = (window,) if isinstance(window, int) else window
    return heads if max(sides) == 1 else int(heads * low_share)


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n, bias = settings.channels, math.prod(grid), settings.qkv_bias
    low = _low_heads(settings.heads, settings.low_share, settings.window) * (channels // settings.heads)
    high = channels - low
    window = per_axis(settings.window, len(grid))
    padded, size = math.prod(padded_grid(grid, window)), math.prod(window)
    total = Cost()
    if high:
        total += linear_cost(channels, 3 * high, n, bias=bias) + attention_cost(padded, size, high) + linear_cost(high, high, n)
    if low:
        total += linear_cost(channels, low, n, bias=bias) + linear_cost(channels, 2 * low, padded // size, bias=bias)
        total += attention_cost(n, padded // size, low) + linear_cost(low, low, n)
    return total


@register(
    "hilo",
    paper="Pan et al., LITv2, NeurIPS 2022, section 4",
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=tokens,
    example={"heads": 4},
    published={"h_qkv": "high_qkv", "h_proj": "high_out", "l_q": "low_query", "l_kv": "low_key_value", "l_proj": "low_out"},
)
class HiLoAttention(nn.Module):
    """HiLo: high-frequency heads attend within small windows, low-frequency heads to the average of each window.

    Averages are over the real tokens of a window: at the far end it may hold fewer. Recorded parts: "high" and "low".

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        window: side of the windows; one number, or one for each axis. With 1 all heads are low, and this is plain self-attention.
        low_share: share of low-frequency heads, alpha in the paper, 0 to 1; the number of heads is rounded down.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, ``low_share`` is outside 0 to 1, or a side of the window is not positive.
    """

    def __init__(
        self, *, channels: int, heads: int = 8, window: int | tuple[int, ...] = 2, low_share: float = 0.5, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        if not 0 <= low_share <= 1:
            raise ValueError(f"low_share must be from 0 to 1, not {low_share}")
        per_axis(window, 1 if isinstance(window, int) else len(window))
        self.window = window
        self.low_heads = _low_heads(heads, low_share, window)
        self.high_heads = heads - self.low_heads
        low, high = (count * (channels // heads) for count in (self.low_heads, self.high_heads))
        if high:
            self.high_qkv = nn.Linear(channels, 3 * high, bias=qkv_bias)
            self.high_out = nn.Linear(high, high)
        if low:
            self.low_query = nn.Linear(channels, low, bias=qkv_bias)
            self.low_key_value = nn.Linear(channels, 2 * low, bias=qkv_bias)
            self.low_out = nn.Linear(low, low)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x: [B, N, C], the places of ``grid`` in order. Returns the same shape: the high heads' channels, then the low ones'.

        Raises:
            ValueError: if N is not the grid's number of places, or the window has another number of axes.
        """
        grid = grid_of(x, grid)
        window = per_axis(self.window, len(grid))
        found = []
        if self.high_heads:
            found.append(self._high(x, grid, window))
        if self.low_heads:
            found.append(self._low(x, grid, window))
        return torch.cat(found, dim=-1)

    def _high(self, x: Tensor, grid: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
        query, key, value = (split_grid(each, self.high_heads) for each in self.high_qkv(x.unflatten(1, grid)).chunk(3, dim=-1))
        return self.high_out(merge_grid(window_attend(query, key, value, window=window, part="high"))).flatten(1, -2)

    def _low(self, x: Tensor, grid: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
        averages = average_pool(x.mT.unflatten(2, grid), window).flatten(2).mT
        key, value = (split_heads(each, self.low_heads) for each in self.low_key_value(averages).chunk(2, dim=-1))
        return self.low_out(merge_heads(attend(split_heads(self.low_query(x), self.low_heads), key, value, part="low")))

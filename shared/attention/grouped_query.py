"""Attention whose heads share keys and values: the same queries, with less to project and to keep.

Shazeer, "Fast transformer decoding: one write-head is all you need" (multi-query attention), 2019; Ainslie et al., "GQA: training
generalized multi-query transformer models from multi-head checkpoints", EMNLP 2023, section 2.2.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.registry import bag, register

__all__ = ["GroupedQueryAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    width = channels + 2 * settings.key_heads * (channels // settings.heads)
    return linear_cost(channels, width, n, bias=settings.qkv_bias) + attention_cost(n, n, channels) + linear_cost(channels, channels, n)


@register("mqa", paper="Shazeer, multi-query attention, 2019", ranks=(), cost=_cost, inputs=bag, preset={"key_heads": 1})
@register("gqa", paper="Ainslie et al., GQA, EMNLP 2023, section 2.2", ranks=(), cost=_cost, inputs=bag)
class GroupedQueryAttention(nn.Module):
    """Self-attention of tokens in several heads, of which each group shares one head of keys and values.

    With as many key heads as heads it is ``mhsa``, weights included; with one it is multi-query attention. From the papers; no
    published code was compared.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads of queries; a multiple of ``key_heads``.
        key_heads: number of heads of keys and values. Neighbouring heads of queries share one.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or ``key_heads`` does not divide ``heads``.
    """

    def __init__(self, *, channels: int, heads: int = 8, key_heads: int = 2, qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads(channels, heads)
        if key_heads < 1 or heads % key_heads:
            raise ValueError(f"key_heads={key_heads} must divide heads={heads}")
        self.heads, self.key_heads = heads, key_heads
        self.widths = (channels, key_heads * (channels // heads), key_heads * (channels // heads))
        self.qkv = nn.Linear(channels, sum(self.widths), bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; mask: bool, True where a key may be seen, broadcast to [B, heads, N, N]. Returns [B, N, C]."""
        query, key, value = self.qkv(x).split(self.widths, dim=-1)
        key, value = (split_heads(each, self.key_heads).repeat_interleave(self.heads // self.key_heads, dim=1) for each in (key, value))
        return self.out(merge_heads(attend(split_heads(query, self.heads), key, value, mask=mask)))

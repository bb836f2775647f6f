"""Attention by rectified products: weights that are exactly zero where query and key disagree, with no softmax.

Zhang et al., "Sparse attention with linear units" (ReLA), EMNLP 2021, section 3.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from shared.attention.attend import check_heads, merge_heads, split_heads
from shared.attention.chunked import tiled_attend
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.registry import bag, register

__all__ = ["ReluAttention", "rectified_weights"]


def rectified_weights(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """max(s, 0) of logits s [..., keys]; 0 where the mask, which broadcasts to them, is False."""
    return logits.relu() if mask is None else logits.relu() * mask


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    projections = linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + linear_cost(channels, channels, n)
    return projections + attention_cost(n, n, channels) + Cost(channels // settings.heads)


@register("rela", paper="Zhang et al., ReLA, EMNLP 2021, section 3", ranks=(), cost=_cost, inputs=bag)
class ReluAttention(nn.Module):
    """Rectified linear attention (ReLA): ReLU for softmax, and an RMS norm of each head's output to keep its size.

    From the paper; no published code was compared, and that one gain serves all heads is our reading. Computed in tiles of queries.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, *, channels: int, heads: int = 8, qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.norm = nn.RMSNorm(channels // heads, eps=1e-5)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; mask: bool, True where a key may be seen, broadcast to [B, heads, N, N]. Returns [B, N, C]."""
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        attended = tiled_attend(query, key, value, weigh=rectified_weights, mask=mask)
        # Under autocast the products come in half precision; the norm is taken in its own.
        return self.out(merge_heads(self.norm(attended.to(self.norm.weight.dtype))))

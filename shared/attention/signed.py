"""Attention whose weights may be negative: a token can be subtracted as well as added.

Lv et al., "More expressive attention with negative weights" (Cog Attention), 2024.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.attend import check_heads, merge_heads, split_heads
from shared.attention.chunked import tiled_attend
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.registry import bag, register

__all__ = ["SignedAttention", "signed_weights"]


def signed_weights(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """sign(s) softmax(|s|) of logits s [..., keys]: the sizes of each row's weights sum to 1.

    Args:
        mask: bool, broadcasts to the logits; False: this key is not seen. A row that sees none is 0.
    """
    if mask is None:
        return logits.sign() * torch.softmax(logits.abs(), dim=-1)
    # Not minus infinity: a row without any key would be 0/0, in its gradient too.
    sizes = logits.abs().masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.sign() * torch.softmax(sizes, dim=-1) * mask


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    return (
        linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + attention_cost(n, n, channels) + linear_cost(channels, channels, n)
    )


@register("cog", paper="Lv et al., Cog Attention, 2024", ranks=(), cost=_cost, inputs=bag, published={"proj": "out"})
class SignedAttention(nn.Module):
    """Cog attention: self-attention that adds the tokens whose keys agree with a query, and subtracts those that oppose it.

    No fused kernel has these weights: they are computed in tiles of queries, and again in backward, so that a large map is never whole.

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
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; mask: bool, True where a key may be seen, broadcast to [B, heads, N, N]. Returns [B, N, C]."""
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        return self.out(merge_heads(tiled_attend(query, key, value, weigh=signed_weights, mask=mask)))

"""Multi-head self-attention of vision transformers.

Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.2; Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost, norm_cost
from shared.attention.registry import bag, register

__all__ = ["MultiHeadAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    norms = norm_cost(channels // settings.heads) * (2 * settings.normalise_heads)
    return (
        linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias)
        + attention_cost(n, n, channels)
        + linear_cost(channels, channels, n)
        + norms
    )


@register(
    "mhsa",
    paper="Dosovitskiy et al., ViT, ICLR 2021",
    ranks=(),
    cost=_cost,
    inputs=bag,
    published={"q_norm": "query_norm", "k_norm": "key_norm", "proj": "out"},
)
class MultiHeadAttention(nn.Module):
    """Self-attention of tokens, in several heads.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        qkv_bias: whether queries, keys and values have a bias.
        normalise_heads: LayerNorm of each head's queries and keys before their product (Henry et al., 2020).

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, *, channels: int, heads: int = 8, qkv_bias: bool = True, normalise_heads: bool = False) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.query_norm = nn.LayerNorm(channels // heads) if normalise_heads else nn.Identity()
        self.key_norm = nn.LayerNorm(channels // heads) if normalise_heads else nn.Identity()
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; mask: bool, True where a key may be seen, broadcast to [B, heads, N, N]. Returns [B, N, C]."""
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        return self.out(merge_heads(attend(self.query_norm(query), self.key_norm(key), value, mask=mask)))

"""Two helpers of fine-grained recognition: queries from the most telling tokens, and another image as a distraction in training.

Zhu et al., "Dual cross-attention learning for fine-grained visual categorization and object re-identification" (DCAL), CVPR 2022,
sections 3.2 and 3.3. From the paper; no published code was compared.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.decoder import QueryAttention
from shared.attention.registry import bag, register

__all__ = ["GlobalLocalAttention", "PairwiseAttention", "telling_tokens"]


def telling_tokens(rollout: Tensor, count: int) -> Tensor:
    """The tokens that the class token rests on most.

    Args:
        rollout: [B, N], the class token's row of the rollout of the layers so far, itself at 0: ``shared.explain`` computes it from maps.
        count: how many tokens.

    Returns:
        Their places [B, count]; never 0.

    Raises:
        ValueError: if there are not so many tokens beside the class token.
    """
    if not 1 <= count < rollout.shape[1]:
        raise ValueError(f"count={count} must be from 1 to {rollout.shape[1] - 1}, the number of tokens beside the class token")
    return rollout[:, 1:].topk(count, dim=-1).indices + 1


def _chosen(n: int) -> int:
    """How many tokens the costs are counted for: a tenth, as in the paper's fine-grained recognition."""
    return -(-n // 10)


def _local_inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    n = math.prod(grid)
    return bag(settings, batch, grid) | {"chosen": torch.rand(batch, n).argsort(-1)[:, : _chosen(n)]}


def _local_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    few = _chosen(n)
    return 2 * linear_cost(channels, channels, few) + 2 * linear_cost(channels, channels, n) + attention_cost(few, n, channels)


@register("glca", paper="Zhu et al., DCAL, CVPR 2022, section 3.2", ranks=(), cost=_local_cost, inputs=_local_inputs)
class GlobalLocalAttention(nn.Module):
    """Global-local cross-attention (GLCA): the few tokens that matter to the class look at all tokens.

    Which they are, ``telling_tokens`` says, from the maps of the layers before. From the paper; no published code was compared.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, *, channels: int, heads: int = 8) -> None:
        super().__init__()
        self.attention = QueryAttention(channels=channels, heads=heads)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        """x: [B, N, C]; chosen: places [B, R] of the tokens that ask. Returns [B, R, C]."""
        few = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return self.attention(few, x, x)


def _pair_inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return bag(settings, batch, grid) | {"distraction": bag(settings, batch, grid)["x"]}


def _pair_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    own = linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + linear_cost(channels, channels, n)
    return own + Cost(0, linear_cost(channels, 2 * channels, n).macs) + attention_cost(n, 2 * n, channels)


@register("pwca", paper="Zhu et al., DCAL, CVPR 2022, section 3.3", ranks=(), cost=_pair_cost, inputs=_pair_inputs)
class PairwiseAttention(nn.Module):
    """Pairwise cross-attention (PWCA): in training, each image's tokens also see those of another image, which only distract.

    Without a distraction, as in inference, it is ``mhsa``, with the same weights. From the paper; no published code was compared.

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
        self.channels, self.heads = channels, heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, distraction: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; distraction: the same layer's tokens of other images, [B, M, C]. Returns [B, N, C]."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        if distraction is not None:
            bias = None if self.qkv.bias is None else self.qkv.bias[self.channels :]
            others = F.linear(distraction, self.qkv.weight[self.channels :], bias).chunk(2, dim=-1)
            key, value = (torch.cat(pair, dim=1) for pair in zip((key, value), others, strict=True))
        return self.out(merge_heads(attend(*(split_heads(each, self.heads) for each in (query, key, value)))))

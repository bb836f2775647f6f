"""Mixture of heads: each token chooses which attention heads it listens to.

Jin et al., "MoH: Multi-head attention as mixture-of-head attention", 2024, section 3; on the cosine attention of Shi, "TransNeXt: Robust
foveal visual perception for vision transformers", CVPR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register, tokens
from shared.attention.windows import grid_of

__all__ = ["MixtureOfHeads"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, heads, hidden, n = settings.channels, settings.heads, settings.bias_channels, math.prod(grid)
    offsets = math.prod(2 * extent - 1 for extent in grid)
    gates = linear_cost(channels, heads - settings.shared_heads, n, bias=False) + linear_cost(channels, 2, n, bias=False)
    if settings.shared_heads > 1:
        gates += linear_cost(channels, settings.shared_heads, n, bias=False)
    bias = linear_cost(settings.rank, hidden, offsets) + linear_cost(hidden, heads, offsets)
    projections = linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + linear_cost(channels, channels, n)
    return projections + attention_cost(n, n, channels) + gates + bias + Cost(heads + channels)


@register(
    "moh",
    paper="Jin et al., MoH, 2024, section 3",
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=tokens,
    published={"proj": "out", "cpb_fc1": "bias_hidden", "cpb_fc2": "bias_out", "wg": "route", "wg_0": "balance", "wg_1": "share"},
)
class MixtureOfHeads(nn.Module):
    """Mixture-of-head attention (MoH): some heads serve every token, of the others each token takes the best few, weighted by gates.

    The attention is TransNeXt's: cosines between queries and keys, a learned temperature times the logarithm of the number of tokens,
    and a bias by relative place from a small network. The published code fixes size and places when it is built, and collects the
    balance loss in a list on the class; here they come from the grid of each call, and ``balance_loss`` is asked for.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        shared_heads: how many of them, the first, serve every token.
        routed_heads: how many of the others each token takes. The published models choose both numbers per stage.
        bias_channels: width of the hidden layer of the relative bias.
        qkv_bias: whether queries, keys and values have a bias.
        rank: number of axes of the grid, 1 to 3; 2 in the published models.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, no head is shared, fewer heads are left than are routed, or ``rank`` is
            not 1, 2 or 3.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        shared_heads: int = 2,
        routed_heads: int = 3,
        bias_channels: int = 512,
        qkv_bias: bool = True,
        rank: int = 2,
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        if shared_heads < 1:
            raise ValueError(f"shared_heads must be positive, not {shared_heads}")
        if not 1 <= routed_heads <= heads - shared_heads:
            raise ValueError(f"routed_heads={routed_heads} must be from 1 to heads - shared_heads = {heads - shared_heads}")
        if rank not in (1, 2, 3):
            raise ValueError(f"rank must be 1, 2 or 3, not {rank}")
        self.heads, self.shared_heads, self.routed_heads, self.rank = heads, shared_heads, routed_heads, rank
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)
        # Goes through a softplus, which makes it 1 / 0.24.
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), math.log(math.expm1(1 / 0.24))))
        self.query_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, 1, channels // heads), std=0.02))
        self.bias_hidden = nn.Linear(rank, bias_channels)
        self.bias_out = nn.Linear(bias_channels, heads)
        self.route = nn.Linear(channels, heads - shared_heads, bias=False)
        self.share = nn.Linear(channels, shared_heads, bias=False) if shared_heads > 1 else None
        self.balance = nn.Linear(channels, 2, bias=False)

    def forward(self, x: Tensor, *, grid: Sequence[int]) -> Tensor:
        """x: [B, N, C] on a grid with N places. Returns [B, N, C]."""
        grid = grid_of(x, grid)
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        query = F.normalize(query, dim=-1) + self.query_embedding
        tokens = torch.full((), math.prod(grid), dtype=query.dtype, device=x.device)
        scale = F.softplus(self.temperature) * tokens.log()
        attended = attend(query * scale, F.normalize(key, dim=-1), value, scale=1.0, bias=self.bias(grid))
        gate = self.gates(x).mT
        if recording():
            note(GivenMap(gate), part="gate")
        return self.out(merge_heads(attended * gate.unsqueeze(-1)))

    def gates(self, x: Tensor) -> Tensor:
        """How much each token [B, N, C] hears of each head: [B, N, heads], shared heads first; 0 for heads that it does not take."""
        probability = self.route(x).softmax(-1)
        routed = probability * self._taken(probability)
        routed = self.routed_heads * routed / routed.sum(-1, keepdim=True)
        shared = torch.ones_like(probability[..., :1]) if self.share is None else self.shared_heads * self.share(x).softmax(-1)
        to_shared, to_routed = (2 * self.balance(x).softmax(-1)).split(1, dim=-1)
        return torch.cat([to_shared * shared, to_routed * routed], dim=-1)

    def balance_loss(self, x: Tensor) -> Tensor:
        """Smallest when the routed heads are taken equally often; to be added to the loss, with weight 0.01 in the paper.

        The sum over routed heads of the share of tokens that take it times its mean probability. x: [B, N, C], the block's
        input. Returns a number.
        """
        probability = self.route(x).softmax(-1)
        return (self._taken(probability).mean((0, 1)) * probability.mean((0, 1))).sum()

    def bias(self, grid: Sequence[int]) -> Tensor:
        """What is added to the logits of a grid of N places: [heads, N, N], by place of the query relative to the key."""
        weight = self.bias_hidden.weight
        offsets = [torch.arange(1 - extent, extent, device=weight.device) for extent in grid]
        relative = [8 * offset.to(weight.dtype) / max(extent - 1, 1) for offset, extent in zip(offsets, grid, strict=True)]
        steps = torch.stack(torch.meshgrid(*relative, indexing="ij"), dim=-1).flatten(0, -2)
        table = self.bias_out(F.relu(self.bias_hidden(steps.sign() * torch.log2(1 + steps.abs()) / 3)))

        places = torch.stack(torch.meshgrid(*(torch.arange(extent, device=weight.device) for extent in grid), indexing="ij")).flatten(1)
        row = torch.zeros_like(places[0].unsqueeze(1) - places[0])
        for place, extent in zip(places, grid, strict=True):
            row = row * (2 * extent - 1) + place.unsqueeze(1) - place + extent - 1
        return table.mT[:, row]

    def _taken(self, probability: Tensor) -> Tensor:
        best = probability.topk(self.routed_heads, dim=-1).indices
        return torch.zeros_like(probability).scatter(-1, best, 1.0)

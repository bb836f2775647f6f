"""Agent attention: a few agents look at all tokens, and all tokens look at the agents.

Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", ECCV 2024, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, conv_cost, linear_cost
from shared.attention.registry import register, tokens
from shared.attention.twins import SpatialReduction, reduction_cost
from shared.attention.windows import grid_of, per_axis
from shared.layers import conv, resize
from shared.layers.pooling import average_pool_to

__all__ = ["AgentAttention", "AgentBias"]

_TABLE_SIDE = 7
"""Of the coarse table that is interpolated to the whole grid, as published."""


class AgentBias(nn.Module):
    """A bias for each agent and each place: a coarse table, interpolated to the grid, and one for each coordinate along each axis.

    Args:
        heads: number of heads.
        agents: number of agents.
        size: extents that the coordinates' biases are learned for, one for each of 1 to 3 axes; at others they are interpolated.
    """

    def __init__(self, *, heads: int, agents: int, size: Sequence[int]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(heads, agents, *(_TABLE_SIDE for _ in size)))
        self.axes = nn.ParameterList(nn.Parameter(torch.empty(heads, agents, extent)) for extent in size)
        for weight in self.parameters():
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, grid: Sequence[int]) -> Tensor:
        """[heads, agents, N], for the places of the grid in order."""
        bias = resize(self.table, grid)
        for axis, (extent, along) in enumerate(zip(grid, self.axes, strict=True)):
            bias = bias + resize(along, (extent,)).reshape(*along.shape[:2], *(extent if each == axis else 1 for each in range(len(grid))))
        return bias.flatten(2)


def _reduced(size: Sequence[int], reduction: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-extent // side) for extent, side in zip(size, reduction, strict=True))


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n, rank, qkv_bias = settings.channels, math.prod(grid), len(grid), settings.qkv_bias
    agents = math.prod(per_axis(settings.agents, rank))
    size = per_axis(settings.size, rank)
    reduction, reduced = reduction_cost(settings, grid)
    numbers = 2 * _TABLE_SIDE**rank + sum(size) + sum(_reduced(size, per_axis(settings.reduction, rank)))
    return (
        linear_cost(channels, channels, n, bias=qkv_bias)
        + reduction
        + linear_cost(channels, 2 * channels, reduced, bias=qkv_bias)
        + attention_cost(agents, reduced, channels)
        + attention_cost(n, agents, channels)
        + conv_cost(channels, channels, n, kernel=3, rank=rank, groups=channels)
        + linear_cost(channels, channels, n)
        + Cost(settings.heads * agents * numbers)
    )


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"q": "query", "kv": "key_value", "sr": "reduce.merge", "norm": "reduce.norm", "dwc": "local", "proj": "out"}
    biases = {
        "an_bias": ("gather_bias.table", lambda bias: bias),
        "ah_bias": ("gather_bias.axes.0", lambda bias: bias[0, ..., 0]),
        "aw_bias": ("gather_bias.axes.1", lambda bias: bias[0, ..., 0, :]),
        "na_bias": ("spread_bias.table", lambda bias: bias),
        "ha_bias": ("spread_bias.axes.0", lambda bias: bias[0, :, :, 0].mT),
        "wa_bias": ("spread_bias.axes.1", lambda bias: bias[0, :, 0].mT),
    }
    ours = {}
    for key, value in state.items():
        if key in biases:
            name, arrange = biases[key]
            ours[name] = arrange(value)
        else:
            layer, _, kind = key.partition(".")
            ours[f"{names[layer]}.{kind}"] = value
    return ours


@register(
    "agent",
    paper="Han et al., Agent Attention, ECCV 2024, section 3",
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=tokens,
    example={"heads": 2, "agents": 3, "size": 8, "reduction": 2},
    published=_published,
)
class AgentAttention(nn.Module):
    """Agent attention: agents, pooled from the queries, gather from all tokens, and every token receives from the agents.

    Both steps have learned biases by place. The published code ties them to one square grid; here they are interpolated to any other.
    Recorded parts: "gather", [B, heads, agents, reduced tokens], and "spread", [B, heads, N, agents].

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        agents: agents along each axis; one number, or one for each axis. 7 are 49 agents of an image.
        size: extents of the grid that the biases are learned for; one number, or one for each axis. 56, 28, 14 and 7 in the published
            stages.
        reduction: keys and values are those of patches of this side, as in ``SpatialReduction``.
        qkv_bias: whether queries, keys and values have a bias.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, a number is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        agents: int | tuple[int, ...] = 7,
        size: int | tuple[int, ...] = 14,
        reduction: int | tuple[int, ...] = 1,
        qkv_bias: bool = False,
        rank: int = 2,
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.reduce = SpatialReduction(channels=channels, reduction=reduction, rank=rank)
        self.heads, self.rank = heads, rank
        self.agents = per_axis(agents, rank, name="agents")
        extents = per_axis(size, rank, name="size")
        self.query = nn.Linear(channels, channels, bias=qkv_bias)
        self.key_value = nn.Linear(channels, 2 * channels, bias=qkv_bias)
        self.gather_bias = AgentBias(heads=heads, agents=math.prod(self.agents), size=_reduced(extents, self.reduce.sides))
        self.spread_bias = AgentBias(heads=heads, agents=math.prod(self.agents), size=extents)
        self.local = conv(channels, channels, kernel=3, groups=channels, rank=rank)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x: [B, N, C], the places of ``grid`` in order. Returns the same shape.

        Raises:
            ValueError: if N is not the grid's number of places, or the grid has not ``rank`` axes.
        """
        grid = grid_of(x, grid, rank=self.rank)
        reduced, reduced_grid = self.reduce(x, grid)
        query = self.query(x)
        key, value = self.key_value(reduced).chunk(2, dim=-1)
        pooled = average_pool_to(query.mT.unflatten(2, grid), self.agents).flatten(2).mT
        agents = split_heads(pooled, self.heads)
        gathered = attend(
            agents, split_heads(key, self.heads), split_heads(value, self.heads), bias=self.gather_bias(reduced_grid), part="gather"
        )
        attended = attend(split_heads(query, self.heads), agents, gathered, bias=self.spread_bias(grid).mT, part="spread")
        # What few agents cannot tell apart is given back by a convolution of the values.
        local = self.local(resize(value.mT.unflatten(2, reduced_grid), grid)).flatten(2).mT
        return self.out(merge_heads(attended) + local)

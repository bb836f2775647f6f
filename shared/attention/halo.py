"""Halo attention: blocks of queries look at their own block and at a margin around it.

Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (HaloNet), CVPR 2021, section 2.2 and figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.attend import attend
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.maps import Layout
from shared.attention.regions import all_places, blocks, listed, slots, take
from shared.attention.registry import register
from shared.attention.windows import per_axis
from shared.layers import conv
from shared.layers.pooling import average_pool

__all__ = ["HaloAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    rank, heads = settings.rank, settings.heads
    out_channels = settings.out_channels or settings.channels
    width = settings.head_channels or out_channels // heads
    step = 1 if settings.average else settings.stride
    sides, halos = per_axis(settings.block, rank), _halos(settings.halo, rank)
    windows = [side + 2 * margin for side, margin in zip(sides, halos, strict=True)]
    count = math.prod(-(-extent // side) for extent, side in zip(grid, sides, strict=True))
    queries, keys = math.prod(side // step for side in sides), math.prod(windows)
    projections = linear_cost(
        settings.channels, heads * width, math.prod(-(-extent // step) for extent in grid), bias=settings.qkv_bias
    ) + linear_cost(settings.channels, heads * width + out_channels, math.prod(grid), bias=settings.qkv_bias)
    positions = Cost(sum(2 * window - 1 for window in windows) * width, count * queries * heads * width * sum(windows))
    wider = max(width + sum(windows), out_channels // heads)
    return projections + positions + count * attention_cost(queries, keys, heads * wider)


@register(
    "halo",
    paper="Vaswani et al., HaloNet, CVPR 2021",
    ranks=(1, 2, 3),
    cost=_cost,
    example={"block": 4, "halo": 1},
    published={"q": "query", "kv": "key_value", "pos_embed.height_rel": "bias_tables.0", "pos_embed.width_rel": "bias_tables.1"},
)
@register(
    "halo_published",
    paper="Vaswani et al., HaloNet, CVPR 2021, as in timm 1.0 (no code of the authors)",
    ranks=(1, 2, 3),
    cost=_cost,
    example={"block": 4, "halo": 1, "stride": 2},
    preset={"mask_padding": False, "count_strides": True},
    published={"q": "query", "kv": "key_value", "pos_embed.height_rel": "bias_tables.0", "pos_embed.width_rel": "bias_tables.1"},
)
class HaloAttention(nn.Module):
    """Halo attention (HaloNet): each block of positions looks at itself and a margin around it, with relative positions.

    timm's code lets the zeros beyond the border take part in the softmax, and with a stride measures offsets in strides for the query
    but in positions for the key; "halo_published" does so too. There is no output projection.

    Args:
        channels: channels of the feature map.
        out_channels: channels of the answer, a multiple of ``heads``; ``channels`` by default.
        heads: number of heads.
        head_channels: width of a head's queries and keys; that of its values by default.
        block: side of a block, one number or one for each axis.
        halo: its margin on either side, likewise.
        stride: positions that become one: every so-manieth is a query, or answers are averaged.
        average: average the answers instead of taking fewer queries.
        scale_positions: whether the relative positions are scaled by ``head_channels ** -0.5`` as the other logits are.
        qkv_bias: whether queries, keys and values have a bias.
        mask_padding: whether what lies beyond the border is not seen; otherwise it is seen as zeros, with relative positions.
        count_strides: whether relative positions count the queries of a strided block, instead of their positions.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``heads`` does not divide ``out_channels``, ``stride`` (without ``average``) does not divide ``block``, or a size
            is not positive.
    """

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int | None = None,
        heads: int = 8,
        head_channels: int | None = None,
        block: int | Sequence[int] = 8,
        halo: int | Sequence[int] = 3,
        stride: int = 1,
        average: bool = False,
        scale_positions: bool = False,
        qkv_bias: bool = False,
        mask_padding: bool = True,
        count_strides: bool = False,
        rank: int = 2,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        if heads < 1 or out_channels % heads:
            raise ValueError(f"heads={heads} must divide out_channels={out_channels}")
        width = out_channels // heads if head_channels is None else head_channels
        if min(width, stride) < 1:
            raise ValueError(f"must be positive: head_channels={width}, stride={stride}")
        self.block, self.halo = per_axis(block, rank, name="block"), _halos(halo, rank)
        if not average and any(side % stride for side in self.block):
            raise ValueError(f"stride={stride} must divide block={block}, or average=True")
        self.heads, self.width, self.stride, self.average = heads, width, stride, average
        self.scale_positions, self.mask_padding, self.count_strides = scale_positions, mask_padding, count_strides
        self.query = conv(channels, heads * width, kernel=1, stride=self.step, rank=rank, bias=qkv_bias)
        self.key_value = conv(channels, heads * width + out_channels, kernel=1, rank=rank, bias=qkv_bias)
        self.bias_tables = nn.ParameterList(torch.randn(2 * window - 1, width) * width**-0.5 for window in self.window)
        for layer in (self.query, self.key_value):
            nn.init.trunc_normal_(layer.get_parameter("weight"), std=channels**-0.5)
            if qkv_bias:
                nn.init.zeros_(layer.get_parameter("bias"))

    @property
    def step(self) -> int:
        """From one query to the next."""
        return 1 if self.average else self.stride

    @property
    def window(self) -> tuple[int, ...]:
        """Keys that a block sees along each axis."""
        return tuple(side + 2 * margin for side, margin in zip(self.block, self.halo, strict=True))

    @property
    def _side(self) -> list[int]:
        """Queries of a block along each axis."""
        return [side // self.step for side in self.block]

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns [B, out_channels, *spatial / stride], rounded up."""
        grid, device = x.shape[2:], x.device
        query = self.query(x)
        answer_grid = query.shape[2:]
        asked_at = all_places([blocks(extent, side, device) for extent, side in zip(answer_grid, self._side, strict=True)], answer_grid)
        seen_at = all_places(
            [blocks(extent, side, device, margin=margin) for extent, side, margin in zip(grid, self.block, self.halo, strict=True)], grid
        )
        query, both = (listed(each.flatten(2).mT.unflatten(-1, (self.heads, -1))) for each in (query, self.key_value(x)))
        keys, values = take(both, seen_at).tensor_split([self.width], dim=-1)
        queries, keys = self._with_positions(take(query, asked_at), keys)
        count = math.prod(answer_grid)
        attended = attend(
            queries,
            keys,
            values,
            scale=1.0,
            mask=(seen_at >= 0)[:, None, None].repeat(x.shape[0], 1, 1, 1) if self.mask_padding else None,
            layout=lambda: Layout(queries=asked_at, keys=seen_at, query_count=count, key_count=math.prod(grid)),
        )
        answers = attended.transpose(1, 2).unflatten(0, (x.shape[0], asked_at.shape[0])).flatten(1, 2).flatten(2)
        answer = answers.index_select(1, slots(asked_at.flatten(), count)).mT.unflatten(2, answer_grid)
        return average_pool(answer, self.stride) if self.average and self.stride > 1 else answer

    def _with_positions(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Scales the queries, and widens queries and keys so that their products contain the relative positions too.

        The logit for an offset along an axis is q . table[offset]. For each query these are as many numbers as the window has places
        along the axis, and the key picks the one of its place: no bias as large as the map is made.
        """
        scale, device = self.width**-0.5, queries.device
        wide_queries, wide_keys = [scale * queries], [keys]
        side = self._side
        by_axis = queries.unflatten(2, side)
        place = torch.cartesian_prod(*(torch.arange(window, device=device) for window in self.window)).reshape(-1, len(side))
        for axis, (table, window) in enumerate(zip(self.bias_tables, self.window, strict=True)):
            asked = torch.arange(side[axis], device=device) * (1 if self.count_strides else self.step)
            entries = table[torch.arange(window, device=device) - asked.unsqueeze(1) + window - 1]
            logits = torch.einsum("...id,ijd->...ij", by_axis.movedim(2 + axis, -2), entries)
            logits = logits.movedim(-2, 2 + axis).flatten(2, -2)
            wide_queries.append(scale * logits if self.scale_positions else logits)
            picks = F.one_hot(place[:, axis], window).to(keys.dtype)
            wide_keys.append(picks.expand(*keys.shape[:2], -1, -1))
        return torch.cat(wide_queries, dim=-1), torch.cat(wide_keys, dim=-1)


def _halos(halo: int | Sequence[int], rank: int) -> tuple[int, ...]:
    halos = (halo,) * rank if isinstance(halo, int) else tuple(halo)
    if len(halos) != rank or min(halos) < 0:
        raise ValueError(f"halo must not be negative, one number or one for each of {rank} axes, not {halo}")
    return halos

"""Neighbourhoods along the axes of a grid, and attention to them from tiles of queries.

Hassani et al., "Neighborhood Attention Transformer", CVPR 2023; Hassani and Shi, "Dilated Neighborhood Attention Transformer", 2022; the
strides and the causal form are those of NATTEN (Hassani et al., "Generalized Neighborhood Attention", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.attention.attend import attend
from shared.attention.maps import Layout
from shared.attention.regions import all_places, coordinates, in_chunks, listed, places, slots, take

__all__ = ["Axis", "Neighborhood", "tiled"]

TILE = {1: 32, 2: 8, 3: 4}
"""Side of a tile of queries, by the number of axes: a larger one sees more keys that its queries do not want, a smaller one copies more."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The windows along one axis. Tokens ``dilation`` apart form a group, and see only their own.

    With ``clamped`` (all neighbourhood attention) a window at the border is shifted inwards and keeps its size; without, it is cut off.
    A kernel larger than a group is the whole group.
    """

    extent: int
    kernel: int
    dilation: int = 1
    stride: int = 1
    causal: bool = False
    clamped: bool = True

    @property
    def longest(self) -> int:
        """Members of the largest group."""
        return -(-self.extent // self.dilation)

    def members(self, group: Tensor) -> Tensor:
        return (self.extent - group + self.dilation - 1) // self.dilation

    def windows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """First member of its group that each position sees, and the one after the last; both [extent]."""
        position = torch.arange(self.extent, device=device)
        step, members = position // self.dilation, self.members(position % self.dilation)
        leader = step // self.stride * self.stride
        if self.causal:
            first = torch.minimum(leader + self.stride - 1, members - 1) - self.kernel + 1
            return first.clamp(min=0), step + 1
        first = torch.minimum(leader + self.stride // 2, members - 1) - self.kernel // 2
        if self.clamped:
            first = torch.minimum(first, members - self.kernel).clamp(min=0)
            return first, torch.minimum(first + self.kernel, members)
        return first.clamp(min=0), torch.minimum(first + self.kernel, members)

    def positions(self, count: int, side: int, device: torch.device) -> Tensor:
        """The members of each group in order, ``side`` at a time: [dilation count, side]; -1 after the last."""
        group = torch.arange(self.dilation, device=device).repeat_interleave(count).unsqueeze(1)
        step = torch.arange(count * side, device=device).reshape(count, side).repeat(self.dilation, 1)
        return torch.where(step < self.members(group), step * self.dilation + group, -1)

    def tiling(self, side: int) -> tuple[int, int, int]:
        """How many tiles of about this side the axis has, their true side, and how many keys one sees."""
        longest = self.longest
        # Where the window is the whole group, one tile is best. Elsewhere tiles are made equal, which leaves the least padding.
        count = 1 if self.kernel >= longest else -(-longest // side)
        even = -(-longest // count)
        side = even if count == 1 else -(-even // self.stride) * self.stride
        return self.dilation * count, side, min(self.kernel + side - min(self.stride, side), longest)


@dataclass(frozen=True, kw_only=True)
class Neighborhood:
    """Which keys every query of a grid sees: the product of the axes' windows, within ``radius`` of it where that is given."""

    axes: tuple[Axis, ...]
    radius: float | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(axis.extent for axis in self.axes)

    @property
    def everything(self) -> bool:
        """Whether every query sees all keys."""
        return self.radius is None and all(
            axis.clamped and not axis.causal and axis.dilation == 1 and axis.kernel >= axis.extent for axis in self.axes
        )

    def tiling(self) -> tuple[int, int, int]:
        """Number of tiles, queries of one and keys of one."""
        tiles = [axis.tiling(TILE[len(self.axes)]) for axis in self.axes]
        return tuple(math.prod(sizes) for sizes in zip(*tiles, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class _Tiles:
    """The tiles along one axis."""

    queries: Tensor
    """[T, t]: positions; -1 is padding."""
    keys: Tensor
    """[T, m]: positions; -1 is padding."""
    seen: Tensor
    """[T, t, m]: bool."""
    offset: Tensor
    """[T, t, m]: from query to key, in steps of the dilation."""


def _tiles(axis: Axis, device: torch.device, side: int) -> _Tiles:
    total, side, reach = axis.tiling(side)
    queries = axis.positions(total // axis.dilation, side, device)
    # A padding query does as the last real one: so it sees something, and has no gradient that is not a number.
    inside = torch.where(queries < 0, queries.amax(1, keepdim=True).clamp(min=0), queries)
    first, stop = (bound[inside].unsqueeze(2) for bound in axis.windows(device))
    group = inside[:, :1] % axis.dilation
    key = first[:, 0] + torch.arange(reach, device=device)
    return _Tiles(
        queries=queries,
        keys=torch.where(key < axis.members(group), key * axis.dilation + group, -1),
        seen=(key.unsqueeze(1) >= first) & (key.unsqueeze(1) < stop),
        offset=key.unsqueeze(1) - (inside // axis.dilation).unsqueeze(2),
    )


def _combine(parts: Sequence[Tensor], operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """parts: for each axis [W, t, m]. Returns [W, product of all t, product of all m]."""
    whole = parts[0]
    for part in parts[1:]:
        whole = operation(whole[:, :, None, :, None], part[:, None, :, None, :]).flatten(3).flatten(1, 2)
    return whole


def _chosen(tiles: Sequence[_Tiles], which: Tensor) -> list[_Tiles]:
    """The tiles of a grid are all combinations of those of its axes. For each axis: those of these tiles."""
    indices = coordinates(which, [each.queries.shape[0] for each in tiles])
    return [
        _Tiles(queries=each.queries[i], keys=each.keys[i], seen=each.seen[i], offset=each.offset[i])
        for each, i in zip(tiles, indices, strict=True)
    ]


def _bias_index(offsets: Sequence[Tensor], kernels: Sequence[int]) -> list[Tensor]:
    """Offsets from query to key along each axis, to that axis' share of the entry in a flat bias table [h, 2 K - 1, ...]."""
    sides = [2 * kernel - 1 for kernel in kernels]
    strides = [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
    return [
        (offset + kernel - 1).clamp(0, side - 1) * stride
        for offset, kernel, side, stride in zip(offsets, kernels, sides, strides, strict=True)
    ]


def tiled(query: Tensor, key: Tensor, value: Tensor, near: Neighborhood, *, scale: float | None, bias: Tensor | None) -> Tensor:
    """Attention to neighbourhoods with any kernel of torch: each tile's queries share the keys that any of them sees.

    Args:
        query, key: [B, h, *grid, d].
        value: [B, h, *grid, e].
        bias: [h, 2 K - 1, ...], by the offset from query to key.

    Returns:
        [B, h, *grid, e].
    """
    batch, heads, grid, device = query.shape[0], query.shape[1], near.grid, query.device
    total = math.prod(grid)
    tiles = [_tiles(axis, device, TILE[len(grid)]) for axis in near.axes]
    count, queries, keys = near.tiling()
    tokens = [listed(x.flatten(2, -2).transpose(1, 2)) for x in (query, key, value)]
    table = None if bias is None else bias.flatten(1)

    def run(which: Tensor) -> Tensor:
        chosen = _chosen(tiles, which)
        at, seen_at = places([each.queries for each in chosen], grid), places([each.keys for each in chosen], grid)
        mask = by_offset = None
        if not near.everything:
            mask = _combine([each.seen for each in chosen], torch.logical_and)
            if near.radius is not None:
                mask = mask & (_combine([each.offset**2 for each in chosen], torch.add) < near.radius**2)
            mask = mask.unsqueeze(1).repeat(batch, 1, 1, 1)
        if table is not None:
            entries = _combine(_bias_index([each.offset for each in chosen], [axis.kernel for axis in near.axes]), torch.add)
            entries = entries.flatten(1).unsqueeze(1).expand(-1, heads, -1)
            by_offset = table.expand(which.shape[0], -1, -1).gather(2, entries).unflatten(2, (queries, keys)).repeat(batch, 1, 1, 1)
        output = attend(
            *(take(x, taken) for x, taken in zip(tokens, (at, seen_at, seen_at), strict=True)),
            scale=scale,
            bias=by_offset,
            mask=mask,
            layout=lambda: Layout(queries=at, keys=seen_at, query_count=total, key_count=total),
        )
        return output.transpose(1, 2).unflatten(0, (batch, which.shape[0])).flatten(1, 2)

    # A mask is turned into floats by torch.
    width = query.element_size() * heads * (key.shape[-1] + value.shape[-1])
    each = batch * (queries * keys * (5 + query.element_size() * heads * (bias is not None)) + keys * width)
    answers = in_chunks(run, count, bytes_each=each, device=device)
    at = all_places([each.queries for each in tiles], grid).flatten()
    return answers.index_select(1, slots(at, total)).unflatten(1, grid).movedim(-2, 1)

"""Cross-attention that is told where each query's box lies.

Lin et al., "DETR does not need multi-scale or locality design" (Plain-DETR), ICCV 2023, box-to-pixel relative position bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.registry import register
from shared.attention.windows import grid_of

__all__ = ["BoxCrossAttention"]

QUERIES = 10
"""How many queries the costs are counted for."""


def _inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    rank, channels = settings.rank, settings.channels
    boxes = torch.cat([0.2 + 0.6 * torch.rand(batch, QUERIES, rank), 0.1 + 0.4 * torch.rand(batch, QUERIES, rank)], dim=-1)
    return {
        "x": torch.randn(batch, QUERIES, channels),
        "context": torch.randn(batch, math.prod(grid), channels),
        "boxes": boxes,
        "grid": grid,
        "position": torch.randn(batch, math.prod(grid), channels),
    }


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    projections = 2 * linear_cost(channels, channels, QUERIES) + 2 * linear_cost(channels, channels, n)
    bias = Cost()
    for extent in grid:
        rows = QUERIES * extent
        bias += linear_cost(2, settings.inner_channels, rows) + linear_cost(settings.inner_channels, settings.heads, rows, bias=False)
    return projections + attention_cost(QUERIES, n, channels) + bias


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"q": "query", "k": "key", "v": "value", "proj": "out"}
    renamed = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first.startswith("cpb_mlp"):
            layer, _, kind = rest.partition(".")
            renamed[f"{'hidden' if layer == '0' else 'bias'}.{int(first.removeprefix('cpb_mlp')) - 1}.{kind}"] = value
        else:
            renamed[f"{names[first]}.{rest}"] = value
    return renamed


@register(
    "box_cross",
    paper="Lin et al., Plain-DETR, ICCV 2023, BoxRPB",
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=_inputs,
    published=_published,
)
class BoxCrossAttention(nn.Module):
    """Cross-attention with a bias from a query's box to every pixel, a sum of one small network per axis.

    Along an axis, a network gets the distances from the box's two sides to a column's centre, and answers one number per head.

    Args:
        channels: width of queries and pixels; a multiple of ``heads``.
        heads: number of heads.
        inner_channels: width of the networks' hidden layer.
        offsets: distances as they are, or "log": sign(d) log2(1 + |d|) / 3.
        stride: pixels of the image per place of the map, in whose unit the distances are.
        rank: number of axes of the map, 1 to 3.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or ``inner_channels``, ``stride`` or ``rank`` is not positive.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        inner_channels: int = 512,
        offsets: Literal["log", "linear"] = "log",
        stride: float = 16,
        rank: int = 2,
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        if inner_channels < 1 or stride <= 0 or rank < 1:
            raise ValueError(f"must be positive: inner_channels={inner_channels}, stride={stride}, rank={rank}")
        if offsets not in ("log", "linear"):
            raise ValueError(f"offsets must be 'log' or 'linear', not {offsets!r}")
        self.heads, self.offsets, self.stride, self.rank = heads, offsets, stride, rank
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.hidden = nn.ModuleList(nn.Linear(2, inner_channels) for _ in range(rank))
        self.bias = nn.ModuleList(nn.Linear(inner_channels, heads, bias=False) for _ in range(rank))

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        boxes: Tensor,
        *,
        grid: Sequence[int],
        position: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Queries look at a map, each from its box.

        Args:
            x: queries [B, Q, C].
            context: the map [B, N, C].
            boxes: [B, Q, 2 rank]: centre (x, y, ...), then size (w, h, ...), as fractions of the map. x runs along the LAST axis of the
                grid, y along the one before, as in images.
            grid: sizes of the map; N places.
            position: code of each place, added to the keys only; broadcasts to [B, N, C].
            mask: bool [B, N], False: padding, which no query sees.

        Returns:
            [B, Q, C].
        """
        grid = grid_of(context, grid)
        keys = context if position is None else context + position
        query, key, value = (
            split_heads(layer(each), self.heads) for layer, each in ((self.query, x), (self.key, keys), (self.value, context))
        )
        seen = None if mask is None else mask[:, None, None, :]
        return self.out(merge_heads(attend(query, key, value, bias=self.box_bias(boxes, grid), mask=seen)))

    def box_bias(self, boxes: Tensor, grid: Sequence[int]) -> Tensor:
        """What is added to the logits: [B, heads, Q, N]. Arguments as ``forward``."""
        boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
        centre, half = boxes[..., : self.rank], boxes[..., self.rank :] / 2
        sides = torch.stack([centre - half, centre + half], dim=-1)
        along = [self._along(axis, extent, sides[..., axis, :]) for axis, extent in enumerate(reversed(grid))]
        return sum(along[1:], along[0]).flatten(3)

    def _along(self, axis: int, extent: int, sides: Tensor) -> Tensor:
        """One axis' part, from its two sides [B, Q, 2] in fractions: [B, heads, Q, *ones, extent, *ones]."""
        columns = torch.arange(extent, device=sides.device) + 0.5
        distances = self.stride * (extent * sides.unsqueeze(2) - columns.unsqueeze(-1))
        if self.offsets == "log":
            distances = distances.sign() * torch.log2(1 + distances.abs()) / 3
        hidden = F.relu(self.hidden[axis](distances.to(self.query.weight.dtype)))
        ones = (extent if axis == each else 1 for each in reversed(range(self.rank)))
        return self.bias[axis](hidden).permute(0, 3, 1, 2).unflatten(-1, tuple(ones))

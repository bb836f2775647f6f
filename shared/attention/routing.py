"""Bi-level routing attention: each region chooses the few regions that its queries look at.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, section 3.2, equations 2 to 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.attention.attend import attend, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, conv_cost, linear_cost, product_cost
from shared.attention.maps import GivenMap, Layout
from shared.attention.recording import note, recording
from shared.attention.regions import all_places, blocks, in_chunks, listed, slots, take
from shared.attention.registry import register
from shared.attention.windows import crop, pad_to_multiple, per_axis
from shared.layers import conv
from shared.layers.pooling import average_pool_to

__all__ = ["RoutingAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n, rank = settings.channels, math.prod(grid), settings.rank
    width = settings.key_channels or channels
    wanted = per_axis(settings.regions, rank)
    side = [-(-extent // count) for extent, count in zip(grid, wanted, strict=True)]
    counts = [-(-extent // each) for extent, each in zip(grid, side, strict=True)]
    if settings.topk is None:
        positions, looking = n, attention_cost(n, n, max(width, channels))
    else:
        counts = counts if settings.mask_padding else list(wanted)
        positions = n if settings.mask_padding else math.prod(count * each for count, each in zip(counts, side, strict=True))
        total, keys = math.prod(counts), settings.pool**rank if settings.pool else math.prod(side)
        looking = product_cost(total, total, width) + total * attention_cost(
            math.prod(side), min(settings.topk, total) * keys, max(width, channels)
        )
        if settings.learned_routing:
            looking = looking + Cost(width**2 + width, 2 * total * width**2)
    if settings.local_kernel:
        looking = looking + conv_cost(channels, channels, positions, kernel=settings.local_kernel, rank=rank, groups=channels)
    return linear_cost(channels, 2 * width + channels, positions) + looking + linear_cost(channels, channels, n)


_NAMES = {"qkv.qkv": "qkv", "lepe": "local", "wo": "out", "router.emb": "router"}


@register(
    "bra",
    paper="Zhu et al., BiFormer, CVPR 2023, eq. 2-6",
    ranks=(1, 2, 3),
    cost=_cost,
    example={"regions": 3, "topk": 2},
    published=_NAMES,
)
@register(
    "bra_published",
    paper="Zhu et al., BiFormer, CVPR 2023, as in the authors' code",
    ranks=(1, 2, 3),
    cost=_cost,
    example={"regions": 3, "topk": 2},
    preset={"mask_padding": False},
    published=_NAMES,
)
class RoutingAttention(nn.Module):
    """Bi-level routing attention (BRA): positions look at those of the few regions most like their own region, on average.

    The authors' code pads with zeros, which then take part in the means of the regions and in the softmax; "bra_published" does so too.
    Where two regions are equally like a third at the last place of its list, which one enters it is not defined.

    Args:
        channels: channels of the feature map.
        heads: number of heads.
        regions: along each axis, one number or one for each; fewer where a region would hold nothing but padding.
        topk: regions that each looks at, all if there are fewer. None: no regions, every position looks at all (the -2 of the authors'
            configs).
        key_channels: channels of queries and keys, over all heads; ``channels`` by default.
        scale: what the logits are divided by the root of: the width of the whole "embedding", as in the authors' code, which their
            weights need; or that of one "head", as in other attentions and in the authors' blocks without regions.
        pool: keys and values of a region are averaged to so many along each axis.
        local_kernel: side of the depthwise convolution of the values that is added (LePE); 0 for none.
        soft: keys and values are weighted by the softmax of their regions' similarities.
        learned_routing: the regions' means go through a linear layer before they are compared. It learns with ``soft`` and
            ``differentiable`` alone.
        differentiable: whether gradients go through that comparison.
        mask_padding: whether padding is left out of means and softmax; otherwise maps cover the padded grid.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``heads`` does not divide ``channels`` and ``key_channels``, a size is not positive, or keys are to be pooled or
            routing to be learned without regions.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        regions: int | Sequence[int] = 7,
        topk: int | None = 4,
        key_channels: int | None = None,
        scale: Literal["embedding", "head"] = "embedding",
        pool: int | None = None,
        local_kernel: int = 3,
        soft: bool = False,
        learned_routing: bool = False,
        differentiable: bool = False,
        mask_padding: bool = True,
        rank: int = 2,
    ) -> None:
        super().__init__()
        width = channels if key_channels is None else key_channels
        if heads < 1 or channels % heads or width % heads:
            raise ValueError(f"heads={heads} must divide channels={channels} and key_channels={width}")
        if min(each for each in (topk, pool, width) if each is not None) < 1:
            raise ValueError(f"must be positive: topk={topk}, pool={pool}, key_channels={width}")
        if topk is None and (pool is not None or soft or learned_routing):
            raise ValueError("pool, soft and learned_routing are about regions, and topk=None has none")
        if scale not in ("embedding", "head"):
            raise ValueError(f"scale must be embedding or head, not {scale!r}")
        self.heads, self.topk, self.width, self.pool = heads, topk, width, pool
        self.regions = per_axis(regions, rank, name="regions")
        self.soft, self.differentiable, self.mask_padding = soft, differentiable, mask_padding
        self.scale = (width if scale == "embedding" else width // heads) ** -0.5
        self.qkv = nn.Linear(channels, 2 * width + channels)
        self.router = nn.Linear(width, width) if learned_routing else nn.Identity()
        self.local = conv(channels, channels, kernel=local_kernel, groups=channels, rank=rank) if local_kernel else None
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        grid = x.shape[2:]
        side = [-(-extent // count) for extent, count in zip(grid, self.regions, strict=True)]
        x = x.movedim(1, -1)
        if self.topk is not None and not self.mask_padding:
            x = pad_to_multiple(x, [count * each for count, each in zip(self.regions, side, strict=True)])
        query, key, value = self.qkv(x).split([self.width, self.width, x.shape[-1]], dim=-1)
        if self.topk is None:
            attended = self._everywhere(query, key, value)
        else:
            attended = self._by_region(query, key, value, side, self.topk)
        if self.local is not None:
            attended = attended + self.local(value.movedim(-1, 1)).movedim(1, -1)
        return self.out(crop(attended, grid)).movedim(-1, 1)

    def _everywhere(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = (split_heads(each.flatten(1, -2), self.heads) for each in (query, key, value))
        return merge_heads(attend(*heads, scale=self.scale)).unflatten(1, query.shape[1:-1])

    def _by_region(self, query: Tensor, key: Tensor, value: Tensor, side: Sequence[int], topk: int) -> Tensor:
        """query, key, value: [B, *grid, C]; side: of a region. Returns [B, *grid, C]."""
        batch, grid, device = query.shape[0], query.shape[1:-1], query.device
        places = all_places([blocks(extent, each, device) for extent, each in zip(grid, side, strict=True)], grid)
        queries, keys, values = (_regions(x, places) for x in (query, key, value))
        total = places.shape[0]
        # Padding is zero, and changes no sum.
        sizes = (places >= 0).sum(1, keepdim=True)
        query_means, key_means = (x.unflatten(0, (batch, total)).sum(2, dtype=_wide(x)) / sizes for x in (queries, keys))
        weights, chosen = self._route(query_means, key_means, topk)
        key_places, key_count = places, math.prod(grid)
        if self.pool is not None:
            keys, values, key_places, key_count = self._pooled(key, value, side, self.pool)
        real = key_places >= 0
        padded = any(extent % each for extent, each in zip(grid, side, strict=True))
        both = torch.cat([keys, values], dim=-1)
        rows = torch.arange(batch, device=device).reshape(-1, 1, 1) * total + chosen
        queries = queries.unflatten(0, (batch, total))

        def run(which: Tensor) -> Tensor:
            some = which.shape[0]
            found = both.index_select(0, rows[:, which].flatten()).unflatten(0, (batch * some, chosen.shape[-1]))
            if self.soft:
                found = found * weights[:, which].reshape(batch * some, -1, 1, 1).to(found.dtype)
            found = found.flatten(1, 2)
            seen_at = chosen[:, which]
            mask = real[seen_at].reshape(batch * some, 1, 1, found.shape[1]) if padded else None
            output = attend(
                split_heads(queries[:, which].flatten(0, 1), self.heads),
                *(split_heads(x, self.heads) for x in found.tensor_split([self.width], dim=-1)),
                scale=self.scale,
                mask=mask,
                layout=lambda: Layout(
                    queries=places, keys=key_places[seen_at].flatten(2), query_count=math.prod(grid), key_count=key_count
                ),
            )
            return merge_heads(output).unflatten(0, (batch, some))

        each = batch * chosen.shape[-1] * both.shape[1] * both.shape[2] * both.element_size() * (1 + self.soft)
        attended = in_chunks(run, total, bytes_each=each, device=device).flatten(1, 2)
        return attended.index_select(1, slots(places.flatten(), math.prod(grid))).unflatten(1, grid)

    def _pooled(self, key: Tensor, value: Tensor, side: Sequence[int], pool: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Averages of the keys and values of each region, [B R, n, C], their places in a grid of averages, [R, n], and its size."""
        batch, grid = key.shape[0], key.shape[1:-1]
        cells = [-(-extent // each) * pool for extent, each in zip(grid, side, strict=True)]
        places = all_places([blocks(extent, pool, key.device) for extent in cells], cells)

        def averages(x: Tensor) -> Tensor:
            padded = pad_to_multiple(x, side).movedim(-1, 1)
            return _regions(average_pool_to(padded, cells).movedim(1, -1), places)

        # Padding counts as zeros; of what is left, the share of real positions says how much that was too little.
        share = averages(key.new_ones(1, *grid, 1))
        keys, values = (averages(x) / share.clamp(min=torch.finfo(x.dtype).tiny).repeat(batch, 1, 1) for x in (key, value))
        return keys, values, torch.where(share[..., 0] > 0, places, -1), math.prod(cells)

    def _route(self, queries: Tensor, keys: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """queries, keys: means of the regions [B, R, C]. Returns the weights and indices of the chosen regions, both [B, R, topk]."""
        if not self.differentiable:
            queries, keys = queries.detach(), keys.detach()
        # In full precision: of two regions nearly alike, rounding would choose.
        with torch.autocast(queries.device.type, enabled=False):
            queries, keys = (self.router(x.to(self.qkv.weight.dtype)).to(x.dtype) for x in (queries, keys))
            similarity = (queries * self.width**-0.5) @ keys.mT
        best, chosen = similarity.topk(min(topk, similarity.shape[-1]), dim=-1)
        weights = best.softmax(-1)
        if recording():
            spread = torch.zeros_like(similarity).scatter(-1, chosen, weights)
            note(GivenMap(spread.unsqueeze(1)), part="routing")
            weights = spread.gather(-1, chosen)
        return weights, chosen


def _regions(x: Tensor, places: Tensor) -> Tensor:
    """x: [B, *grid, C]; places: [R, n]. Returns [B R, n, C], zero where there is no place."""
    return take(listed(x.flatten(1, -2).unsqueeze(2)), places).squeeze(1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32

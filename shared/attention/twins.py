"""The two attentions that take turns in Twins: within windows, and from every token to a coarser copy of all.

Chu et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers", NeurIPS 2021, section 3.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, conv_cost, linear_cost, norm_cost
from shared.attention.registry import register, tokens
from shared.attention.windows import grid_of, merge_grid, pad_to_multiple, padded_grid, per_axis, split_grid, window_attend

__all__ = ["GlobalSubsampledAttention", "LocallyGroupedAttention", "SpatialReduction", "local_cost", "reduction_cost"]

_PAPER = "Chu et al., Twins, NeurIPS 2021, section 3"
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def local_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    """Of ``LocallyGroupedAttention``."""
    channels, window = settings.channels, per_axis(settings.window, len(grid))
    real, padded = math.prod(grid), math.prod(padded_grid(grid, window))
    projected = real if settings.mask_padding else padded
    return (
        linear_cost(channels, 3 * channels, projected, bias=settings.qkv_bias)
        + attention_cost(padded, math.prod(window), channels)
        + linear_cost(channels, channels, real)
    )


_LOCAL: dict[str, Any] = {
    "ranks": (1, 2, 3),
    "cost": local_cost,
    "inputs": tokens,
    "example": {"heads": 2, "window": 4},
    "published": {"proj": "out"},
}


@register("twins_lsa", paper=_PAPER, **_LOCAL)
@register("twins_lsa_timm", paper=f"{_PAPER}, as timm pads it", preset={"mask_padding": False}, **_LOCAL)
class LocallyGroupedAttention(nn.Module):
    """Locally-grouped self-attention (LSA): tokens look at those of their own window.

    Where a window does not divide the grid, timm's code pads with zeros before it projects, and has the padding, which is the bias of keys
    and values then, take part in the softmax; the authors' segmentation code masks it.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        window: side of the windows; one number, or one for each axis.
        qkv_bias: whether queries, keys and values have a bias.
        mask_padding: False: padding takes part, as in timm.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or a side of the window is not positive.
    """

    def __init__(
        self, *, channels: int, heads: int = 8, window: int | tuple[int, ...] = 7, qkv_bias: bool = False, mask_padding: bool = True
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        per_axis(window, 1 if isinstance(window, int) else len(window))
        self.heads, self.window, self.mask_padding = heads, window, mask_padding
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x: [B, N, C], the places of ``grid`` in order. Returns the same shape.

        Raises:
            ValueError: if N is not the grid's number of places, or the window has another number of axes.
        """
        grid = grid_of(x, grid)
        window = per_axis(self.window, len(grid))
        placed = x.unflatten(1, grid)
        if not self.mask_padding:
            placed = pad_to_multiple(placed, window)
        query, key, value = (split_grid(each, self.heads) for each in self.qkv(placed).chunk(3, dim=-1))
        return self.out(merge_grid(window_attend(query, key, value, window=window, grid=grid))).flatten(1, -2)


def reduction_cost(settings: Any, grid: tuple[int, ...], *, pad: bool = True) -> tuple[Cost, int]:
    """Of ``SpatialReduction``, and how many tokens it leaves."""
    sides = per_axis(settings.reduction, len(grid), name="reduction")
    reduced = math.prod(-(-extent // side) if pad else extent // side for extent, side in zip(grid, sides, strict=True))
    if math.prod(sides) == 1:
        return Cost(), reduced
    merge = conv_cost(settings.channels, settings.channels, reduced, kernel=sides, rank=settings.rank)
    return merge + norm_cost(settings.channels), reduced


class SpatialReduction(nn.Module):
    """Fewer tokens: each patch of ``reduction`` a side becomes one, by a convolution and a LayerNorm; with sides of 1, nothing happens.

    Args:
        channels: width of the tokens.
        reduction: side of the patches; one number, or one for each axis.
        pad: whether patches that reach over the far end are filled up with zeros, or left out.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if a side is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, reduction: int | tuple[int, ...], pad: bool = True, rank: int = 2) -> None:
        super().__init__()
        if rank not in _CONV:
            raise ValueError(f"rank must be 1, 2 or 3, not {rank}")
        self.sides, self.pad = per_axis(reduction, rank, name="reduction"), pad
        reduces = max(self.sides) > 1
        self.merge = _CONV[rank](channels, channels, kernel_size=self.sides, stride=self.sides) if reduces else None  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(channels) if reduces else None

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """x: [B, N, C], the places of ``grid`` in order. Returns [B, M, C] and their grid."""
        if self.merge is None or self.norm is None:
            return x, grid
        placed = x.unflatten(1, grid)
        merged = self.merge((pad_to_multiple(placed, self.sides) if self.pad else placed).movedim(-1, 1))
        return self.norm(merged.flatten(2).mT), tuple(merged.shape[2:])


def _global_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    reduction, reduced = reduction_cost(settings, grid, pad=settings.pad)
    projections = linear_cost(channels, channels, n, bias=settings.qkv_bias) + linear_cost(
        channels, 2 * channels, reduced, bias=settings.qkv_bias
    )
    return projections + reduction + attention_cost(n, reduced, channels) + linear_cost(channels, channels, n)


_GLOBAL: dict[str, Any] = {
    "ranks": (1, 2, 3),
    "cost": _global_cost,
    "inputs": tokens,
    "example": {"heads": 2, "reduction": 2},
    "published": {"q": "query", "kv": "key_value", "sr": "reduce.merge", "norm": "reduce.norm", "proj": "out"},
}


@register("twins_gsa", paper=_PAPER, **_GLOBAL)
@register("twins_gsa_published", paper=f"{_PAPER}, as published", preset={"pad": False}, **_GLOBAL)
class GlobalSubsampledAttention(nn.Module):
    """Global sub-sampled attention (GSA): every token looks at summaries of all patches, which a strided convolution makes.

    The published convolution leaves out what ``reduction`` does not divide: the far end of the grid is then seen by no one.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        reduction: side of a patch; one number, or one for each axis. 8, 4, 2 and 1 in the published stages; 1 is plain self-attention.
        qkv_bias: whether queries, keys and values have a bias.
        pad: False: patches that reach over the far end are left out, as published.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or as ``SpatialReduction``.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        reduction: int | tuple[int, ...] = 1,
        qkv_bias: bool = False,
        pad: bool = True,
        rank: int = 2,
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.rank = heads, rank
        self.query = nn.Linear(channels, channels, bias=qkv_bias)
        self.reduce = SpatialReduction(channels=channels, reduction=reduction, pad=pad, rank=rank)
        self.key_value = nn.Linear(channels, 2 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x: [B, N, C], the places of ``grid`` in order. Returns the same shape.

        Raises:
            ValueError: if N is not the grid's number of places, or the grid has not ``rank`` axes.
        """
        reduced, _ = self.reduce(x, grid_of(x, grid, rank=self.rank))
        key, value = (split_heads(each, self.heads) for each in self.key_value(reduced).chunk(2, dim=-1))
        return self.out(merge_heads(attend(split_heads(self.query(x), self.heads), key, value)))

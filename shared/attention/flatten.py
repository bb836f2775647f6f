"""Focused linear attention (FLatten): features that point where the largest channel points, and a convolution that brings back detail.

Han et al., "FLatten Transformer: vision transformer using focused linear attention", ICCV 2023, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.attend import check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, conv_cost, linear_cost
from shared.attention.linear import full_precision, linear_attend, linear_attend_cost, widen
from shared.attention.maps import Layout
from shared.attention.registry import register, tokens
from shared.attention.twins import SpatialReduction, reduction_cost
from shared.attention.windows import crop, grid_of, join_windows, pad_to_multiple, padded_grid, per_axis, split_windows
from shared.layers import conv, resize

__all__ = ["FocusedLinearAttention", "WindowFocusedLinearAttention"]

_EPS = 1e-6


class _Focus(nn.Module):
    """x^p with the length of x, of positive x: the larger a channel, the larger it becomes. Over all channels, before heads are split."""

    def __init__(self, channels: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.scale = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., C], any values. Returns the same shape in float32 (float64 of float64), all positive."""
        with full_precision(x):
            x = (F.relu(widen(x)) + _EPS) / F.softplus(widen(self.scale))
            # A power of x underflows where x is small; of x divided by its largest channel it does not, and the direction is the same.
            direction = (x / x.detach().amax(-1, keepdim=True)) ** self.power
            return direction * (x.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True))


def _around(value: Tensor, layer: nn.Module, grid: Sequence[int]) -> Tensor:
    """A depthwise convolution of each head's values, [B, h, N, d], with kernels that the heads share."""
    return layer(value.flatten(0, 1).mT.unflatten(-1, tuple(grid))).flatten(2).mT.reshape(value.shape)


def _local_cost(settings: Any, places: int) -> Cost:
    """Of the depthwise convolution: a head's parameters, and all heads' work."""
    width = settings.channels // settings.heads
    one = conv_cost(width, width, places, kernel=settings.kernel, rank=settings.rank, groups=width)
    return Cost(one.parameters, one.macs * settings.heads)


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, heads, rank, n = settings.channels, settings.heads, settings.rank, math.prod(grid)
    cost, keys = reduction_cost(settings, grid, pad=settings.pad)
    cost += linear_cost(channels, channels, n, bias=settings.qkv_bias) + linear_cost(channels, 2 * channels, keys, bias=settings.qkv_bias)
    cost += Cost(channels * (1 + math.prod(per_axis(settings.table, rank, name="table"))))
    cost += linear_attend_cost(n, keys, channels // heads, width=channels // heads, heads=heads)
    return cost + _local_cost(settings, n) + linear_cost(channels, channels, n)


_NAMES = {"scale": "focus.scale", "positional_encoding": "table", "q": "query", "kv": "key_value", "dwc": "local", "proj": "out"}
_NAMES |= {"sr": "reduce.merge", "norm": "reduce.norm"}


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tables are flat, of a square."""
    rank = state["dwc.weight"].ndim - 2
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.partition(".")
        if layer == "positional_encoding":
            side = round(value.shape[1] ** (1 / rank))
            value = value.mT.unflatten(-1, (side,) * rank)
        renamed[".".join(filter(None, (_NAMES.get(layer, layer), kind)))] = value
    return renamed


_PAPER = "Han et al., FLatten, ICCV 2023, section 4"
_EXAMPLE = {"reduction": 2, "table": 3, "kernel": 3}


@register("flatten", paper=_PAPER, ranks=(1, 2, 3), cost=_cost, inputs=tokens, example=_EXAMPLE, published=_published)
@register(
    "flatten_published",
    paper=_PAPER,
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=tokens,
    example=_EXAMPLE,
    preset={"flat_stretch": True, "pad": False},
    published=_published,
)
class FocusedLinearAttention(nn.Module):
    """Focused linear attention: each query's and key's largest channels are sharpened, and a depthwise convolution of values is added.

    With ``reduction`` the values are stretched to the full grid before the convolution. The published code stretches them along the
    flattened tokens, which mixes the end of a row with the beginning of the next, and leaves out what ``reduction`` does not divide.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        power: exponent of the focusing.
        kernel: side of the depthwise convolution; odd.
        reduction: keys and values are those of patches of this side, as in ``SpatialReduction``.
        table: the keys' learned position table has this side, one number or one for each axis; other grids interpolate it. (Published:
            side of the training grid, divided by ``reduction``.)
        qkv_bias: whether queries, keys and values have a bias.
        flat_stretch: stretch values along the flattened tokens, as published.
        pad: False: patches that reach over the far end are left out, as published.
        rank: number of spatial axes, 1 to 3; published for 2.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, ``table`` is not positive, or as ``SpatialReduction`` and
            ``shared.layers.conv``; in ``forward``, if the tokens do not fill the grid.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        power: float = 3.0,
        kernel: int = 5,
        reduction: int | tuple[int, ...] = 1,
        table: int | tuple[int, ...] = 14,
        qkv_bias: bool = True,
        flat_stretch: bool = False,
        pad: bool = True,
        rank: int = 2,
    ) -> None:
        super().__init__()
        width = _width(channels, heads)
        self.heads, self.flat_stretch, self.rank = heads, flat_stretch, rank
        self.focus = _Focus(channels, power)
        self.query = nn.Linear(channels, channels, bias=qkv_bias)
        self.key_value = nn.Linear(channels, 2 * channels, bias=qkv_bias)
        self.table = nn.Parameter(torch.zeros(1, channels, *per_axis(table, rank, name="table")))
        self.reduce = SpatialReduction(channels=channels, reduction=reduction, pad=pad, rank=rank)
        self.local = conv(width, width, kernel=kernel, rank=rank, groups=width)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """x: [B, N, C], tokens of a grid with so many places along each axis. Returns the same shape."""
        grid = grid_of(x, grid, rank=self.rank)
        reduced, key_grid = self.reduce(x, grid)
        key, value = self.key_value(reduced).chunk(2, dim=-1)
        key = self.focus(key + resize(self.table, key_grid).flatten(2).mT)
        query, key, value = (split_heads(each, self.heads) for each in (self.focus(self.query(x)), key, value))
        attended = linear_attend(query, key, value, eps=_EPS * key.shape[2])
        return self.out(merge_heads(attended + _around(self._stretched(value, key_grid, grid), self.local, grid)))

    def _stretched(self, value: Tensor, key_grid: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
        """value: [B, h, M, d] on the keys' grid. Returns [B, h, N, d]."""
        if self.reduce.merge is None:
            return value
        folded = value.flatten(0, 1).mT
        stretched = resize(folded, (math.prod(grid),)) if self.flat_stretch else resize(folded.unflatten(-1, key_grid), grid).flatten(2)
        return stretched.mT.reshape(*value.shape[:2], math.prod(grid), value.shape[-1])


def _window_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, heads, n = settings.channels, settings.heads, math.prod(grid)
    window = per_axis(settings.window, settings.rank)
    places = math.prod(padded_grid(grid, window))
    cost = linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + Cost(channels * (1 + math.prod(window)))
    cost += linear_attend_cost(places, places, channels // heads, width=channels // heads, heads=heads)
    return cost + _local_cost(settings, places) + linear_cost(channels, channels, n)


@register(
    "flatten_window",
    paper=_PAPER,
    ranks=(1, 2, 3),
    cost=_window_cost,
    inputs=tokens,
    example={"window": 4, "kernel": 3},
    published=_published,
)
class WindowFocusedLinearAttention(nn.Module):
    """Focused linear attention within windows, as in FLatten-Swin: linear attention allows large ones.

    Grids that windows do not divide are padded, and the padding is not seen.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        window: its side, one number or one for each axis.
        power: exponent of the focusing.
        kernel: side of the depthwise convolution, which sees one window; odd.
        qkv_bias: whether queries, keys and values have a bias.
        rank: number of spatial axes, 1 to 3; published for 2.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, ``window`` is not positive, or as ``shared.layers.conv``; in ``forward``, if
            the tokens do not fill the grid.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        window: int | tuple[int, ...] = 7,
        power: float = 3.0,
        kernel: int = 5,
        qkv_bias: bool = True,
        rank: int = 2,
    ) -> None:
        super().__init__()
        width = _width(channels, heads)
        self.heads, self.window = heads, per_axis(window, rank)
        self.focus = _Focus(channels, power)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.table = nn.Parameter(torch.zeros(1, channels, *self.window))
        self.local = conv(width, width, kernel=kernel, rank=rank, groups=width)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """x: [B, N, C], tokens of a grid with so many places along each axis. Returns the same shape."""
        grid = grid_of(x, grid, rank=len(self.window))
        query, key, value = self._windows(self.qkv(x), grid).squeeze(1).chunk(3, dim=-1)
        key = self.focus(key + self.table.flatten(2).mT)
        query, key, value = (split_heads(each, self.heads) for each in (self.focus(query), key, value))
        # [B W, 1, n, 1]: which places of each window are real. Padded values are zeros; padded keys get no weight.
        real = self._windows(key.new_ones(x.shape[0], x.shape[1], 1), grid)

        def layout() -> Layout:
            places = torch.arange(math.prod(grid), device=x.device).reshape(1, -1, 1)
            places = self._windows(places, grid, value=-1)[:, 0, :, 0]
            return Layout(queries=places, keys=places, query_count=math.prod(grid), key_count=math.prod(grid))

        attended = linear_attend(query, key * real, value, eps=_EPS * real.sum(2, keepdim=True), layout=layout)
        answers = merge_heads(attended + _around(value, self.local, self.window)).unsqueeze(1)
        return self.out(crop(join_windows(answers, padded_grid(grid, self.window), self.window), grid).reshape(x.shape))

    def _windows(self, x: Tensor, grid: tuple[int, ...], *, value: float = 0.0) -> Tensor:
        """x: [B, N, c]. Returns [B W, 1, n, c]."""
        return split_windows(pad_to_multiple(x.reshape(x.shape[0], 1, *grid, x.shape[-1]), self.window, value=value), self.window)


def _width(channels: int, heads: int) -> int:
    check_heads(channels, heads)
    return channels // heads

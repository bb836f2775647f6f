"""Attention within windows, in one, two or three dimensions, by reshaping alone.

Sizes that a window does not divide are padded at the far end; the padding is masked, and cut off again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.attention.attend import attend
from shared.attention.maps import Layout

__all__ = ["crop", "grid_of", "join_windows", "pad_to_multiple", "per_axis", "split_windows", "window_attend"]


def per_axis(size: int | Sequence[int], rank: int, *, name: str = "window") -> tuple[int, ...]:
    """One number for all axes, or one for each.

    Raises:
        ValueError: if there are not ``rank`` of them, or one is not positive.
    """
    sizes = (size,) * rank if isinstance(size, int) else tuple(size)
    if len(sizes) != rank or min(sizes) < 1:
        raise ValueError(f"{name} must be positive, one number or one for each of {rank} axes, not {size}")
    return sizes


def grid_of(x: Tensor, grid: Sequence[int]) -> tuple[int, ...]:
    """Checks that tokens x [B, N, C] are as many as the grid has places.

    Raises:
        ValueError: if they are not.
    """
    if not torch.compiler.is_compiling() and math.prod(grid) != x.shape[1]:
        raise ValueError(f"{x.shape[1]} tokens do not fill a grid of {tuple(grid)}")
    return tuple(grid)


def pad_to_multiple(x: Tensor, sizes: Sequence[int], *, value: float = 0.0) -> Tensor:
    """x: [..., *grid, c], padded at the far end of each axis to a multiple of its size."""
    rank = len(sizes)
    amounts = [(size - extent % size) % size for extent, size in zip(x.shape[-rank - 1 : -1], sizes, strict=True)]
    if not any(amounts):
        return x
    return F.pad(x, (0, 0, *(n for amount in reversed(amounts) for n in (0, amount))), value=value)


def crop(x: Tensor, grid: Sequence[int]) -> Tensor:
    """x: [..., *padded, c]. Returns [..., *grid, c]."""
    for axis, extent in enumerate(grid):
        x = x.narrow(axis - len(grid) - 1, 0, extent)
    return x


def split_windows(x: Tensor, window: Sequence[int], *, strided: bool = False) -> Tensor:
    """x: [B, h, *grid, c], sides multiples of the window. Returns [B W, h, n, c] with n tokens in each of W windows.

    Args:
        strided: a window is not one patch but a sparse grid over the whole map (MaxViT's grid attention).
    """
    rank = len(window)
    batch, heads, grid, channels = x.shape[0], x.shape[1], x.shape[2:-1], x.shape[-1]
    sides = [(g // w, w) if not strided else (w, g // w) for g, w in zip(grid, window, strict=True)]
    x = x.reshape(batch, heads, *(side for pair in sides for side in pair), channels)
    outer = [2 + 2 * axis + strided for axis in range(rank)]
    inner = [2 + 2 * axis + (not strided) for axis in range(rank)]
    return x.permute(0, *outer, 1, *inner, x.ndim - 1).reshape(-1, heads, math.prod(window), channels)


def join_windows(x: Tensor, grid: Sequence[int], window: Sequence[int], *, strided: bool = False) -> Tensor:
    """The inverse of ``split_windows``: x [B W, h, n, c]. Returns [B, h, *grid, c]."""
    rank = len(window)
    counts = [g // w for g, w in zip(grid, window, strict=True)]
    heads, channels = x.shape[1], x.shape[-1]
    x = x.reshape(-1, *counts, heads, *window, channels)
    order = []
    for axis in range(rank):
        pair = (1 + axis, 2 + rank + axis)
        order += reversed(pair) if strided else pair
    return x.permute(0, 1 + rank, *order, x.ndim - 1).reshape(-1, heads, *grid, channels)


def window_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: Sequence[int],
    strided: bool = False,
    scale: float | None = None,
    bias: Tensor | None = None,
    part: str = "",
) -> Tensor:
    """Softmax attention of each window to itself.

    Args:
        query, key, value: [B, h, *grid, d]; any grid.
        window: its side along each axis.
        strided: as ``split_windows``.
        scale, part: as ``attend``.
        bias: [h, n, n], added to the logits of every window.

    Returns:
        [B, h, *grid, d].
    """
    grid = query.shape[2:-1]
    batch = query.shape[0]
    padded = [-(-extent // side) * side for extent, side in zip(grid, window, strict=True)]
    mask = None
    if any(extent % side for extent, side in zip(grid, window, strict=True)):
        real = pad_to_multiple(torch.ones(1, 1, *grid, 1, dtype=torch.bool, device=query.device), window, value=False)
        # [W, 1, 1, n]: which keys of each window are real.
        mask = split_windows(real, window, strided=strided).mT
        mask = mask.repeat(batch, 1, 1, 1)

    def layout() -> Layout:
        places = torch.arange(math.prod(grid), device=query.device).reshape(1, 1, *grid, 1)
        places = split_windows(pad_to_multiple(places, window, value=-1), window, strided=strided)[:, 0, :, 0]
        return Layout(queries=places, keys=places, query_count=math.prod(grid), key_count=math.prod(grid))

    windows = (split_windows(pad_to_multiple(x, window), window, strided=strided) for x in (query, key, value))
    output = attend(*windows, scale=scale, bias=bias, mask=mask, layout=layout, part=part)
    return crop(join_windows(output, padded, window, strided=strided), grid)

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

__all__ = [
    "crop",
    "grid_of",
    "join_windows",
    "merge_grid",
    "pad_to_multiple",
    "padded_grid",
    "per_axis",
    "split_grid",
    "split_windows",
    "window_attend",
]


def per_axis(size: int | Sequence[int], rank: int, *, name: str = "window") -> tuple[int, ...]:
    """One number for all axes, or one for each.

    Raises:
        ValueError: if there are not ``rank`` of them, or one is not positive.
    """
    sizes = (size,) * rank if isinstance(size, int) else tuple(size)
    if len(sizes) != rank or min(sizes) < 1:
        raise ValueError(f"{name} must be positive, one number or one for each of {rank} axes, not {size}")
    return sizes


def grid_of(x: Tensor, grid: Sequence[int], *, rank: int | None = None) -> tuple[int, ...]:
    """Checks that tokens x [B, N, C] are as many as the grid has places.

    Raises:
        ValueError: if they are not, or the grid has not ``rank`` axes.
    """
    if rank is not None and len(grid) != rank:
        raise ValueError(f"grid must have {rank} axes, not {tuple(grid)}")
    if not torch.compiler.is_compiling() and math.prod(grid) != x.shape[1]:
        raise ValueError(f"{x.shape[1]} tokens do not fill a grid of {tuple(grid)}")
    return tuple(grid)


def split_grid(x: Tensor, heads: int) -> Tensor:
    """[B, *grid, h d] to [B, h, *grid, d]."""
    return x.unflatten(-1, (heads, -1)).movedim(-2, 1)


def merge_grid(x: Tensor) -> Tensor:
    """[B, h, *grid, d] to [B, *grid, h d]."""
    return x.movedim(1, -2).flatten(-2)


def padded_grid(grid: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """The smallest multiples of ``sizes`` that hold the grid."""
    return tuple(-(-extent // size) * size for extent, size in zip(grid, sizes, strict=True))


def pad_to_multiple(x: Tensor, sizes: Sequence[int], *, value: float = 0.0) -> Tensor:
    """x: [..., *grid, c], padded at the far end of each axis to a multiple of its size."""
    rank = len(sizes)
    grid = x.shape[-rank - 1 : -1]
    amounts = [whole - extent for whole, extent in zip(padded_grid(grid, sizes), grid, strict=True)]
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
    for axis in reversed(range(2, 2 + rank)):
        side = window[axis - 2]
        x = x.unflatten(axis, (side, -1) if strided else (-1, side))
    outer = [2 + 2 * axis + strided for axis in range(rank)]
    inner = [2 + 2 * axis + (not strided) for axis in range(rank)]
    # One axis at a time, and dense before axes are joined: a compiler that has left sizes open then has little to prove.
    x = x.permute(0, *outer, 1, *inner, x.ndim - 1).contiguous()
    return x.flatten(2 + rank, -2).flatten(0, rank)


def join_windows(x: Tensor, grid: Sequence[int], window: Sequence[int], *, strided: bool = False) -> Tensor:
    """The inverse of ``split_windows``: x [B W, h, n, c]. Returns [B, h, *grid, c]."""
    rank = len(window)
    counts = [g // w for g, w in zip(grid, window, strict=True)]
    x = x.unflatten(2, tuple(window)).unflatten(0, (-1, *counts))
    order: list[int] = []
    for axis in range(rank):
        pair = (1 + axis, 2 + rank + axis)
        order += reversed(pair) if strided else pair
    x = x.permute(0, 1 + rank, *order, x.ndim - 1).contiguous()
    for axis in range(2, 2 + rank):
        x = x.flatten(axis, axis + 1)
    return x


def window_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: Sequence[int],
    strided: bool = False,
    scale: float | None = None,
    bias: Tensor | None = None,
    grid: Sequence[int] | None = None,
    part: str = "",
) -> Tensor:
    """Softmax attention of each window to itself.

    Args:
        query, key, value: [B, h, *grid, d]; any grid.
        window: its side along each axis.
        strided: as ``split_windows``.
        scale, part: as ``attend``.
        bias: [h, n, n], added to the logits of every window.
        grid: the real one, where the caller has padded to a multiple of the window with tokens that are to be seen like any other, as some
            published code does. They are cut off, and not recorded: the rows of a map then lack what went to them.

    Returns:
        [B, h, *grid, d].
    """
    given = query.shape[2:-1]
    real = tuple(given if grid is None else grid)
    mask = None
    if any(extent % side for extent, side in zip(given, window, strict=True)):
        seen = pad_to_multiple(torch.ones(1, 1, *given, 1, dtype=torch.bool, device=query.device), window, value=False)
        # [B W, 1, 1, n]: which keys of each window are real.
        mask = split_windows(seen, window, strided=strided).mT.repeat(query.shape[0], 1, 1, 1)

    def layout() -> Layout:
        places = torch.arange(math.prod(real), device=query.device).reshape(1, 1, *real, 1)
        places = split_windows(pad_to_multiple(places, window, value=-1), window, strided=strided)[:, 0, :, 0]
        return Layout(queries=places, keys=places, query_count=math.prod(real), key_count=math.prod(real))

    windows = (split_windows(pad_to_multiple(x, window), window, strided=strided) for x in (query, key, value))
    output = attend(*windows, scale=scale, bias=bias, mask=mask, layout=layout, part=part)
    return crop(join_windows(output, padded_grid(given, window), window, strided=strided), real)

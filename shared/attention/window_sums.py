"""Sums over each position's neighbourhood with weights of its own, in one, two or three dimensions, without copies of the neighbours.

Windows have an odd side and lie around their position; near a border they are moved inside, so that all have as many places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["relative_bias", "weigh_neighbours"]


def relative_bias(table: Tensor, grid: Sequence[int], kernel: int) -> Tensor:
    """What a table of relative positions says of each place of each position's window.

    Args:
        table: [h, 2 kernel - 1, ...], one axis for each of the grid's.
        grid: no side shorter than ``kernel``.

    Returns:
        [h, kernel ** rank, *grid].
    """
    rank = len(grid)
    offsets = torch.arange(kernel, device=table.device)
    for axis, extent in enumerate(grid):
        places = torch.arange(extent, device=table.device)
        relative = _starts(extent, kernel, table.device) - places + offsets[:, None] + kernel - 1
        table = table.index_select(1 + 2 * axis, relative.flatten()).unflatten(1 + 2 * axis, (kernel, extent))
    order = [*range(1, 1 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2)]
    return table.permute(0, *order).flatten(1, rank)


def weigh_neighbours(weights: Tensor, values: Tensor, rank: int) -> Tensor:
    """The sum of each position's window, weighted.

    Args:
        weights: [B, h, kernel ** rank, *grid]; no side of the grid shorter than the kernel's.
        values: [B, h, c, *grid].
        rank: number of axes of the grid.

    Returns:
        [B, h, c, *grid].
    """
    kernel = round(weights.shape[2] ** (1 / rank))
    weights = weights.unflatten(2, (kernel,) * rank)
    starts = [_starts(extent, kernel, values.device) for extent in values.shape[3:]]
    wide = values.to(weights.dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return _Neighbours.apply(weights, wide, *starts).to(values.dtype)
    return _gather(torch.zeros_like(wide), weights, wide, starts).to(values.dtype)


def _starts(extent: int, kernel: int, device: torch.device) -> Tensor:
    """Where the window of each position along an axis begins."""
    return (torch.arange(extent, device=device) - kernel // 2).clamp(0, extent - kernel)


class _Neighbours(torch.autograd.Function):
    """Keeps the weights and the values for its gradient, and no shifted copies of them."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, *starts: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values, *starts)
        return _gather(torch.zeros_like(values), weights, values, starts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, values, *starts = ctx.saved_tensors
        own = _compare(gradient, values, starts, weights.shape[2]) if ctx.needs_input_grad[0] else None
        others = _scatter(weights, gradient, starts) if ctx.needs_input_grad[1] else None
        return own, others, *(None for _ in starts)


def _gather(total: Tensor, weights: Tensor, values: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """total + sum over offsets of weights [B, h, kernel, ..., *grid] times values [B, h, c, *grid] at starts plus offsets."""
    if not starts:
        return torch.addcmul(total, weights.unsqueeze(2), values)
    for offset in range(weights.shape[2]):
        total = _gather(total, weights.select(2, offset), values.index_select(-len(starts), starts[0] + offset), starts[1:])
    return total


def _compare(gradient: Tensor, values: Tensor, starts: Sequence[Tensor], kernel: int) -> Tensor:
    """The gradient of the weights: [B, h, kernel, ..., *grid]."""
    if not starts:
        return (gradient * values).sum(2)
    moved = (values.index_select(-len(starts), starts[0] + offset) for offset in range(kernel))
    return torch.stack([_compare(gradient, each, starts[1:], kernel) for each in moved], dim=2)


def _scatter(weights: Tensor, gradient: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """The gradient of the values: [B, h, c, *grid]."""
    if not starts:
        return weights.unsqueeze(2) * gradient
    total = torch.zeros_like(gradient)
    for offset in range(weights.shape[2]):
        total.index_add_(total.ndim - len(starts), starts[0] + offset, _scatter(weights.select(2, offset), gradient, starts[1:]))
    return total

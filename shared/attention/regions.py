"""Gathering the keys that a group of neighbouring queries shares: once per group, not once per query."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shared.attention.recording import recording

__all__ = ["CHUNK_BYTES", "KEPT_BYTES", "all_places", "blocks", "coordinates", "in_chunks", "listed", "places", "slots", "take"]

CHUNK_BYTES = 32 * 2**20
"""What the keys, values and masks of groups that are attended together may fill; more groups go in several rounds. Fastest on a CPU."""
KEPT_BYTES = 256 * 2**20
"""What all rounds together may keep for their gradients. Above, each is run again in the backward pass, and one at a time is held."""


def blocks(extent: int, side: int, device: torch.device, *, margin: int = 0) -> Tensor:
    """Positions along an axis of each block of ``side``, and of a margin around it: [blocks, side + 2 margin]; -1 is outside."""
    start = side * torch.arange(-(-extent // side), device=device) - margin
    position = start.unsqueeze(1) + torch.arange(side + 2 * margin, device=device)
    return torch.where((position >= 0) & (position < extent), position, -1)


def places(parts: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Flat positions in a grid of all combinations of positions along its axes.

    Args:
        parts: for each axis [W, n]: positions along it; -1 is outside.
        grid: its extents.

    Returns:
        [W, product of all n]; -1 where any axis is outside.
    """
    whole = parts[0]
    for part, extent in zip(parts[1:], grid[1:], strict=True):
        rows, columns = whole.unsqueeze(2), part.unsqueeze(1)
        whole = torch.where((rows < 0) | (columns < 0), -1, rows * extent + columns).flatten(1)
    return whole


def all_places(parts: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """As ``places``, for all combinations of rows too, the last axis fastest: [W_i, n_i] give [product of all W_i, product of all n_i]."""
    counts = [part.shape[0] for part in parts]
    rows = coordinates(torch.arange(math.prod(counts), device=parts[0].device), counts)
    return places([part[i] for part, i in zip(parts, rows, strict=True)], grid)


def coordinates(positions: Tensor, grid: Sequence[int]) -> list[Tensor]:
    """Flat positions, or indices of combinations, to those along each axis; the last axis is the fastest."""
    found = []
    for extent in reversed(grid):
        found.append(positions % extent)
        positions = positions // extent
    return found[::-1]


def slots(positions: Tensor, count: int) -> Tensor:
    """Where each of ``count`` positions stands in the list ``positions`` [n], which has every one of them once, and -1 for padding."""
    order = torch.zeros(count + 1, dtype=torch.long, device=positions.device)
    listed = torch.arange(positions.shape[0], device=positions.device)
    return order.scatter(0, torch.where(positions < 0, count, positions), listed)[:count]


def listed(x: Tensor) -> Tensor:
    """x: [B, N, h, c]. Returns [B, N + 1, h, c]: one more token, of zeros, for what lies outside."""
    return F.pad(x.flatten(2), (0, 0, 0, 1)).unflatten(2, x.shape[2:])


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens of each group.

    Args:
        tokens: [B, N + 1, h, c], as ``listed`` makes them.
        positions: [W, n]; -1 gives zeros.

    Returns:
        [B W, h, n, c].
    """
    heads, last = tokens.shape[2], tokens.shape[1] - 1
    found = tokens.flatten(2).index_select(1, torch.where(positions < 0, last, positions).flatten())
    return found.reshape(-1, positions.shape[1], heads, tokens.shape[3]).transpose(1, 2)


def in_chunks(run: Callable[[Tensor], Tensor], count: int, *, bytes_each: int, device: torch.device) -> Tensor:
    """run(indices of some groups) -> [B, some groups, ...], for so many groups at a time as fit in ``CHUNK_BYTES``.

    Rounds that are run again for their gradients: Chen et al., "Training deep nets with sublinear memory cost", 2016. A recording, which
    keeps everything in any case, sees a single round; so does the compiler.
    """
    indices = torch.arange(count, device=device)
    if torch.compiler.is_compiling() or recording() or count * bytes_each <= CHUNK_BYTES:
        return run(indices)
    rounds = indices.split(max(1, CHUNK_BYTES // bytes_each))
    if torch.is_grad_enabled() and count * bytes_each > KEPT_BYTES:
        return torch.cat([checkpoint(run, some, use_reentrant=False, preserve_rng_state=False) for some in rounds], dim=1)
    return torch.cat([run(some) for some in rounds], dim=1)

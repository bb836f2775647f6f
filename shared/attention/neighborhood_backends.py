"""Neighbourhood attention by kernels that know neighbourhoods: NATTEN, where it is installed, and torch's flex attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from shared.attention.neighborhood_tiles import Axis, Neighborhood
from shared.attention.regions import all_places, coordinates, slots

if TYPE_CHECKING:  # takes a second to import, of every command of every app
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["flex", "flex_refuses", "natten", "natten_has_kernels", "natten_refuses"]

BLOCK = {1: (128,), 2: (8, 16), 3: (4, 4, 8)}
"""Tokens that flex attention handles together, 128 of them, by the number of axes."""

_HALF_OR_SINGLE = (torch.float32, torch.float16, torch.bfloat16)


def natten_refuses(query: Tensor, value: Tensor, near: Neighborhood, bias: Tensor | None) -> str | None:
    """Why NATTEN cannot do this; None where it can."""
    long = [axis for axis in near.axes if axis.kernel * axis.dilation > axis.extent]
    return _first(
        (bias is not None, "it has no bias"),
        (near.radius is not None, "its windows are not round"),
        (any(axis.kernel == 1 for axis in near.axes), "a kernel is 1"),
        (bool(long), f"kernel x dilation exceeds the axis: {[(axis.kernel, axis.dilation, axis.extent) for axis in long]}"),
        (query.dtype not in _HALF_OR_SINGLE, f"the data type is {query.dtype}"),
        (query.shape[-1] != value.shape[-1], f"queries and values differ in width: {query.shape[-1]} and {value.shape[-1]}"),
        (query.shape[-1] % 8 != 0, f"the width of a head, {query.shape[-1]}, is no multiple of 8"),
        *_no_gradients_on_cpu(query, value, bias),
        (query.shape[0] == 0, "the batch is empty"),
        (torch.compiler.is_exporting(), "a graph is being exported"),
        (find_spec("natten") is None, "the package natten is not installed"),
    )


def natten(query: Tensor, key: Tensor, value: Tensor, near: Neighborhood, *, scale: float | None) -> Tensor:
    """query, key, value: [B, h, *grid, d]. Returns the same shape.

    Raises:
        ValueError: if NATTEN has no kernel for these tensors on this machine.
    """
    import natten as package

    attend_nd: Callable[..., Tensor] = getattr(package, f"na{len(near.axes)}d")
    try:
        output = attend_nd(
            *(x.movedim(1, -2).contiguous() for x in (query, key, value)),
            kernel_size=tuple(axis.kernel for axis in near.axes),
            stride=tuple(axis.stride for axis in near.axes),
            dilation=tuple(axis.dilation for axis in near.axes),
            is_causal=tuple(axis.causal for axis in near.axes),
            scale=scale,
        )
    except NotImplementedError as error:
        raise ValueError(f"backend='natten' cannot do this: {error}") from error
    return output.movedim(-2, 1)


@functools.cache
def natten_has_kernels() -> bool:
    """Whether NATTEN is installed with its own kernels; without them it goes through flex attention too."""
    if find_spec("natten") is None:
        return False
    import natten as package

    return bool(getattr(package, "HAS_LIBNATTEN", False))


def flex_refuses(query: Tensor, value: Tensor, bias: Tensor | None) -> str | None:
    """Why flex attention cannot do this; None where it can. On a CPU it runs uncompiled, for tests."""
    return _first(
        (query.is_cuda and not has_triton(), "Triton is not installed"),
        (query.is_cuda and query.dtype not in _HALF_OR_SINGLE, f"the data type is {query.dtype}"),
        (
            query.is_cuda and min(query.shape[-1], value.shape[-1]) < 16,
            f"heads are narrower than 16: {query.shape[-1]} and {value.shape[-1]}",
        ),
        *_no_gradients_on_cpu(query, value, bias),
        (query.shape[0] == 0, "the batch is empty"),
        (torch.compiler.is_exporting(), "a graph is being exported"),
    )


def flex(query: Tensor, key: Tensor, value: Tensor, near: Neighborhood, *, scale: float | None, bias: Tensor | None) -> Tensor:
    """query, key: [B, h, *grid, d]; value: [B, h, *grid, e]; bias: [h, 2 K - 1, ...]. Returns [B, h, *grid, e].

    Tokens are ordered so that 128 neighbours follow one another: whole blocks of keys are then out of sight, and are skipped.
    """
    from torch.nn.attention.flex_attention import flex_attention

    grid, total, device = near.grid, math.prod(near.grid), query.device
    tiles = [axis.positions(-(-axis.longest // side), side, device) for axis, side in zip(near.axes, BLOCK[len(grid)], strict=True)]
    at = all_places(tiles, grid).flatten()
    inside = at.clamp(min=0)
    along = [_along(axis, position) for axis, position in zip(near.axes, coordinates(inside, grid), strict=True)]

    # What the compiled kernel captures is tensors alone: numbers would compile it again for each layer's settings.
    limit = None if near.radius is None else torch.tensor(near.radius**2, device=device)
    table = None if bias is None else bias.flatten(1)
    sides = [2 * axis.kernel - 1 for axis in near.axes]
    strides = [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
    entry: Any = sum([each.step * stride for each, stride in zip(along, strides, strict=True)])
    centre: Any = entry - sum([(axis.kernel - 1) * stride for axis, stride in zip(near.axes, strides, strict=True)])

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = at[k] >= 0
        for each in along:
            seen = seen & (each.place[k] >= each.first[q]) & (each.place[k] < each.stop[q])
        return seen if limit is None else seen & (sum([(each.step[k] - each.step[q]) ** 2 for each in along]) < limit)

    def add(score: Tensor, _batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # The clamp is for pairs that are masked.
        return score if table is None else score + table[head, (entry[k] - centre[q]).clamp(0, table.shape[1] - 1)]

    run: Any = flex_attention if torch.compiler.is_compiling() or not query.is_cuda else _compiled()
    tokens = [x.flatten(2, -2).index_select(2, inside) for x in (query, key, value)]
    output = run(*tokens, score_mod=None if bias is None else add, block_mask=_block_mask(near.axes, tiles, sees), scale=scale)
    return output.index_select(2, slots(at, total)).unflatten(2, grid)


@dataclass(frozen=True)
class _Along:
    """What is known of tokens along one axis."""

    step: Tensor
    place: Tensor
    """Number when the groups of the dilation follow one another."""
    first: Tensor
    """The place of the first key that it sees."""
    stop: Tensor
    """The place after the last."""


def _along(axis: Axis, position: Tensor) -> _Along:
    start, step = position % axis.dilation * axis.longest, position // axis.dilation
    first, stop = (bound[position] for bound in axis.windows(position.device))
    return _Along(step, start + step, start + first, start + stop)


def _block_mask(axes: Sequence[Axis], tiles: Sequence[Tensor], sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> BlockMask:
    """Blocks meet where their spans meet along every axis: no mask of all queries and keys is computed to find them."""
    from torch.nn.attention.flex_attention import BlockMask

    meets = None
    for axis, tile in zip(axes, tiles, strict=True):
        # Padding does as the last real token of its block, or as token 0.
        along = _along(axis, torch.where(tile < 0, tile.amax(1, keepdim=True).clamp(min=0), tile))
        low, high = along.first.amin(1, keepdim=True), along.stop.amax(1, keepdim=True)
        each = (along.place.amin(1) < high) & (along.place.amax(1) >= low)
        meets = each if meets is None else (meets[:, None, :, None] & each[None, :, None, :]).flatten(2).flatten(0, 1)
    assert meets is not None
    size = math.prod(BLOCK[len(axes)])
    return BlockMask.from_kv_blocks(
        meets.sum(-1, dtype=torch.int32)[None, None],
        meets.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)[None, None],
        BLOCK_SIZE=size,
        mask_mod=sees,
        seq_lengths=(meets.shape[0] * size, meets.shape[0] * size),
    )


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _no_gradients_on_cpu(query: Tensor, value: Tensor, bias: Tensor | None) -> list[tuple[bool, str]]:
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (query, value, bias))
    return [(not query.is_cuda and wanted, "it has no gradients on a CPU")]


def _first(*conditions: tuple[bool, str]) -> str | None:
    return next((reason for refused, reason in conditions if refused), None)

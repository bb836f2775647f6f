"""Neighbourhood attention: every token sees the keys around it, as a convolution does.

Hassani et al., "Neighborhood Attention Transformer", CVPR 2023; Hassani and Shi, "Dilated Neighborhood Attention Transformer", 2022; Liu
et al., "CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers Up", NeurIPS 2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.attention.attend import check_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.neighborhood_backends import flex, flex_refuses, natten, natten_has_kernels, natten_refuses
from shared.attention.neighborhood_tiles import Axis, Neighborhood, tiled
from shared.attention.recording import recording
from shared.attention.registry import register
from shared.attention.windows import per_axis

__all__ = ["CircularAttention", "NeighborhoodAttention", "circular_attend", "neighborhood_attend"]

Backend = Literal["auto", "tiles", "natten", "flex"]


def neighborhood_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    scale: float | None = None,
    bias: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(scale q k^T + bias) v over the ``kernel`` nearest keys along each axis, in one, two or three dimensions.

    Windows are shifted inwards at the borders, where they keep their size. An even kernel has its extra key before the query. A kernel
    that exceeds its axis (its group, with dilation) sees all of it; NATTEN refuses kernel x dilation beyond the axis.

    Args:
        query, key: [B, h, *grid, d].
        value: [B, h, *grid, e]; e may differ from d.
        kernel: keys along each axis; one number, or one for each.
        dilation: tokens so far apart form a group of their own, and neighbours are those of the group.
        stride: so many successive queries share the window of the middle one (of the last, where causal); at most ``kernel``.
        causal: along such an axis, no key after the query, and the window reaches back from it.
        scale: d ** -0.5 by default.
        bias: [h, 2 K - 1, ...] with an entry for each offset from query to key along each axis, in steps of the dilation: the
            "rpb" of NAT's and DiNAT's weights.
        backend: "tiles" works everywhere: a tile of queries takes the keys that any of them sees. "natten" is NATTEN's kernels, if that
            package is installed. "flex" is torch's flex attention, compiled on a GPU; on a CPU it is slow, and there for tests. "auto" is
            on a GPU the first of NATTEN, flex and tiles that can do it, tiles elsewhere. While a recording runs, tiles do the work.

    Returns:
        [B, h, *grid, e].

    Raises:
        ValueError: if a size does not fit the grid, or an explicit backend cannot do this: names the condition that it refuses.
    """
    return _dispatch(query, key, value, _square(query.shape[2:-1], kernel, dilation, stride, causal), scale, bias, backend)


def circular_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    radius: float,
    scale: float | None = None,
    bias: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(scale q k^T + bias) v over the keys nearer than ``radius``: a disc, in three dimensions a ball. Cut off at the borders.

    Args:
        query, key, value, scale, backend: as ``neighborhood_attend``.
        radius: in steps of the grid; the distance is Euclidean, and less than this.
        bias: as there, for K = 2 ceil(radius) - 1.

    Raises:
        ValueError: if ``radius`` is not positive, or as ``neighborhood_attend``.
    """
    return _dispatch(query, key, value, _circle(query.shape[2:-1], radius), scale, bias, backend)


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    near = _square(grid, settings.kernel, settings.dilation, settings.stride, settings.causal)
    table = settings.heads * math.prod(2 * axis.kernel - 1 for axis in near.axes)
    return _block_cost(settings, near) + Cost(table * settings.relative_bias)


def _block_cost(settings: Any, near: Neighborhood) -> Cost:
    channels, n = settings.channels, math.prod(near.grid)
    tiles, queries, keys = near.tiling()
    projections = linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + linear_cost(channels, channels, n)
    return projections + tiles * attention_cost(queries, keys, channels)


@register(
    "neighborhood",
    paper="Hassani et al., NAT, CVPR 2023; Hassani and Shi, DiNAT, 2022",
    ranks=(1, 2, 3),
    cost=_cost,
    example={"kernel": 3},
    published={"rpb": "bias_table", "proj": "out"},
)
class NeighborhoodAttention(nn.Module):
    """Neighbourhood attention (NAT, DiNAT): each position looks at the nearest ones, in a window that is shifted inwards at the borders.

    Args:
        channels: channels of the feature map; a multiple of ``heads``.
        heads: number of heads.
        kernel, dilation, stride, causal, backend: as ``neighborhood_attend``. DiNAT is NAT with a dilation in every other block.
        qkv_bias: whether queries, keys and values have a bias.
        relative_bias: whether a learned table [h, 2 K - 1, ...] adds to the logits by the offset from query to key.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, ``rank`` is not 1, 2 or 3, or as ``neighborhood_attend``.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        kernel: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        relative_bias: bool = True,
        rank: int = 2,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        # Extents play no part in the checks.
        axes = _square((1,) * rank, kernel, dilation, stride, causal).axes
        self.heads, self.backend = heads, backend
        self.kernel, self.dilation = tuple(axis.kernel for axis in axes), tuple(axis.dilation for axis in axes)
        self.stride, self.causal = tuple(axis.stride for axis in axes), tuple(axis.causal for axis in axes)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.empty(heads, *(2 * side - 1 for side in self.kernel))) if relative_bias else None
        if self.bias_table is not None:
            nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        attended = neighborhood_attend(
            *_project(self.qkv, x, self.heads),
            kernel=self.kernel,
            dilation=self.dilation,
            stride=self.stride,
            causal=self.causal,
            bias=self.bias_table,
            backend=self.backend,
        )
        return _join(self.out, attended)


@register(
    "circular",
    paper="Liu et al., CLEAR, NeurIPS 2025",
    ranks=(1, 2, 3),
    cost=lambda settings, grid: _block_cost(settings, _circle(grid, settings.radius)),
    example={"radius": 2.5},
)
class CircularAttention(nn.Module):
    """Circular-window attention (CLEAR): each position looks at those nearer than a radius, and at fewer where the border cuts the disc.

    Args:
        channels: channels of the feature map; a multiple of ``heads``.
        heads: number of heads.
        radius, backend: as ``circular_attend``.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or ``radius`` is not positive.
    """

    def __init__(self, *, channels: int, heads: int = 8, radius: float = 8.0, qkv_bias: bool = True, backend: Backend = "auto") -> None:
        super().__init__()
        check_heads(channels, heads)
        _circle((1,), radius)
        self.heads, self.radius, self.backend = heads, radius, backend
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        return _join(self.out, circular_attend(*_project(self.qkv, x, self.heads), radius=self.radius, backend=self.backend))


def _project(qkv: nn.Module, x: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values of a feature map [B, C, *grid], each [B, h, *grid, d]."""
    projected = qkv(x.movedim(1, -1)).unflatten(-1, (3, heads, -1))
    return [projected[..., each, :, :].movedim(-2, 1) for each in range(3)]


def _join(out: nn.Module, attended: Tensor) -> Tensor:
    """The projected heads [B, h, *grid, d] as a feature map."""
    return out(attended.movedim(1, -2).flatten(-2)).movedim(-1, 1)


def _square(
    grid: Sequence[int],
    kernel: int | Sequence[int],
    dilation: int | Sequence[int],
    stride: int | Sequence[int],
    causal: bool | Sequence[bool],
) -> Neighborhood:
    rank = len(grid)
    if rank not in (1, 2, 3):
        raise ValueError(f"there must be 1, 2 or 3 spatial axes, not {rank}")
    flags = (causal,) * rank if isinstance(causal, bool) else tuple(causal)
    if len(flags) != rank:
        raise ValueError(f"causal must be one value or one for each of {rank} axes, not {causal}")
    kernels, strides = per_axis(kernel, rank, name="kernel"), per_axis(stride, rank, name="stride")
    if any(shared > side for shared, side in zip(strides, kernels, strict=True)):
        raise ValueError(f"stride={stride} must not exceed kernel={kernel}: some keys would be seen by nobody")
    gaps = per_axis(dilation, rank, name="dilation")
    return Neighborhood(
        axes=tuple(
            Axis(extent=extent, kernel=side, dilation=gap, stride=shared, causal=flag)
            for extent, side, gap, shared, flag in zip(grid, kernels, gaps, strides, flags, strict=True)
        )
    )


def _circle(grid: Sequence[int], radius: float) -> Neighborhood:
    if len(grid) not in (1, 2, 3):
        raise ValueError(f"there must be 1, 2 or 3 spatial axes, not {len(grid)}")
    if radius <= 0:
        raise ValueError(f"radius must be positive, not {radius}")
    kernel = 2 * math.ceil(radius) - 1
    return Neighborhood(axes=tuple(Axis(extent=extent, kernel=kernel, clamped=False) for extent in grid), radius=radius)


def _dispatch(
    query: Tensor, key: Tensor, value: Tensor, near: Neighborhood, scale: float | None, bias: Tensor | None, backend: Backend
) -> Tensor:
    if key.shape != query.shape or value.shape[:-1] != query.shape[:-1]:
        raise ValueError(f"query, key and value must share a grid: {list(query.shape)}, {list(key.shape)}, {list(value.shape)}")
    table = [query.shape[1], *(2 * axis.kernel - 1 for axis in near.axes)]
    if bias is not None and list(bias.shape) != table:
        raise ValueError(f"bias must be {table} for these heads and this kernel, not {list(bias.shape)}")
    chosen = _choose(query, value, near, bias, backend)
    if chosen == "natten":
        return natten(query, key, value, near, scale=scale)
    if chosen == "flex":
        return flex(query, key, value, near, scale=scale, bias=bias)
    return tiled(query, key, value, near, scale=scale, bias=bias)


def _choose(query: Tensor, value: Tensor, near: Neighborhood, bias: Tensor | None, backend: Backend) -> Backend:
    refuses = {"natten": lambda: natten_refuses(query, value, near, bias), "flex": lambda: flex_refuses(query, value, bias)}
    if backend in refuses:
        if reason := refuses[backend]():
            raise ValueError(f"backend={backend!r} cannot do this: {reason}")
    elif backend not in ("auto", "tiles"):
        raise ValueError(f"backend must be auto, tiles, natten or flex, not {backend!r}")
    if recording() or backend == "tiles" or (backend == "auto" and not query.is_cuda):
        return "tiles"
    if backend != "auto":
        return backend
    if not torch.compiler.is_compiling() and natten_has_kernels() and refuses["natten"]() is None:
        return "natten"
    return "flex" if refuses["flex"]() is None else "tiles"

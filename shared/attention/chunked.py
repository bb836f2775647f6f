"""Attention a piece at a time: exact, with memory that does not grow with the map. For softmaxes the fused kernels do the same, faster.

Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021. ``chunked_attend`` is that algorithm in plain torch, to read and to
check others against. ``tiled_attend`` serves weights that no fused kernel has, such as signed or rectified ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared.attention.attend import check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.maps import ProductMap, SoftmaxMap, rows_per_tile, select_part, select_rows
from shared.attention.recording import note, recording
from shared.attention.registry import bag, register

__all__ = ["ChunkedAttention", "TiledMap", "chunked_attend", "tiled_attend"]

Weigh = Callable[[Tensor, Tensor | None], Tensor]
"""(logits [B, h, n, M], mask or None) -> weights of the same shape; of each query's logits alone."""


def chunked_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    query_chunk: int = 1024,
    key_chunk: int = 4096,
) -> Tensor:
    """softmax(scale q k^T + bias) v, with no more than ``query_chunk x key_chunk`` weights of each head in memory, in training too.

    The softmax runs along: each chunk of keys adds to a sum of weighted values and a sum of weights, both relative to the largest logit
    so far (Rabe and Staats, sections 2 and 3). Backward computes every piece again.

    Args:
        query, key, value, scale, bias, mask: as ``attend``.
        query_chunk: how many queries are answered at a time; 1024 in the paper's code.
        key_chunk: how many keys they meet at a time; 4096 in the paper's code.

    Returns:
        [B, h, N, e], whatever the chunks.

    Raises:
        ValueError: if a chunk is not positive.
    """
    if min(query_chunk, key_chunk) < 1:
        raise ValueError(f"chunks must be positive: query_chunk={query_chunk}, key_chunk={key_chunk}")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    keys, values = key.split(key_chunk, dim=2), value.split(key_chunk, dim=2)
    queries = query.split(query_chunk, dim=2)
    again = _checkpointed if len(queries) * len(keys) > 1 and torch.is_grad_enabled() else _called

    def answered(query: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        state = _nothing_seen(query, value)
        columns = zip(keys, values, _pieces(bias, 3, key_chunk, len(keys)), _pieces(mask, 3, key_chunk, len(keys)), strict=True)
        for piece in columns:
            state = again(_fold, scale, state, query, *piece)
        _, total, weighted = state
        return (weighted / torch.where(total == 0, 1.0, total)).to(query.dtype)

    rows = zip(queries, _pieces(bias, 2, query_chunk, len(queries)), _pieces(mask, 2, query_chunk, len(queries)), strict=True)
    output = torch.cat([again(answered, *piece) for piece in rows], dim=2)
    if recording():
        note(SoftmaxMap(query, key, value, scale=scale, bias=bias, mask=mask, layout=None), output)
    return output


def tiled_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    weigh: Weigh,
    scale: float | None = None,
    mask: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """weigh(scale q k^T) v for any weights of one query's logits, a tile of queries at a time.

    A map that fits into one tile is kept for backward; of larger ones each tile is computed again.

    Args:
        query, key, value, scale, mask: as ``attend``.
        weigh: from logits and mask to weights.
        tile: how many queries at a time; as many as make a tile of about 64 MB by default.

    Returns:
        [B, h, N, e].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    rows = rows_per_tile(query.shape[0], query.shape[1], key.shape[2]) if tile is None else tile

    def answered(query: Tensor, mask: Tensor | None) -> Tensor:
        return weigh((scale * query) @ key.mT, mask) @ value

    if rows >= query.shape[2]:
        output = answered(query, mask)
    else:
        tiles = query.split(rows, dim=2)
        again = _checkpointed if torch.is_grad_enabled() else _called
        output = torch.cat([again(answered, *piece) for piece in zip(tiles, _pieces(mask, 2, rows, len(tiles)), strict=True)], dim=2)
    if recording():
        note(TiledMap(query, key, value, weigh=weigh, scale=scale, mask=mask), output)
    return output


class TiledMap(ProductMap):
    """weigh(scale q.k): the map of ``tiled_attend``, computed when it is asked for."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, *, weigh: Weigh, scale: float, mask: Tensor | None) -> None:
        super().__init__(query, key, value, None)
        self.weigh, self.scale, self.mask = weigh, scale, mask

    def _weights(self, rows: Tensor | None, heads: Tensor | None, keys: Tensor | None) -> Tensor:
        logits = (self.scale * select_rows(self.query, rows, heads)) @ select_rows(self.key, None, heads).mT
        weights = self.weigh(logits, None if self.mask is None else select_part(self.mask, rows, heads))
        return weights if keys is None else weights[..., keys]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    return (
        linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + attention_cost(n, n, channels) + linear_cost(channels, channels, n)
    )


@register("chunked", paper="Rabe and Staats, 2021, sections 2 and 3", ranks=(), cost=_cost, inputs=bag, published={"proj": "out"})
class ChunkedAttention(nn.Module):
    """Self-attention of tokens in pieces, by ``chunked_attend``: answers as ``mhsa``, in plain torch, slowly and with constant memory.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        qkv_bias: whether queries, keys and values have a bias.
        query_chunk, key_chunk: as ``chunked_attend``.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or a chunk is not positive.
    """

    def __init__(self, *, channels: int, heads: int = 8, qkv_bias: bool = True, query_chunk: int = 1024, key_chunk: int = 4096) -> None:
        super().__init__()
        check_heads(channels, heads)
        if min(query_chunk, key_chunk) < 1:
            raise ValueError(f"chunks must be positive: query_chunk={query_chunk}, key_chunk={key_chunk}")
        self.heads, self.query_chunk, self.key_chunk = heads, query_chunk, key_chunk
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; mask: bool, True where a key may be seen, broadcast to [B, heads, N, N]. Returns [B, N, C]."""
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        return self.out(merge_heads(chunked_attend(query, key, value, mask=mask, query_chunk=self.query_chunk, key_chunk=self.key_chunk)))


def _nothing_seen(query: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The largest logit so far, the sum of weights, and the sum of weighted values."""
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    total = query.new_zeros((*query.shape[:-1], 1), dtype=wide)
    return total - math.inf, total, query.new_zeros((*query.shape[:-1], value.shape[-1]), dtype=wide)


def _fold(
    scale: float, state: tuple[Tensor, ...], query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, ...]:
    peak, total, weighted = state
    query, key, value = (x.to(total.dtype) for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        logits = (scale * query) @ key.mT
        logits = logits if bias is None else logits + bias
        logits = logits if mask is None else logits.masked_fill(~mask, -math.inf)
        # The answer does not depend on the peak, so neither does its gradient.
        higher = torch.maximum(peak, logits.detach().amax(-1, keepdim=True))
        level = torch.where(higher == -math.inf, 0.0, higher)
        weights, shrink = torch.exp(logits - level), torch.exp(peak - level)
        return higher, shrink * total + weights.sum(-1, keepdim=True), shrink * weighted + weights @ value


def _pieces(x: Tensor | None, axis: int, size: int, count: int) -> Sequence[Tensor | None]:
    """A bias or mask that broadcasts to [B, h, N, M], cut along N or M; ``count`` times the same where it is broadcast."""
    if x is None:
        return (None,) * count
    x = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape))
    return (x,) * count if x.shape[axis] == 1 else x.split(size, dim=axis)


def _checkpointed(function: Callable[..., Any], *arguments: Any) -> Any:
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)

"""Attention maps that are computed only where somebody looks.

A fused kernel never holds the map. What it was given does: the weights of a query are exp(scale q.k + bias - lse), with lse the
log-sum-exp over its keys, so any row of any head can be had afterwards, exactly, without the others (Rabe and Staats, "Self-attention
does not need O(n^2) memory", 2021; Dao et al., "FlashAttention", 2022, section 3.1). The gradient of a map needs no map either: with
O = A V it is dA = dO V^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["AttentionMap", "GivenMap", "Layout", "LinearMap", "ProductMap", "SoftmaxMap", "rows_per_tile", "select_part", "select_rows"]

TILE_BYTES = 64 * 2**20
"""Rows of a map are computed this much at a time where they are not all kept."""

_NO_GRADIENT = "no gradient has reached this map: use record(model, gradients=True), and differentiate the outputs"

Select = int | slice | Sequence[int] | Tensor | None
"""Which queries, heads or keys: one, a slice, several, or all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the tokens of a windowed attention lie in the whole sequence. -1 is padding, which no one sees."""

    queries: Tensor
    """[W, n]: position of each window's queries. Every position is the query of one window only."""
    keys: Tensor
    """[W, m], or [B, W, m] where each sample has its own: position of each window's keys."""
    query_count: int
    key_count: int


class AttentionMap:
    """What one attention did in one forward pass.

    Attributes:
        shape: of the whole map: [B, heads, queries, keys]; of a gate [B, 1 or C, *spatial].
    """

    shape: tuple[int, ...]

    def dense(self, *, queries: Select = None, heads: Select = None, keys: Select = None) -> Tensor:
        """The weights [B, heads, queries, keys], differentiable. Rows sum to 1 for a softmax.

        Args:
            queries: positions of the wanted queries; all by default. A class token is 0.
            heads: the wanted heads; all by default.
            keys: the wanted keys; all by default. One key shows who looks at it.
        """
        raise NotImplementedError

    def gradient(self, *, queries: Select = None, heads: Select = None) -> Tensor:
        """The gradient of what was differentiated with respect to the weights; as ``dense``, from ``record(gradients=True)``.

        Raises:
            RuntimeError: if gradients were not recorded, or ``backward`` has not run.
        """
        raise NotImplementedError

    def tiles(self) -> Iterator[Tensor]:
        """Positions of the queries, some at a time: as many as make ``dense(queries=tile)`` fill about 64 MB."""
        batch, heads, queries, keys = self.shape
        return iter(torch.arange(queries).split(rows_per_tile(batch, heads, keys)))

    def mean(self) -> Tensor:
        """The weights averaged over the heads, [B, queries, keys], with one head's map in memory at a time."""
        heads = self.shape[1]
        total = self.dense(heads=0)[:, 0] / heads
        for head in range(1, heads):
            total = total + self.dense(heads=head)[:, 0] / heads
        return total


class ProductMap(AttentionMap):
    """A map A with O = A V, all in the attention's own layout: [B or B W, h, n, d]."""

    query: Tensor
    key: Tensor
    value: Tensor
    layout: Layout | None

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout | None) -> None:
        self.query, self.key, self.value, self.layout = query, key, value, layout
        self._output_gradient: Tensor | None = None
        windows = 1 if layout is None else layout.queries.shape[0]
        queries = query.shape[2] if layout is None else layout.query_count
        keys = key.shape[2] if layout is None else layout.key_count
        self.shape = (query.shape[0] // windows, query.shape[1], queries, keys)

    def watch(self, output: Tensor) -> None:
        """Keeps the gradient that reaches ``output``, the product of this map and the values."""
        if output.requires_grad:
            output.register_hook(self._keep)

    def _keep(self, gradient: Tensor) -> None:
        self._output_gradient = gradient.detach()

    def dense(self, *, queries: Select = None, heads: Select = None, keys: Select = None) -> Tensor:
        columns = _indices(keys, self.shape[3], self.query.device)
        if self.layout is None:
            return self._weights(
                _indices(queries, self.shape[2], self.query.device), _indices(heads, self.shape[1], self.query.device), columns
            )
        whole = self._scatter(lambda rows, chosen: self._weights(rows, chosen, None), queries, heads)
        return whole if columns is None else whole[..., columns]

    def gradient(self, *, queries: Select = None, heads: Select = None) -> Tensor:
        if self._output_gradient is None:
            raise RuntimeError(_NO_GRADIENT)
        passed = self._output_gradient
        return self._scatter(
            lambda rows, chosen: select_rows(passed, rows, chosen) @ select_rows(self.value, None, chosen).mT, queries, heads
        )

    def _weights(self, rows: Tensor | None, heads: Tensor | None, keys: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _scatter(self, compute: Callable[[Tensor | None, Tensor | None], Tensor], queries: Select, heads: Select) -> Tensor:
        chosen = _indices(heads, self.shape[1], self.query.device)
        wanted = _indices(queries, self.shape[2], self.query.device)
        if self.layout is None:
            return compute(wanted, chosen)
        values, positions = _by_query(compute(None, chosen), self.layout, self.shape[0])
        if wanted is not None:
            values, positions = values[:, :, wanted], positions[..., wanted, :]
        return _spread(values, positions, self.shape[3])

    def sparse(self, *, heads: Select = None) -> tuple[Tensor, Tensor]:
        """A windowed map without its zeros: weights [B, heads, queries, m] and the keys they belong to, [queries, m] or [B, queries, m].

        A key of -1 is padding; its weight is 0.

        Raises:
            ValueError: if the attention is not windowed: every query then sees every key.
        """
        if self.layout is None:
            raise ValueError("this attention has no windows; use dense()")
        values, positions = _by_query(
            self._weights(None, _indices(heads, self.shape[1], self.query.device), None), self.layout, self.shape[0]
        )
        return values, positions


class SoftmaxMap(ProductMap):
    """softmax(scale q.k + bias) over the keys that the mask leaves."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, bias: Tensor | None, mask: Tensor | None, layout: Layout | None
    ) -> None:
        super().__init__(query, key, value, layout)
        self.scale, self.bias, self.mask = scale, bias, mask

    def logits(self, *, queries: Select = None, heads: Select = None) -> Tensor:
        """What the softmax is taken of, [B, heads, queries, keys]; minus infinity where a key is masked or outside the window."""
        chosen, wanted = _indices(heads, self.shape[1], self.query.device), _indices(queries, self.shape[2], self.query.device)
        if self.layout is None:
            return self._logits(wanted, chosen)
        values, positions = _by_query(self._logits(None, chosen), self.layout, self.shape[0])
        if wanted is not None:
            values, positions = values[:, :, wanted], positions[..., wanted, :]
        return _spread(values, positions, self.shape[3], fill=-math.inf)

    @cached_property
    def lse(self) -> Tensor:
        """The log-sum-exp of each query's logits, in the attention's own layout: [B or B W, h, n]; computed in tiles."""
        with torch.no_grad():
            batch, heads, queries, _ = self.query.shape
            tiles = torch.arange(queries, device=self.query.device).split(rows_per_tile(batch, heads, self.key.shape[2]))
            return torch.cat([self._logits(rows, None).logsumexp(-1) for rows in tiles], dim=-1)

    def _logits(self, rows: Tensor | None, heads: Tensor | None, keys: Tensor | None = None) -> Tensor:
        query, key = select_rows(self.query, rows, heads), select_rows(self.key, keys, heads)
        # In float32: that is what the fused kernels sum in, whatever they are given.
        query, key = (x if x.dtype == torch.float64 else x.float() for x in (query, key))
        with torch.autocast(query.device.type, enabled=False):
            logits = (self.scale * query) @ key.mT
        if self.bias is not None:
            logits = logits + select_part(self.bias, rows, heads, keys)
        if self.mask is not None:
            logits = logits.masked_fill(~select_part(self.mask, rows, heads, keys), -math.inf)
        return logits

    def _weights(self, rows: Tensor | None, heads: Tensor | None, keys: Tensor | None) -> Tensor:
        logits = self._logits(rows, heads, keys)
        # Of whole rows it is at hand; of some columns it needs all the others, once.
        lse = logits.logsumexp(-1, keepdim=True) if keys is None else select_part(self.lse.unsqueeze(-1), rows, heads)
        # A query with no key at all has no weights, and its output is 0.
        return torch.exp(logits - torch.where(lse == -math.inf, 0.0, lse)).to(self.query.dtype)


class LinearMap(ProductMap):
    """A_ij = phi(q_i) . phi(k_j) z_i, which linear attention applies without ever forming it.

    Args:
        query, key: the features phi(q) [B, h, N, f] and phi(k) [B, h, M, f].
        value: [B, h, M, e].
        normaliser: z, [B, h, N, 1] or a number.
        offset: what is added to every weight of a query, [B, h, N, 1]; for attentions that make rows sum to 1 by subtraction.
        layout: for windows folded into the batch, where their tokens lie.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        normaliser: Tensor | float = 1.0,
        offset: Tensor | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(query, key, value, layout)
        self.normaliser, self.offset = normaliser, offset

    def _weights(self, rows: Tensor | None, heads: Tensor | None, keys: Tensor | None) -> Tensor:
        with torch.autocast(self.query.device.type, enabled=False):
            weights = select_rows(self.query, rows, heads) @ select_rows(self.key, keys, heads).mT
        weights = weights * (select_part(self.normaliser, rows, heads) if isinstance(self.normaliser, Tensor) else self.normaliser)
        return weights if self.offset is None else weights + select_part(self.offset, rows, heads)


class GivenMap(AttentionMap):
    """A map that the block computes in any case: a gate, a pooling's weights, a map over channels.

    Args:
        weights: [B, 1 or C, *spatial] for a gate; [B, heads, queries, keys] otherwise.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.shape = tuple(weights.shape)
        self._gradient: Tensor | None = None

    def watch(self) -> None:
        """Keeps the gradient that reaches the weights."""
        if self.weights.requires_grad:
            self.weights.register_hook(self._keep)

    def _keep(self, gradient: Tensor) -> None:
        self._gradient = gradient.detach()

    def dense(self, *, queries: Select = None, heads: Select = None, keys: Select = None) -> Tensor:
        return self._select(self.weights, queries, heads, keys)

    def gradient(self, *, queries: Select = None, heads: Select = None) -> Tensor:
        if self._gradient is None:
            raise RuntimeError(_NO_GRADIENT)
        return self._select(self._gradient, queries, heads, None)

    def _select(self, x: Tensor, queries: Select, heads: Select, keys: Select) -> Tensor:
        x = select_rows(x, _indices(queries, self.shape[2], x.device), _indices(heads, self.shape[1], x.device))
        return x if keys is None else x[..., _indices(keys, self.shape[-1], x.device)]


def rows_per_tile(batch: int, heads: int, keys: int) -> int:
    """How many queries' weights fill about 64 MB."""
    return max(1, TILE_BYTES // max(1, 4 * batch * heads * keys))


def _indices(which: Select, size: int, device: torch.device) -> Tensor | None:
    """None stands for all of them, in order."""
    if which is None:
        return None
    if isinstance(which, slice):
        return torch.arange(size, device=device)[which]
    indices = torch.as_tensor(which, device=device).reshape(-1)
    if ((indices < -size) | (indices >= size)).any():
        raise IndexError(f"{which} is outside 0 to {size - 1}")
    return indices % size


def select_rows(x: Tensor, rows: Tensor | None, heads: Tensor | None) -> Tensor:
    """x: [B, h, N, ...], for some of N and of the heads; None: all of them."""
    x = x if heads is None else x[:, heads]
    return x if rows is None else x[:, :, rows]


def select_part(x: Tensor, rows: Tensor | None, heads: Tensor | None, keys: Tensor | None = None) -> Tensor:
    """As ``select_rows``, of something that is broadcast: an axis of one element stays."""
    x = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape))
    x = select_rows(x, None if x.shape[2] == 1 else rows, None if x.shape[1] == 1 else heads)
    return x if keys is None or x.shape[3] == 1 else x[..., keys]


def _by_query(values: Tensor, layout: Layout, batch: int) -> tuple[Tensor, Tensor]:
    """values: [B W, h, n, m]. Returns them as [B, h, queries, m], and the keys' positions [queries, m] or [B, queries, m]."""
    windows, size = layout.queries.shape
    values = values.unflatten(0, (batch, windows)).transpose(1, 2).flatten(2, 3)
    order = torch.empty(layout.query_count, dtype=torch.long, device=values.device)
    flat = layout.queries.reshape(-1)
    real = flat >= 0
    order[flat[real]] = torch.arange(flat.numel(), device=values.device)[real]
    positions = layout.keys.unsqueeze(-2).expand(*layout.keys.shape[:-1], size, layout.keys.shape[-1]).flatten(-3, -2)
    return values[:, :, order], positions[..., order, :]


def _spread(values: Tensor, positions: Tensor, keys: int, *, fill: float = 0.0) -> Tensor:
    """values: [B, h, Q, m] at keys [Q, m] or [B, Q, m]. Returns [B, h, Q, keys]; padding goes to a column that is cut off."""
    positions = torch.where(positions < 0, keys, positions)
    positions = positions if positions.ndim == 2 else positions.unsqueeze(1)
    whole = values.new_full((*values.shape[:-1], keys + 1), fill)
    return whole.scatter(-1, positions.expand_as(values), values)[..., :keys]

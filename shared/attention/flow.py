"""Flow-Attention: linear attention in which values flow from sources to sinks, and both compete, because flow is conserved.

Wu et al., "Flowformer: linearizing transformers with conservation flows", ICML 2022, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.attend import merge_heads, split_heads
from shared.attention.cost import Cost, linear_cost, product_cost
from shared.attention.linear import full_precision, linear_attend, linear_attend_cost, widen
from shared.attention.maps import LinearMap
from shared.attention.recording import note, recording
from shared.attention.registry import bag, register

__all__ = ["CausalFlowAttention", "FlowAttention", "causal_flow_attend", "flow_attend"]

_EPS = 1e-6


def flow_attend(query: Tensor, key: Tensor, value: Tensor, *, part: str = "") -> Tensor:
    """Flow-Attention of heads, as in the paper's section 3.2.

    Args:
        query: the sinks, [B, h, N, d].
        key: the sources, [B, h, M, d].
        value: [B, h, M, e].
        part: as ``shared.attention.attend``.

    Returns:
        [B, h, N, e].
    """
    with full_precision(query):
        sinks, sources = torch.sigmoid(widen(query)), torch.sigmoid(widen(key))
        ratio = query.shape[2] / key.shape[2]
        incoming = 1 / _flow(sinks, sources.sum(2, keepdim=True))
        outgoing = 1 / _flow(sources, sinks.sum(2, keepdim=True))
        allocation = torch.sigmoid(_flow(sinks, (sources * outgoing).sum(2, keepdim=True)) * ratio)
        conserved = _flow(sources, (sinks * incoming).sum(2, keepdim=True)).clamp(-1, 1)
        competition = conserved.softmax(2) * key.shape[2]
    return linear_attend(sinks, sources * competition, value, normaliser=incoming * allocation, part=part)


def _flow(x: Tensor, total: Tensor) -> Tensor:
    """x: [B, h, n, d]; total: [B, h, 1, d]. Returns their dot products, [B, h, n, 1]."""
    return (x + _EPS) @ (total + _EPS).mT


def causal_flow_attend(query: Tensor, key: Tensor, value: Tensor, *, chunk: int = 64, part: str = "") -> Tensor:
    """Flow-Attention in which a token sees itself and those before it: every sum is a running one, over as many tokens as came so far.

    Args:
        query, key: [B, h, N, d].
        value: [B, h, N, e].
        chunk: tokens handled by one triangular product; memory grows with N (chunk + d e / chunk), where a running sum needs N d e.
        part: as ``shared.attention.attend``.

    Returns:
        [B, h, N, e].
    """
    with full_precision(query):
        sinks, sources = torch.sigmoid(widen(query)), torch.sigmoid(widen(key))
        count = torch.arange(1, query.shape[2] + 1, device=query.device, dtype=sinks.dtype).unsqueeze(-1)
        incoming = count / _running_flow(sinks, sources)
        outgoing = count / _running_flow(sources, sinks)
        allocation = torch.sigmoid(_running_flow(sinks, sources * outgoing) / count)
        strength = (_running_flow(sources, sinks * incoming) / count).clamp(-1, 1).exp()
        sources = sources * (strength / strength.cumsum(2) * count)
        normaliser = incoming / count * allocation
        output = (_causal_product(sinks, sources, widen(value), chunk) * normaliser).to(value.dtype)
    if recording():
        note(_CausalMap(sinks, sources, value, normaliser=normaliser), output, part=part)
    return output


def _running_flow(x: Tensor, other: Tensor) -> Tensor:
    return ((x + _EPS) * (other.cumsum(2) + _EPS)).sum(-1, keepdim=True)


def _causal_product(query: Tensor, key: Tensor, value: Tensor, chunk: int) -> Tensor:
    """The sum over j <= i of (q_i . k_j) v_j: within a chunk by a triangular product, of earlier chunks by the sum of k^T v."""
    count = query.shape[2]
    chunks = -(-count // chunk)
    query, key, value = (F.pad(x, (0, 0, 0, chunks * chunk - count)).unflatten(2, (chunks, chunk)) for x in (query, key, value))
    sums = key.mT @ value
    earlier = sums.cumsum(2) - sums
    return ((query @ key.mT).tril() @ value + query @ earlier).flatten(2, 3)[:, :, :count]


class _CausalMap(LinearMap):
    """A linear map in which no token sees a later one."""

    def _weights(self, rows: Tensor | None, heads: Tensor | None, keys: Tensor | None) -> Tensor:
        places = torch.arange(self.shape[2], device=self.query.device)
        queries, columns = places if rows is None else rows, places if keys is None else keys
        return super()._weights(rows, heads, keys).masked_fill(columns > queries.unsqueeze(-1), 0.0)


def _widths(settings: Any) -> tuple[int, int]:
    inner = settings.channels if settings.inner_channels is None else settings.inner_channels
    return inner, settings.channels if settings.out_channels is None else settings.out_channels


def _projections_cost(settings: Any, tokens: int) -> Cost:
    inner, out = _widths(settings)
    return 3 * linear_cost(settings.channels, inner, tokens) + linear_cost(inner, out, tokens)


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    n, (inner, _) = math.prod(grid), _widths(settings)
    width = inner // settings.heads
    product = linear_attend_cost(n, n, width, width=width, heads=settings.heads, normalised=False)
    return _projections_cost(settings, n) + product + 4 * product_cost(n, inner)


def _causal_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    n, (inner, _), chunk = math.prod(grid), _widths(settings), settings.chunk
    return _projections_cost(settings, n) + 2 * product_cost(-(-n // chunk) * chunk, inner, chunk + inner // settings.heads)


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The general form has a projection for each; the vision form a fused one."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, kind = name.rsplit(".", 1)
        if layer == "qkv":
            renamed |= {f"{each}.{kind}": part for each, part in zip(("query", "key", "value"), value.chunk(3), strict=True)}
        else:
            renamed[f"{'out' if layer == 'proj' else layer.removesuffix('_projection')}.{kind}"] = value
    return renamed


@register("flow", paper="Wu et al., Flowformer, ICML 2022, section 3.2", ranks=(), cost=_cost, inputs=bag, published=_published)
class FlowAttention(nn.Module):
    """Flow-Attention: each query draws a limited flow from keys that compete for passing on their values.

    The vision form of the published code is the same with 1e-6 added in three more places; its weights load too.

    Args:
        channels: width of the tokens.
        heads: number of heads.
        inner_channels: width of queries, keys and values, a multiple of ``heads``; ``channels`` by default.
        out_channels: width of what comes out; ``channels`` by default.

    Raises:
        ValueError: if ``heads`` does not divide the inner width.
    """

    def __init__(self, *, channels: int, heads: int = 8, inner_channels: int | None = None, out_channels: int | None = None) -> None:
        super().__init__()
        inner = channels if inner_channels is None else inner_channels
        _check(inner, heads)
        self.heads = heads
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, inner)
        self.out = nn.Linear(inner, channels if out_channels is None else out_channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; context: [B, M, C], what keys and values are made of, by default x. Returns [B, N, out]."""
        context = x if context is None else context
        query, key, value = self.query(x), self.key(context), self.value(context)
        return self.out(merge_heads(flow_attend(*(split_heads(each, self.heads) for each in (query, key, value)))))


@register(
    "flow_causal",
    paper="Wu et al., Flowformer, ICML 2022, section 3.2",
    ranks=(),
    cost=_causal_cost,
    inputs=bag,
    example={"chunk": 4},
    published=_published,
)
class CausalFlowAttention(nn.Module):
    """Causal Flow-Attention: as ``FlowAttention``, but a token sees only itself and those before it.

    The published code keeps a running sum of k^T v for every token; here one for every chunk.

    Args:
        channels: width of the tokens.
        heads: number of heads.
        inner_channels: width of queries, keys and values, a multiple of ``heads``; ``channels`` by default.
        out_channels: width of what comes out; ``channels`` by default.
        chunk: tokens handled at once; changes time and memory, not the answer.

    Raises:
        ValueError: if ``heads`` does not divide the inner width, or ``chunk`` is not positive.
    """

    def __init__(
        self, *, channels: int, heads: int = 8, inner_channels: int | None = None, out_channels: int | None = None, chunk: int = 64
    ) -> None:
        super().__init__()
        inner = channels if inner_channels is None else inner_channels
        _check(inner, heads)
        if chunk < 1:
            raise ValueError(f"chunk must be positive, not {chunk}")
        self.heads, self.chunk = heads, chunk
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, inner)
        self.out = nn.Linear(inner, channels if out_channels is None else out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, C], in order. Returns [B, N, out]."""
        query, key, value = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        return self.out(merge_heads(causal_flow_attend(query, key, value, chunk=self.chunk)))


def _check(inner: int, heads: int) -> None:
    if heads < 1 or inner % heads:
        raise ValueError(f"heads={heads} must divide the inner width {inner}")

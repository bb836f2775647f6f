"""Queries that read an image: object queries of a detector, regions of a brain, and a pointer from a decoder to objects.

Carion et al., "End-to-end object detection with transformers" (DETR), ECCV 2020, section A.3; Hosseini Adeli et al., "Transformer brain
encoders explain human high-level visual responses", 2025; Fang et al., "OAT: Object-level attention transformer for gaze scanpath
prediction", ECCV 2024.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost, norm_cost, product_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register

__all__ = ["DetrDecoderLayer", "ObjectPointer", "QueryAttention", "RoutingCrossAttention"]

QUERIES = 10
"""How many queries, or decoder steps, the costs are counted for."""


class QueryAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from different tensors.

    Weights start as those of ``torch.nn.MultiheadAttention``: Xavier-uniform over the three input projections together, biases 0.

    Args:
        channels: width of the queries and of the output; a multiple of ``heads``.
        heads: number of heads.
        context_channels: width of keys and values; as ``channels`` by default.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, *, channels: int, heads: int = 8, context_channels: int | None = None) -> None:
        super().__init__()
        check_heads(channels, heads)
        context = channels if context_channels is None else context_channels
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(context, channels)
        self.value = nn.Linear(context, channels)
        self.out = nn.Linear(channels, channels)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query: [B, Q, C]; key, value: [B, N, context]; mask: bool [B, N], True where a key is seen. Returns [B, Q, C]."""
        parts = (split_heads(layer(each), self.heads) for layer, each in ((self.query, query), (self.key, key), (self.value, value)))
        return self.out(merge_heads(attend(*parts, mask=None if mask is None else mask[:, None, None, :])))


def _reading_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    """Queries that meet the context once, their network, and two norms."""
    channels, n = settings.channels, math.prod(grid)
    attention = 2 * linear_cost(channels, channels, QUERIES) + 2 * linear_cost(channels, channels, n) + attention_cost(QUERIES, n, channels)
    inner = settings.inner_channels
    return attention + linear_cost(channels, inner, QUERIES) + linear_cost(inner, channels, QUERIES) + 2 * norm_cost(channels)


def _detr_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels = settings.channels
    themselves = 4 * linear_cost(channels, channels, QUERIES) + attention_cost(QUERIES, QUERIES, channels) + norm_cost(channels)
    return _reading_cost(settings, grid) + themselves


def _routing_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    return _reading_cost(settings, grid) + norm_cost(settings.channels) * (not settings.norm_first)


def _inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    queries, places = (batch, QUERIES, settings.channels), (batch, math.prod(grid), settings.channels)
    return {"x": torch.randn(queries), "context": torch.randn(places), "position": torch.randn(places)}


def _routing_inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return _inputs(settings, batch, grid) | {"target": torch.randn(batch, QUERIES, settings.channels)}


def _detr_inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return _inputs(settings, batch, grid) | {"query_position": torch.randn(batch, QUERIES, settings.channels)}


def _unpacked(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The authors' names to ours; torch's packed input projections cut into three. What is not in ``names`` is dropped."""
    renamed = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first not in names:
            continue
        if rest.startswith("in_proj_"):
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{names[first]}.{part}.{rest.removeprefix('in_proj_')}"] = piece
        else:
            renamed[f"{names[first]}.{rest.replace('out_proj', 'out')}"] = value
    return renamed


def _detr_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"self_attn": "self_attention", "multihead_attn": "attention", "linear1": "hidden", "linear2": "out"}
    return _unpacked(state, names | {"norm1": "self_norm", "norm2": "attention_norm", "norm3": "out_norm"})


_ROUTING_PAPER = "Hosseini Adeli et al., transformer brain encoders, 2025, decoder layer"


def _routing_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"multihead_attn": "attention", "linear1": "hidden", "linear2": "out"}
    return _unpacked(state, names | {"norm1": "target_norm", "norm2": "attention_norm", "norm3": "out_norm"})


@register(
    "detr_decoder",
    paper="Carion et al., DETR, ECCV 2020, section A.3",
    ranks=(),
    cost=_detr_cost,
    inputs=_detr_inputs,
    published=_detr_published,
)
class DetrDecoderLayer(nn.Module):
    """A decoder layer of DETR: object queries look at one another, then at the image, then pass a small network; norms come after.

    Args:
        channels: width of queries and image tokens; a multiple of ``heads``.
        heads: number of heads.
        inner_channels: width of the network's hidden layer.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, *, channels: int, heads: int = 8, inner_channels: int = 2048) -> None:
        super().__init__()
        self.self_attention = QueryAttention(channels=channels, heads=heads)
        self.attention = QueryAttention(channels=channels, heads=heads)
        self.hidden = nn.Linear(channels, inner_channels)
        self.out = nn.Linear(inner_channels, channels)
        self.self_norm, self.attention_norm, self.out_norm = (nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        *,
        query_position: Tensor | None = None,
        position: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: what the queries have found so far, [B, Q, C]; zeros in the first layer.
            context: image tokens [B, N, C].
            query_position: the learned object queries, added to queries and keys but not to values; broadcasts to [B, Q, C].
            position: code of each image token, added to the keys only; broadcasts to [B, N, C].
            mask: bool [B, N], False: padding, which no query sees.

        Returns:
            [B, Q, C].
        """
        marked = _plus(x, query_position)
        x = self.self_norm(x + self.self_attention(marked, marked, x))
        x = self.attention_norm(x + self.attention(_plus(x, query_position), _plus(context, position), context, mask))
        return self.out_norm(x + self.out(F.relu(self.hidden(x))))


@register(
    "routing_cross_pre",
    paper=_ROUTING_PAPER,
    ranks=(),
    cost=_routing_cost,
    inputs=_routing_inputs,
    preset={"norm_first": True},
    published=lambda state: _routing_published({name: value for name, value in state.items() if not name.startswith("norm2.")}),
)
@register(
    "routing_cross",
    paper=_ROUTING_PAPER,
    ranks=(),
    cost=_routing_cost,
    inputs=_routing_inputs,
    preset={"norm_first": False},
    published=_routing_published,
)
class RoutingCrossAttention(nn.Module):
    """Routes features to brain regions: each region's learned query reads the places of the image that it responds to.

    The map that a region is interpreted by is ``record(block)["attention"].mean()``: [B, regions, N]. The published layer also holds a
    self-attention, and in its ``norm_first`` form one more norm, that it never calls; published weights are loaded without them.

    Args:
        channels: width of queries and features; a multiple of ``heads``.
        heads: number of heads.
        inner_channels: width of the network's hidden layer.
        norm_first: norms before attention and network, rather than after.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, *, channels: int, heads: int = 8, inner_channels: int = 2048, norm_first: bool = False) -> None:
        super().__init__()
        self.attention = QueryAttention(channels=channels, heads=heads)
        self.hidden = nn.Linear(channels, inner_channels)
        self.out = nn.Linear(inner_channels, channels)
        for layer in (self.attention.out, self.hidden, self.out):
            nn.init.xavier_uniform_(layer.weight)
        self.target_norm = nn.LayerNorm(channels)
        self.attention_norm = None if norm_first else nn.LayerNorm(channels)
        self.out_norm = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        *,
        position: Tensor | None = None,
        target: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Reads the features once.

        Args:
            x: the regions' queries, [B, Q, C].
            context: features [B, N, C].
            position: code of each place, added to the keys only; broadcasts to [B, N, C].
            target: what an earlier layer has read, [B, Q, C]; zeros by default, whose norm is its bias.
            mask: bool [B, N], False: padding, which no query sees.

        Returns:
            [B, Q, C].
        """
        target = torch.zeros_like(x) if target is None else target
        keys, normed = _plus(context, position), self.target_norm(target)
        if self.attention_norm is None:
            target = target + self.attention(normed + x, keys, context, mask)
            return target + self._network(self.out_norm(target))
        target = self.attention_norm(normed + self.attention(normed + x, keys, context, mask))
        return self.out_norm(target + self._network(target))

    def _network(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(x)))


def _pointer_inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return {"x": torch.randn(batch, QUERIES, settings.channels), "context": torch.randn(batch, math.prod(grid), settings.channels)}


def _pointer_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, heads, n = settings.channels, settings.heads, math.prod(grid)
    projections = linear_cost(channels, heads * channels, QUERIES) + linear_cost(channels, heads * channels, n)
    mix = linear_cost(heads, 1, QUERIES * (n + 1)) if heads > 1 else Cost()
    return projections + product_cost(heads, QUERIES, n, channels) + mix


@register(
    "object_pointer",
    paper="Fang et al., OAT, ECCV 2024, pointer heads",
    ranks=(),
    cost=_pointer_cost,
    inputs=_pointer_inputs,
    published={"decode_fc": "query", "encode_fc": "key"},
)
class ObjectPointer(nn.Module):
    """Points from each decoder step to one of the objects, or to the end: scores for a softmax, which is not taken here.

    The end is a last object whose score is 0 in every head. The published code lets objects that only fill up a batch be pointed at;
    with ``mask`` they have a score of minus infinity.

    Args:
        channels: width of steps and objects.
        heads: number of heads, each as wide as ``channels``; several are mixed by learned weights, and published weights are of one.
        scale: of the products; ``channels ** -0.5`` by default. In the published code the width of the decoder's own heads sets it.

    Raises:
        ValueError: if ``channels`` or ``heads`` is not positive.
    """

    def __init__(self, *, channels: int, heads: int = 1, scale: float | None = None) -> None:
        super().__init__()
        if min(channels, heads) < 1:
            raise ValueError(f"must be positive: channels={channels}, heads={heads}")
        self.heads = heads
        self.scale = channels**-0.5 if scale is None else scale
        self.query = nn.Linear(channels, heads * channels)
        self.key = nn.Linear(channels, heads * channels)
        self.mix = nn.Linear(heads, 1) if heads > 1 else None

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: decoder steps [B, T, C]; context: objects [B, M, C]; mask: bool [B, M], False: no object. Returns scores [B, T, M + 1]."""
        query, key = split_heads(self.query(x), self.heads), split_heads(self.key(context), self.heads)
        scores = F.pad((self.scale * query) @ key.mT, (0, 1))
        scores = scores[:, 0] if self.mix is None else self.mix(scores.movedim(1, -1)).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(~F.pad(mask, (0, 1), value=True).unsqueeze(1), -math.inf)
        if recording():
            note(GivenMap(scores.softmax(-1).unsqueeze(1)))
        return scores


def _plus(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position

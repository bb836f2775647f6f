"""Linear attention with features that imitate the softmax: learned ones (Hedgehog), and exponentials matched in spread (LLN).

Zhang et al., "The Hedgehog & the Porcupine: expressive linear attentions with softmax mimicry", ICLR 2024; Nahshan et al., "Linear
log-normal attention with unbiased concentration", ICLR 2024.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.attend import check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost
from shared.attention.linear import full_precision, linear_attend, linear_attend_cost, widen
from shared.attention.registry import bag, register
from shared.attention.windows import window_attend

__all__ = [
    "HedgehogAttention",
    "HedgehogFeatures",
    "LogNormalAttention",
    "LogNormalDiagonalAttention",
    "log_normal_attend",
    "log_normal_features",
    "matched_deviation",
]

_SMALLEST = 1e-12
_EPS = 1e-8
"""In denominators, as published."""

_SLOPE, _INTERCEPT = 0.148552, -0.35487
"""Variance of a linear log-normal attention's logarithm is slope x 2 sigma^2 + intercept: the paper's fit, section 4."""


class HedgehogFeatures(nn.Module):
    """softmax(x W) and softmax(-x W), side by side: positive and spiky, as exp is (section 4).

    Each head has its own W, that starts as the identity.

    Args:
        heads: number of heads.
        head_channels: width of a head.
        features: columns of W; twice as many features come out.

    Raises:
        ValueError: if one of them is not positive.
    """

    def __init__(self, *, heads: int, head_channels: int, features: int) -> None:
        super().__init__()
        if min(heads, head_channels, features) < 1:
            raise ValueError(f"must be positive: heads={heads}, head_channels={head_channels}, features={features}")
        self.weight = nn.Parameter(torch.eye(head_channels, features).repeat(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, h, N, d]. Returns [B, h, N, 2 f] in float32 (float64 of float64), each half of it with sum 1."""
        with full_precision(x):
            y = widen(x) @ widen(self.weight)
            return torch.cat((y.softmax(-1), (-y).softmax(-1)), dim=-1).clamp(min=_SMALLEST)


def _projections_cost(settings: Any, tokens: int) -> Cost:
    channels = settings.channels
    return linear_cost(channels, 3 * channels, tokens, bias=settings.qkv_bias) + linear_cost(channels, channels, tokens)


def _hedgehog_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    n, heads, width = math.prod(grid), settings.heads, settings.channels // settings.heads
    features = width if settings.features is None else settings.features
    mapping = Cost(heads * width * features, heads * width * features * n)
    return _projections_cost(settings, n) + 2 * mapping + linear_attend_cost(n, n, 2 * features, width=width, heads=heads)


@register(
    "hedgehog",
    paper="Zhang et al., Hedgehog, ICLR 2024, section 4",
    ranks=(),
    cost=_hedgehog_cost,
    inputs=bag,
    published={"q.mlp.layer": "query_features.weight", "k.mlp.layer": "key_features.weight", "proj": "out"},
)
class HedgehogAttention(nn.Module):
    """Hedgehog: linear attention whose learned features imitate the softmax, after training or distillation.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        features: width of the learned map of each head, of which two softmaxes are taken; the head's width by default.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or as ``HedgehogFeatures``.
    """

    def __init__(self, *, channels: int, heads: int = 8, features: int | None = None, qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads(channels, heads)
        width = channels // heads
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.query_features = HedgehogFeatures(heads=heads, head_channels=width, features=width if features is None else features)
        self.key_features = HedgehogFeatures(heads=heads, head_channels=width, features=width if features is None else features)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, C]. Returns the same shape."""
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        return self.out(merge_heads(linear_attend(self.query_features(query), self.key_features(key), value)))


def matched_deviation(query: Tensor, key: Tensor, *, over_batch: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The deviation that makes the logarithm of a linear log-normal attention spread as a softmax attention's (LLN, section 4).

    Args:
        query: [B, h, N, d].
        key: [B, h, M, d].
        over_batch: one number for the whole batch and not for each sample.

    Returns:
        Of the exponents, of the queries, of the keys; each [B, 1, 1, 1], or [1, 1, 1, 1]. No gradient flows through them.
    """
    axes = (0, 1, 2, 3) if over_batch else (1, 2, 3)
    with torch.no_grad(), full_precision(query):
        of_query, of_key = (widen(x).std(axes, keepdim=True).clamp(min=_EPS) for x in (query, key))
        return ((of_query.square() * of_key.square() - _INTERCEPT) / (2 * _SLOPE)).sqrt(), of_query, of_key


def log_normal_features(query: Tensor, key: Tensor, *, over_batch: bool = False) -> tuple[Tensor, Tensor]:
    """exp(a q) and exp(b k), with a and b from ``matched_deviation``, and the largest exponent subtracted. Arguments as there.

    Returns:
        phi(q) [B, h, N, d] and phi(k) [B, h, M, d], in float32 (float64 of float64). The largest of a query is 1, and of a head's keys.
    """
    with full_precision(query):
        target, of_query, of_key = matched_deviation(query, key, over_batch=over_batch)
        query, key = widen(query) * (target / of_query), widen(key) * (target / of_key)
        # Both maxima leave the normalised weights as they are.
        query = query - query.detach().amax(-1, keepdim=True)
        key = key - key.detach().amax((-2, -1), keepdim=True)
        return query.exp(), key.exp()


def log_normal_attend(query: Tensor, key: Tensor, value: Tensor, *, over_batch: bool = False, part: str = "") -> Tensor:
    """Linear attention with ``log_normal_features``; arguments as there.

    Args:
        value: [B, h, M, e].
        part: as ``shared.attention.attend``.

    Returns:
        [B, h, N, e].
    """
    features = log_normal_features(query, key, over_batch=over_batch)
    return linear_attend(*features, value, eps=_EPS, part=part)


def _log_normal_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    n, heads, width = math.prod(grid), settings.heads, settings.channels // settings.heads
    return _projections_cost(settings, n) + linear_attend_cost(n, n, width, width=width, heads=heads)


_PAPER = "Nahshan et al., LLN, ICLR 2024, section 4"


@register("lln", paper=_PAPER, ranks=(), cost=_log_normal_cost, inputs=bag, published={"proj": "out"})
@register(
    "lln_published", paper=_PAPER, ranks=(), cost=_log_normal_cost, inputs=bag, published={"proj": "out"}, preset={"over_batch": True}
)
class LogNormalAttention(nn.Module):
    """Linear log-normal attention (LLN): features exp(a q) and exp(b k), scaled so that weights concentrate as those of a softmax do.

    a and b come from the deviations of queries and keys. The published code takes these over the whole batch, so that one sample changes
    another's answer; here over each sample. They are constants to the gradient, as published.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        qkv_bias: whether queries, keys and values have a bias.
        over_batch: deviations of the whole batch, as published.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(self, *, channels: int, heads: int = 8, qkv_bias: bool = True, over_batch: bool = False) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.over_batch = heads, over_batch
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, C]. Returns the same shape."""
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        return self.out(merge_heads(log_normal_attend(query, key, value, over_batch=self.over_batch)))


def _diagonal_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    n, width = math.prod(grid), settings.channels // settings.heads
    side = width if settings.block is None else settings.block
    return _log_normal_cost(settings, grid) + attention_cost(-(-n // side) * side, side, settings.channels)


@register("lln_diagonal", paper=_PAPER, ranks=(), cost=_diagonal_cost, inputs=bag, published={"proj": "out"})
@register(
    "lln_diagonal_published",
    paper=_PAPER,
    ranks=(),
    cost=_diagonal_cost,
    inputs=bag,
    published={"proj": "out"},
    preset={"over_batch": True},
)
class LogNormalDiagonalAttention(nn.Module):
    """LLN+Diag: the mean of linear log-normal attention and of softmax attention within blocks of neighbouring tokens.

    The published code takes deviations over the whole batch: see ``LogNormalAttention``.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        block: tokens in a block; as many as a head has channels by default. The last block may be shorter.
        qkv_bias: whether queries, keys and values have a bias.
        over_batch: deviations of the whole batch, as published.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, or ``block`` is not positive.
    """

    def __init__(self, *, channels: int, heads: int = 8, block: int | None = None, qkv_bias: bool = True, over_batch: bool = False) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.block = channels // heads if block is None else block
        if self.block < 1:
            raise ValueError(f"block must be positive, not {block}")
        self.heads, self.over_batch = heads, over_batch
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, C]. Returns the same shape."""
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        near = window_attend(query, key, value, window=(self.block,), part="diagonal")
        far = log_normal_attend(query, key, value, over_batch=self.over_batch, part="linear")
        return self.out(merge_heads(0.5 * (near + far)))

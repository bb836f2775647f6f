"""Pooling of bags: one vector from any number of instances, weighted by attention, for multiple-instance learning.

Ilse et al., "Attention-based deep multiple instance learning", ICML 2018, equations 7 to 9; Zhang et al., "Attention-challenging multiple
instance learning for whole slide image classification" (ACMIL), ECCV 2024, sections 3.2 and 3.3.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.attention.cost import Cost, linear_cost, product_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import bag, register

__all__ = ["BagPooling", "GatedBagPooling", "MultiBranchPooling", "Pooled", "drop_top_instances", "pool_bag"]


class Pooled(NamedTuple):
    """A pooled bag, and what it was pooled with."""

    features: Tensor
    """[B, K, C]: one vector for each branch."""
    weights: Tensor
    """[B, K, N], summing to 1 over the instances, in float32; 0 where an instance is masked. Of a wholly masked bag, all 0."""


def _cost(settings: Any, grid: tuple[int, ...], *, hidden: int) -> Cost:
    channels, inner, branches, n = settings.channels, settings.inner_channels, settings.branches, math.prod(grid)
    return hidden * linear_cost(channels, inner, n) + linear_cost(inner, branches, n) + product_cost(branches, n, channels)


class _Pooling(nn.Module):
    """What all poolings do with their scores."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; mask: bool [B, N], False where a short bag was filled up. Returns [B, branches, C]."""
        pooled = self.pool(x, mask)
        if recording():
            note(GivenMap(pooled.weights))
        return pooled.features

    def pool(self, x: Tensor, mask: Tensor | None = None) -> Pooled:
        """As ``forward``, with the weights."""
        return pool_bag(x, self.scores(x), mask)

    def scores(self, x: Tensor) -> Tensor:
        """What the softmax is taken of: x [B, N, C] to [B, branches, N]."""
        raise NotImplementedError


@register(
    "abmil",
    paper="Ilse et al., attention-based MIL, ICML 2018, eq. 8",
    ranks=(),
    cost=lambda settings, grid: _cost(settings, grid, hidden=1),
    inputs=bag,
    published={"attention.0": "hidden", "attention.2": "score"},
)
class BagPooling(_Pooling):
    """The instances' average, weighted by a softmax of scores from a small network with one tanh layer.

    Args:
        channels: width of the instances.
        inner_channels: width of the hidden layer.
        branches: how many averages are taken, each with scores of its own.

    Raises:
        ValueError: if one of them is not positive.
    """

    def __init__(self, *, channels: int, inner_channels: int = 128, branches: int = 1) -> None:
        super().__init__()
        _check(channels, inner_channels, branches)
        self.hidden = nn.Linear(channels, inner_channels)
        self.score = nn.Linear(inner_channels, branches)

    def scores(self, x: Tensor) -> Tensor:
        """What the softmax is taken of: x [B, N, C] to [B, branches, N]."""
        return self.score(torch.tanh(self.hidden(x))).mT


@register(
    "gated_mil",
    paper="Ilse et al., attention-based MIL, ICML 2018, eq. 9",
    ranks=(),
    cost=lambda settings, grid: _cost(settings, grid, hidden=2),
    inputs=bag,
    published={
        "V.0": "hidden",
        "U.0": "gate",
        "w": "score",
        "attention_V.0": "hidden",
        "attention_U.0": "gate",
        "attention_weights": "score",
        "attention_a.0": "hidden",
        "attention_b.0": "gate",
        "attention_c": "score",
    },
)
class GatedBagPooling(_Pooling):
    """The instances' average, weighted by a softmax of scores from a tanh layer that a sigmoid layer gates.

    Args:
        channels, inner_channels, branches: as ``BagPooling``.

    Raises:
        ValueError: as ``BagPooling``.
    """

    def __init__(self, *, channels: int, inner_channels: int = 128, branches: int = 1) -> None:
        super().__init__()
        _check(channels, inner_channels, branches)
        self.hidden = nn.Linear(channels, inner_channels)
        self.gate = nn.Linear(channels, inner_channels)
        self.score = nn.Linear(inner_channels, branches)

    def scores(self, x: Tensor) -> Tensor:
        """What the softmax is taken of: x [B, N, C] to [B, branches, N]."""
        return self.score(torch.tanh(self.hidden(x)) * torch.sigmoid(self.gate(x))).mT


@register(
    "mba",
    paper="Zhang et al., ACMIL, ECCV 2024, sections 3.2-3.3",
    ranks=(),
    cost=lambda settings, grid: _cost(settings, grid, hidden=2),
    inputs=bag,
    published={"attention_V.0": "scorer.hidden", "attention_U.0": "scorer.gate", "attention_weights": "scorer.score"},
)
class MultiBranchPooling(_Pooling):
    """Several gated averages of a bag; in training, each branch goes without some of the instances that it likes best.

    The attention of the bag as a whole is the mean of the branches': its feature is ``features.mean(1)``.

    Args:
        channels, inner_channels, branches: as ``BagPooling``.
        top_instances: of how many of the highest scores of each branch some are dropped in training; 0 drops none.
        drop: which part of these, from 0 to 1; rounded down to whole instances.

    Raises:
        ValueError: if ``drop`` is not between 0 and 1, ``top_instances`` is negative, or as ``BagPooling``.
    """

    def __init__(self, *, channels: int, inner_channels: int = 128, branches: int = 5, top_instances: int = 10, drop: float = 0.6) -> None:
        super().__init__()
        if top_instances < 0 or not 0 <= drop <= 1:
            raise ValueError(f"top_instances={top_instances} must not be negative, and drop={drop} must be between 0 and 1")
        self.scorer = GatedBagPooling(channels=channels, inner_channels=inner_channels, branches=branches)
        self.top_instances = top_instances
        self.drop = drop

    def pool(self, x: Tensor, mask: Tensor | None = None) -> Pooled:
        """As ``forward``, with the weights: those after dropping, which the published diversity loss compares."""
        scores = self.scorer.scores(x)
        if self.training and self.top_instances and self.drop:
            noise = torch.rand(*scores.shape[:2], min(self.top_instances, scores.shape[2]), device=scores.device)
            scores = drop_top_instances(scores, noise, drop=self.drop, mask=mask)
        return pool_bag(x, scores, mask)

    def scores(self, x: Tensor) -> Tensor:
        """The scores before any is dropped: x [B, N, C] to [B, branches, N]."""
        return self.scorer.scores(x)


def pool_bag(x: Tensor, scores: Tensor, mask: Tensor | None = None) -> Pooled:
    """Averages of a bag's instances, weighted by the softmax of their scores; in float32 or better, autocast or not.

    Args:
        x: [B, N, C]. What is masked must be finite.
        scores: [B, K, N].
        mask: bool [B, N], False for instances that are not there. A bag without any gives zeros.
    """
    with torch.autocast(x.device.type, enabled=False):
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if mask is None:
            weights = torch.softmax(scores, dim=-1)
        else:
            seen = mask.unsqueeze(1)
            # A bag without instances is averaged like any other, and then weighs nothing: no NaN arises, and none in the gradient.
            hidden = ~seen & seen.any(-1, keepdim=True)
            weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1) * seen
        return Pooled(weights.to(x.dtype) @ x, weights)


def drop_top_instances(scores: Tensor, noise: Tensor, *, drop: float, mask: Tensor | None = None) -> Tensor:
    """Stochastic top-K instance masking (ACMIL, section 3.3): random ones of each branch's highest scores become the lowest number.

    If that takes all the instances of a bag, their weights become equal, as published.

    Args:
        scores: [B, K, N].
        noise: uniform numbers [B, K, T], one for each of the T highest scores, from the highest on; those with the lowest are dropped.
        drop: which part of the T, or of the instances if there are fewer; rounded down.
        mask: bool [B, N], False for instances that are not there, and so not among the highest.

    Returns:
        [B, K, N].
    """
    top = noise.shape[-1]
    counts = torch.tensor([int(count * drop) for count in range(top + 1)], device=scores.device)
    if mask is None:
        ranked, dropped = scores, counts[top]
    else:
        ranked = scores.masked_fill(~mask.unsqueeze(1), -math.inf)
        real = mask.sum(-1).clamp(max=top)
        noise = noise.masked_fill(torch.arange(top, device=scores.device) >= real[:, None, None], math.inf)
        dropped = counts[real][:, None, None]
    highest = ranked.topk(top, dim=-1).indices
    chosen = noise.argsort(-1).argsort(-1) < dropped
    return scores.masked_fill(torch.zeros_like(scores, dtype=torch.bool).scatter(-1, highest, chosen), torch.finfo(scores.dtype).min)


def _check(channels: int, inner_channels: int, branches: int) -> None:
    if min(channels, inner_channels, branches) < 1:
        raise ValueError(f"must be positive: channels={channels}, inner_channels={inner_channels}, branches={branches}")

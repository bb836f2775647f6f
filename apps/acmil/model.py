"""ACMIL: several attention branches read a bag of tile features, and in training go without some of the tiles that they like best.

Zhang et al., "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification", ECCV 2024. The networks that people
compare it with are in ``baselines.py``, ``clam.py``, ``transmil.py`` and ``dtfd.py``, and answer alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.acmil.losses import branch_diversity, branch_loss, slide_loss
from shared.attention import MultiBranchPooling
from shared.attention.bags import Pooled, drop_top_instances, pool_bag

__all__ = ["ACMIL", "Answer", "HeadPooling", "MultiHeadACMIL", "QueryAttention", "Reduction", "check_bag", "head_features"]

HEADS = 8


class Answer(NamedTuple):
    """What a network says of one bag of N instances (tiles)."""

    logits: Tensor
    """[C]: of the slide; their softmax is the prediction."""
    branch_logits: Tensor
    """[J, C]: of each branch, class or pseudo-bag alone; of networks that have none the slide's again."""
    attention: Tensor
    """[K, N], float32, not negative: what each branch looks at; each row adds up to 1."""


class Reduction(nn.Module):
    """Tile features to the width that the attention works in: a linear layer without bias, ReLU, and residual blocks if asked for.

    Args:
        features: width of the encoder's features.
        channels: width of the output.
        blocks: residual blocks; the published default is none.
    """

    def __init__(self, *, features: int, channels: int, blocks: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(features, channels, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, channels, bias=False), nn.ReLU(), nn.Linear(channels, channels, bias=False), nn.ReLU())
            for _ in range(blocks)
        )

    def forward(self, bag: Tensor) -> Tensor:
        """bag: [N, features]. Returns [N, channels]."""
        x = F.relu(self.linear(bag))
        for block in self.blocks:
            x = x + block(x)
        return x


class ACMIL(nn.Module):
    """ACMIL with gated attention (ACMIL-GA): the slide is read with the mean of the branches' attention (paper, section 3).

    Args:
        features: width of the tile features.
        classes: number of slide classes.
        channels: width that they are reduced to.
        attention_channels: hidden width of the attention.
        branches: attention branches (paper: 5).
        top_instances, drop: in training each branch goes without this share of its highest-scoring instances (paper: 0.6 of 10).
        blocks: residual blocks of the reduction.
    """

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        channels: int = 128,
        attention_channels: int = 128,
        branches: int = 5,
        top_instances: int = 10,
        drop: float = 0.6,
        blocks: int = 0,
    ) -> None:
        super().__init__()
        self.reduction = Reduction(features=features, channels=channels, blocks=blocks)
        self.pooling = MultiBranchPooling(
            channels=channels, inner_channels=attention_channels, branches=branches, top_instances=top_instances, drop=drop
        )
        self.branch_classifiers = nn.ModuleList(nn.Linear(channels, classes) for _ in range(branches))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features], one slide; there is no batch axis.

        Raises:
            ValueError: if it is not two-dimensional, or has no instance.
        """
        pooled = self.pooling.pool(self.reduction(check_bag(bag))[None])
        branches = pooled.features[0]
        branch_logits = torch.stack([classify(x) for classify, x in zip(self.branch_classifiers, branches, strict=True)])
        # The mean of the averages is the average with the mean attention: the instances are read once.
        return Answer(self.classifier(branches.mean(0)), branch_logits, pooled.weights[0])

    def losses(self, bag: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The terms whose sum is minimised (paper, section 3.4). label: int64, a lone number."""
        answer = self(bag)
        return {
            "slide": slide_loss(answer.logits, label),
            "branches": branch_loss(answer.branch_logits, label),
            "diversity": branch_diversity(answer.attention[None]),
        }

    def slide_feature(self, bag: Tensor) -> Tensor:
        """[channels]: what the slide classifier sees of a bag [N, features]."""
        return self.pooling.pool(self.reduction(check_bag(bag))[None]).features[0].mean(0)


class MultiHeadACMIL(nn.Module):
    """ACMIL with multi-head attention (ACMIL-MHA): each branch asks with a learned query, in eight heads.

    Scores and sums are taken in an order that never projects the instances to keys or values, which is exact because each branch has a
    single query: the time and memory are those of the gated variant, where the published order costs 2 T + 1 projections of every instance.

    Args:
        features, classes, channels, branches, top_instances, drop, blocks: as ``ACMIL``; instances are dropped by each head on its own.
        dropout: after the output projection of each branch.
    """

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        channels: int = 128,
        branches: int = 5,
        top_instances: int = 10,
        drop: float = 0.6,
        dropout: float = 0.1,
        blocks: int = 0,
    ) -> None:
        super().__init__()
        self.reduction = Reduction(features=features, channels=channels, blocks=blocks)
        self.queries = nn.Parameter(torch.randn(branches, channels) * 1e-6)
        self.branches = nn.ModuleList(QueryAttention(channels=channels, dropout=dropout) for _ in range(branches))
        self.branch_classifiers = nn.ModuleList(nn.Linear(channels, classes) for _ in range(branches))
        self.bag_pooling = HeadPooling(channels=channels, dropout=dropout)
        self.classifier = nn.Linear(channels, classes)
        self.top_instances, self.drop = top_instances, drop

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features], one slide. Raises as ``ACMIL``; the attention is the mean over the heads."""
        return self._read(bag)[0]

    def losses(self, bag: Tensor, label: Tensor) -> dict[str, Tensor]:
        """As ``ACMIL.losses``; the diversity is taken head by head."""
        answer, weights = self._read(bag)
        return {
            "slide": slide_loss(answer.logits, label),
            "branches": branch_loss(answer.branch_logits, label),
            "diversity": branch_diversity(weights),
        }

    def _read(self, bag: Tensor) -> tuple[Answer, Tensor]:
        """The answer, and the weights of each head [heads, branches, N]."""
        x = self.reduction(check_bag(bag))
        logits, weights = [], []
        for query, branch, classify in zip(self.queries, self.branches, self.branch_classifiers, strict=True):
            read = head_features(x, self._challenged(branch.scores(x, query)))
            logits.append(classify(branch.pooling(read.features[0])))
            weights.append(read.weights[0])
        stacked = torch.stack(weights, dim=1)
        slide = self.bag_pooling(stacked.mean(1).to(x.dtype) @ x)
        return Answer(self.classifier(slide), torch.stack(logits), stacked.mean(0)), stacked

    def _challenged(self, scores: Tensor) -> Tensor:
        """scores: [heads, N], in training without some of the highest of each head."""
        if not (self.training and self.top_instances and self.drop):
            return scores
        noise = torch.rand(1, len(scores), min(self.top_instances, scores.shape[1]), device=scores.device)
        return drop_top_instances(scores[None], noise, drop=self.drop)[0]


class HeadPooling(nn.Module):
    """The second half of multi-head attention with a single query: values and output projection, applied after the weighted sums.

    Args:
        channels: width; a multiple of the eight heads.
        dropout: after the output projection.
    """

    def __init__(self, *, channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        if channels % HEADS:
            raise ValueError(f"channels={channels} must be a multiple of {HEADS}, the number of heads")
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sums: Tensor) -> Tensor:
        """sums: [heads, channels], the instances summed with each head's weights, which add up to 1. Returns [channels]."""
        weight = self.value.weight.view(HEADS, -1, sums.shape[-1])
        heads = torch.einsum("hdc,hc->hd", weight, sums).flatten() + self.value.bias
        return self.norm(self.dropout(self.out(heads)))


class QueryAttention(nn.Module):
    """Multi-head attention of one query to a bag."""

    def __init__(self, *, channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.pooling = HeadPooling(channels=channels, dropout=dropout)

    def scores(self, x: Tensor, query: Tensor) -> Tensor:
        """x: [N, channels]; query: [channels]. Returns [heads, N], before the softmax."""
        heads = self.query(query).view(HEADS, -1)
        keys = torch.einsum("hd,hdc->hc", heads, self.key.weight.view(HEADS, -1, x.shape[-1]))
        constant = (heads * self.key.bias.view(HEADS, -1)).sum(1, keepdim=True)
        return (keys @ x.mT + constant) / math.sqrt(heads.shape[1])


def head_features(x: Tensor, scores: Tensor) -> Pooled:
    """x: [N, C]; scores: [heads, N]. As ``pool_bag``: sums [1, heads, C] and weights [1, heads, N]."""
    return pool_bag(x[None], scores[None])


def check_bag(bag: Tensor) -> Tensor:
    """``bag`` itself.

    Raises:
        ValueError: if it is not [N, features] with at least one instance.
    """
    if bag.ndim != 2 or bag.shape[0] == 0:
        raise ValueError(f"a bag is [instances, features] with at least one instance, not {tuple(bag.shape)}; give one slide at a time")
    return bag

"""What ACMIL minimises: the slide's and the branches' cross-entropy, and how alike the branches' attention is."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["branch_diversity", "branch_loss", "negative_entropy", "slide_loss"]


def slide_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of one slide. logits: [C]; label: int64, a lone number."""
    return F.cross_entropy(logits[None].float(), label.reshape(1))


def branch_loss(branch_logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of the branches, each against the slide's label; 0 for a single branch. branch_logits: [K, C]."""
    if len(branch_logits) == 1:
        return branch_logits.new_zeros(())
    return F.cross_entropy(branch_logits.float(), label.reshape(1).expand(len(branch_logits)))


def branch_diversity(weights: Tensor) -> Tensor:
    """Mean cosine similarity of the branches' attention, over pairs of branches and over heads: 1 if all look alike; 0 for a single branch.

    Args:
        weights: [heads, K, N], not negative, after the softmax.
    """
    branches = weights.shape[1]
    if branches == 1:
        return weights.new_zeros(())
    pairs = list(combinations(range(branches), 2))
    first, second = (weights[:, [pair[side] for pair in pairs]] for side in (0, 1))
    return F.cosine_similarity(first, second, dim=-1).mean()


def negative_entropy(weights: Tensor) -> Tensor:
    """The sum of p log p over all weights [heads, K, N], divided by K; what the published evaluation logs of the attention."""
    return torch.special.xlogy(weights, weights).sum() / weights.shape[1]

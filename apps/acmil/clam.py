"""CLAM: attention pooling with a second task, to tell the instances that it looks at most from those that it looks at least.

Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature Biomedical Engineering 2021.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.acmil.losses import slide_loss
from apps.acmil.model import Answer, check_bag
from shared.attention import GatedBagPooling

__all__ = ["Clam", "softmax_one"]


def softmax_one(scores: Tensor) -> Tensor:
    """exp(a) / (1 + sum exp(a)) along the last axis: weights that may all be near 0. Does not overflow, unlike the published form."""
    highest = scores.amax(-1, keepdim=True).clamp(min=0)
    weights = torch.exp(scores - highest)
    return weights / (torch.exp(-highest) + weights.sum(-1, keepdim=True))


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1)


class Clam(nn.Module):
    """CLAM with a single attention branch (SB) or one for each class (MB).

    Args:
        features, classes, channels, attention_channels: as ``ACMIL``; the published sizes are 1024, 2, 512 and 256.
        multi_branch: CLAM-MB; each class then has a linear layer of its own over its own average.
        samples: how many of the highest and of the lowest instances the second task takes; fewer where the bag is smaller.
        subtyping: the classes exclude each other, so that what looks most like another class is a negative of it.
        instance_weight: share of the second task in the loss (paper: 0.3). The ACMIL repository trains its CLAM with 0.
        dropout: after the reduction and within the attention.
        normalise: scores [K, N] to weights. The ACMIL repository's CLAM-MB has ``softmax_one``.
    """

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        channels: int = 512,
        attention_channels: int = 256,
        multi_branch: bool = False,
        samples: int = 8,
        subtyping: bool = False,
        instance_weight: float = 0.3,
        dropout: float = 0.25,
        normalise: Callable[[Tensor], Tensor] = _softmax,
    ) -> None:
        super().__init__()
        branches = classes if multi_branch else 1
        self.reduction = nn.Linear(features, channels)
        self.pooling = GatedBagPooling(channels=channels, inner_channels=attention_channels, branches=branches)
        self.classifiers = nn.ModuleList(nn.Linear(channels, classes // branches) for _ in range(branches))
        self.instance_classifiers = nn.ModuleList(nn.Linear(channels, 2) for _ in range(classes))
        self.dropout = nn.Dropout(dropout)
        self.samples, self.subtyping, self.instance_weight, self.normalise = samples, subtyping, instance_weight, normalise

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]; the branches are those of the attention."""
        return self._answer(*self.scores(bag))

    def losses(self, bag: Tensor, label: Tensor) -> dict[str, Tensor]:
        """As ``ACMIL.losses``."""
        x, scores = self.scores(bag)
        slide = slide_loss(self._answer(x, scores).logits, label)
        return {"slide": (1 - self.instance_weight) * slide, "instance": self.instance_weight * self.instance_loss(x, scores, label)}

    def scores(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced features [N, channels] and scores before normalising [K, N]."""
        x = self.dropout(F.relu(self.reduction(check_bag(bag))))
        hidden, gate = torch.tanh(self.pooling.hidden(x)), torch.sigmoid(self.pooling.gate(x))
        return x, self.pooling.score(self.dropout(hidden) * self.dropout(gate)).mT

    def slide_features(self, x: Tensor, scores: Tensor) -> Tensor:
        """x: [N, channels]; scores: [K, N]. Returns [K, channels]."""
        return self.normalise(scores.float()).to(x.dtype) @ x

    def instance_loss(self, x: Tensor, scores: Tensor, label: Tensor) -> Tensor:
        """The second task's cross-entropy: summed over the classes, and averaged where they exclude each other (as released)."""
        asked = self.instance_answers(x, scores, label)
        losses = [F.cross_entropy(logits.float(), targets) for logits, targets in asked]
        return torch.stack(losses).sum() / (len(self.instance_classifiers) if self.subtyping else 1)

    def instance_answers(self, x: Tensor, scores: Tensor, label: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logits [M, 2] and targets [M] of each class that is asked: 1 for the slide's class at its highest instances, else 0."""
        count = min(self.samples, len(x))
        answers = []
        for number, classify in enumerate(self.instance_classifiers):
            own = scores[number if len(scores) > 1 else 0]
            highest = own.topk(count).indices
            if number == int(label):
                chosen = torch.cat([highest, (-own).topk(count).indices])
                targets = torch.arange(2 * count, device=x.device).lt(count).long()
            elif self.subtyping:
                chosen, targets = highest, torch.zeros(count, dtype=torch.long, device=x.device)
            else:
                continue
            answers.append((classify(x[chosen]), targets))
        return answers

    def _answer(self, x: Tensor, scores: Tensor) -> Answer:
        features = self.slide_features(x, scores)
        logits = torch.cat([classify(one) for classify, one in zip(self.classifiers, features, strict=True)])
        return Answer(logits, logits[None], torch.softmax(scores.float(), dim=-1))

"""DTFD-MIL: a slide is dealt out into pseudo-bags; the first tier reads each of them, the second what they distil.

Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for Histopathology Whole Slide Image Classification",
CVPR 2022.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from apps.acmil.losses import slide_loss
from apps.acmil.model import Answer, Reduction, check_bag
from shared.attention import GatedBagPooling

__all__ = ["DTFD", "Distillation", "Tiers", "class_activation"]

Distillation = Literal["afs", "maxs", "maxmins"]


class Tiers(NamedTuple):
    """What both tiers say."""

    group_logits: Tensor
    """[G, C]: of each pseudo-bag."""
    distilled: Tensor
    """[M, channels]: what the second tier reads."""
    logits: Tensor
    """[C]: of the slide."""
    attention: Tensor
    """[N]: the second tier's weights, brought back to the instances."""


class DTFD(nn.Module):
    """Double-tier feature distillation.

    In training the pseudo-bags are drawn at random. A prediction deals the instances out in turn, so that it is always the same; the
    published program draws at random there too.

    Args:
        features, classes, channels, attention_channels: as ``ACMIL``.
        groups: pseudo-bags (published: 4); fewer where there are fewer instances.
        distillation: what a pseudo-bag hands on: its average (afs), its highest instances (maxs), or highest and lowest (maxmins), by
            the class activation of the last class.
        distilled: instances that are handed on from all pseudo-bags together, on each end.
    """

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        channels: int = 512,
        attention_channels: int = 128,
        groups: int = 4,
        distillation: Distillation = "afs",
        distilled: int = 4,
    ) -> None:
        super().__init__()
        self.reduction = Reduction(features=features, channels=channels)
        self.pooling = GatedBagPooling(channels=channels, inner_channels=attention_channels)
        self.group_classifier = nn.Linear(channels, classes)
        self.slide_pooling = GatedBagPooling(channels=channels, inner_channels=attention_channels)
        self.classifier = nn.Linear(channels, classes)
        self.groups, self.distillation, self.distilled = groups, distillation, distilled

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]; the branches are the pseudo-bags' logits, with one row of attention."""
        tiers = self.tiers(bag, torch.arange(check_bag(bag).shape[0], device=bag.device))
        return Answer(tiers.logits, tiers.group_logits, tiers.attention[None])

    def losses(self, bag: Tensor, label: Tensor) -> dict[str, Tensor]:
        """As ``ACMIL.losses``. The second tier's does not reach the first: its gradients there are cleared in the published program."""
        tiers = self.tiers(bag, torch.randperm(check_bag(bag).shape[0], device=bag.device))
        groups = torch.stack([slide_loss(logits, label) for logits in tiers.group_logits]).mean()
        return {"groups": groups, "slide": slide_loss(tiers.logits, label)}

    def tiers(self, bag: Tensor, order: Tensor) -> Tiers:
        """bag: [N, features]; order: [N], a permutation; instance order[i] goes to pseudo-bag i modulo their number."""
        groups = min(self.groups, bag.shape[0])
        return self.read([order[start::groups] for start in range(groups)], bag)

    def read(self, groups: list[Tensor], bag: Tensor) -> Tiers:
        """As ``tiers``, with the instances of each pseudo-bag given."""
        x = self.reduction(bag)
        logits, features, shares = [], [], []
        for chosen in groups:
            pooled = self.pooling.pool(x[chosen][None])
            weights = pooled.weights[0, 0]
            logits.append(self.group_classifier(pooled.features[0, 0]))
            if self.distillation == "afs":
                features.append(pooled.features[0])
                shares.append((chosen[None], weights[None]))
            else:
                picked = self._picked(x[chosen] * weights[:, None])
                features.append(x[chosen][picked])
                shares.append((chosen[picked][:, None], torch.ones_like(picked, dtype=weights.dtype)[:, None]))
        distilled = torch.cat(features).detach()
        second = self.slide_pooling.pool(distilled[None])
        attention = torch.zeros(bag.shape[0], device=bag.device)
        taken = 0
        for (instances, share), one in zip(shares, features, strict=True):
            weights = second.weights[0, 0, taken : taken + len(one), None] * share
            attention = attention.index_add(0, instances.flatten(), weights.flatten())
            taken += len(one)
        return Tiers(torch.stack(logits), distilled, self.classifier(second.features[0, 0]), attention)

    def _picked(self, weighted: Tensor) -> Tensor:
        """weighted: [n, channels], features times attention. Returns which instances are handed on, the highest first."""
        activation = class_activation(weighted, self.group_classifier.weight)
        order = torch.softmax(activation.float(), dim=0)[-1].argsort(descending=True)
        count = min(max(1, self.distilled // self.groups), len(order))
        return order[:count] if self.distillation == "maxs" else torch.cat([order[:count], order[-count:]])


def class_activation(features: Tensor, weight: Tensor) -> Tensor:
    """features: [N, channels]; weight: [C, channels] of a classifier, whose bias is left out. Returns [C, N]."""
    return weight @ features.mT

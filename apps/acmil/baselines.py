"""The small networks that ACMIL is compared with: mean and max pooling, ABMIL, one multi-head query, DSMIL and IBMIL."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from apps.acmil.losses import slide_loss
from apps.acmil.model import Answer, QueryAttention, Reduction, check_bag, head_features
from shared.attention import GatedBagPooling

__all__ = ["ABMIL", "DSMIL", "IBMIL", "MaxMIL", "MeanMIL", "MultiHeadMIL"]


class _SlideLoss(nn.Module):
    """Of networks that minimise the slide's cross-entropy and nothing else."""

    def losses(self, bag: Tensor, label: Tensor) -> dict[str, Tensor]:
        """As ``ACMIL.losses``."""
        return {"slide": slide_loss(self(bag).logits, label)}


class MeanMIL(_SlideLoss):
    """The reduced features averaged, then classified. Arguments as ``ACMIL``."""

    def __init__(self, *, features: int, classes: int, channels: int = 128) -> None:
        super().__init__()
        self.reduction = Reduction(features=features, channels=channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]; the attention is the same for every instance."""
        logits = self.classifier(self.reduction(check_bag(bag)).mean(0))
        return Answer(logits, logits[None], torch.ones(1, bag.shape[0], device=bag.device) / bag.shape[0])


class MaxMIL(_SlideLoss):
    """The highest value of each reduced feature, then classified. Arguments as ``ACMIL``."""

    def __init__(self, *, features: int, classes: int, channels: int = 128) -> None:
        super().__init__()
        self.reduction = Reduction(features=features, channels=channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]; the attention of an instance is the share of the features in which it is the highest."""
        highest = self.reduction(check_bag(bag)).max(0)
        logits = self.classifier(highest.values)
        share = torch.full((len(highest.indices),), 1 / len(highest.indices), device=bag.device)
        attention = torch.zeros(bag.shape[0], device=bag.device).index_add(0, highest.indices, share)
        return Answer(logits, logits[None], attention[None])


class ABMIL(_SlideLoss):
    """Gated attention with one branch (Ilse et al., "Attention-based deep multiple instance learning", ICML 2018, eq. 9).

    Arguments as ``ACMIL``. It is not ACMIL with one branch, which would have a second classifier.
    """

    def __init__(self, *, features: int, classes: int, channels: int = 128, attention_channels: int = 128, blocks: int = 0) -> None:
        super().__init__()
        self.reduction = Reduction(features=features, channels=channels, blocks=blocks)
        self.pooling = GatedBagPooling(channels=channels, inner_channels=attention_channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]."""
        pooled = self.pooling.pool(self.reduction(check_bag(bag))[None])
        logits = self.classifier(pooled.features[0, 0])
        return Answer(logits, logits[None], pooled.weights[0])

    def slide_feature(self, bag: Tensor) -> Tensor:
        """[channels]: what the classifier sees of a bag [N, features]."""
        return self.pooling.pool(self.reduction(check_bag(bag))[None]).features[0, 0]


class MultiHeadMIL(_SlideLoss):
    """One learned query in eight heads: what ACMIL-MHA is compared with. Arguments as ``MultiHeadACMIL``."""

    def __init__(self, *, features: int, classes: int, channels: int = 128, dropout: float = 0.1, blocks: int = 0) -> None:
        super().__init__()
        self.reduction = Reduction(features=features, channels=channels, blocks=blocks)
        self.query = nn.Parameter(torch.randn(channels) * 1e-6)
        self.attention = QueryAttention(channels=channels, dropout=dropout)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]; the attention is the mean over the heads."""
        x = self.reduction(check_bag(bag))
        read = head_features(x, self.attention.scores(x, self.query))
        logits = self.classifier(self.attention.pooling(read.features[0]))
        return Answer(logits, logits[None], read.weights[0].mean(0, keepdim=True))


class DSMIL(nn.Module):
    """Dual-stream MIL (Li, Li and Eliceiri, CVPR 2021), as the ACMIL repository runs it.

    One stream classifies every instance and takes each class's highest; the other weighs the instances by how alike they are to those.

    Args:
        features, classes: as ``ACMIL``.
        channels: width in which instances are compared.
    """

    def __init__(self, *, features: int, classes: int, channels: int = 128) -> None:
        super().__init__()
        self.instance_classifier = nn.Linear(features, classes)
        self.query = nn.Linear(features, channels)
        self.bag_classifier = nn.Conv1d(classes, classes, kernel_size=features)

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]; the branches are the classes, and the logits such that their softmax is the mean of both streams'."""
        highest, bag_logits, weights = self.streams(bag)
        probability = (torch.softmax(highest.float(), -1) + torch.softmax(bag_logits.float(), -1)) / 2
        return Answer(torch.log(probability), torch.stack([highest, bag_logits]), weights)

    def streams(self, bag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Highest instance logits [C], bag logits [C], and weights [C, N]."""
        scores, highest = self.attention_scores(bag)
        weights = torch.softmax(scores.float(), dim=-1)
        return highest, self.bag_classifier((weights.to(bag.dtype) @ bag)[None])[0, :, 0], weights

    def attention_scores(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Scores before the softmax, [C, N], and the highest instance logits [C]."""
        highest = self.instance_classifier(check_bag(bag)).max(0)
        queries = self.query(bag)
        return queries[highest.indices] @ queries.mT / math.sqrt(queries.shape[1]), highest.values

    def losses(self, bag: Tensor, label: Tensor) -> dict[str, Tensor]:
        """As ``ACMIL.losses``: half of each stream's cross-entropy."""
        highest, bag_logits, _ = self.streams(bag)
        return {"instance": slide_loss(highest, label) / 2, "slide": slide_loss(bag_logits, label) / 2}


class IBMIL(_SlideLoss):
    """Interventional bag MIL (Lin et al., CVPR 2023): ABMIL's bag feature beside the prototypes of slides that it resembles.

    The second of two stages: ``prototypes`` are the cluster centres of a trained ABMIL's bag features; see ``training.prototypes_of``.

    Args:
        features, classes, channels, attention_channels: as ``ACMIL``.
        prototypes: how many.
        joint_channels: width in which the bag and the prototypes are compared.
    """

    prototypes: Tensor

    def __init__(
        self,
        *,
        features: int,
        classes: int,
        channels: int = 128,
        attention_channels: int = 128,
        prototypes: int = 8,
        joint_channels: int = 128,
    ) -> None:
        super().__init__()
        self.reduction = Reduction(features=features, channels=channels)
        self.pooling = GatedBagPooling(channels=channels, inner_channels=attention_channels)
        self.query = nn.Linear(channels, joint_channels)
        self.key = nn.Linear(channels, joint_channels)
        self.classifier = nn.Linear(2 * channels, classes)
        self.register_buffer("prototypes", torch.zeros(prototypes, channels))

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]."""
        pooled = self.pooling.pool(self.reduction(check_bag(bag))[None])
        joint, _ = self.join(pooled.features[0, 0])
        logits = self.classifier(joint)
        return Answer(logits, logits[None], pooled.weights[0])

    def join(self, slide: Tensor) -> tuple[Tensor, Tensor]:
        """slide: [channels]. Returns it beside the weighted prototypes, [2 channels], and their weights [prototypes]."""
        scores = self.key(self.prototypes) @ self.query(slide) / math.sqrt(self.key.out_features)
        weights = torch.softmax(scores, dim=0)
        return torch.cat([slide, weights @ self.prototypes]), weights

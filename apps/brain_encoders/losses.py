"""What the readouts are trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["contrastive_loss", "hemisphere_loss"]


def hemisphere_loss(prediction: Tensor, response: Tensor, hemispheres: Sequence[int]) -> Tensor:
    """The sum over hemispheres of the mean squared error over images and units (Hosseini Adeli et al., 2025).

    Args:
        prediction, response: [B, V].
        hemispheres: units of each, in order; one number for a volume.
    """
    parts = zip(prediction.split(list(hemispheres), dim=1), response.split(list(hemispheres), dim=1), strict=True)
    return torch.stack([F.mse_loss(one, other) for one, other in parts]).sum()


def contrastive_loss(first: Tensor, second: Tensor, *, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric cross-entropy of CLIP (Radford et al., 2021, figure 3), and its logits [B, B].

    Args:
        first, second: embeddings [B, C] of the same B things, in order.
        logit_scale: logarithm of the factor on the cosines.
    """
    logits = logit_scale.exp() * F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).mT
    same = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.mT, same)) / 2, logits

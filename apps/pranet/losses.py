"""The structure loss of PraNet (paper, section 3.1; after Wei et al., "F3Net", AAAI 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["boundary_weight", "published_structure_loss", "structure_loss"]


def boundary_weight(mask: Tensor) -> Tensor:
    """1 plus five times how much a pixel differs from the mean of the 31 x 31 around it, so 1 to 6. mask and result: [B, 1, H, W]."""
    rows = F.avg_pool2d(mask, kernel_size=(31, 1), stride=1, padding=(15, 0))  # a square mean in two passes costs 15 times less
    return 1 + 5 * (F.avg_pool2d(rows, kernel_size=(1, 31), stride=1, padding=(0, 15)) - mask).abs()


def structure_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy and IoU, both weighted towards the boundary, as the paper writes them.

    Args:
        logits: [B, 1, H, W].
        mask: [B, 1, H, W], values 0 to 1; not necessarily binary (it may have been resized).

    Returns:
        A scalar: the mean over the batch.
    """
    weight = boundary_weight(mask)
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    return ((weight * entropy).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)) + _weighted_iou(logits, mask, weight)).mean()


def published_structure_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """The loss that the released checkpoints were trained with: its cross-entropy is the plain mean, because the weights cancel.

    The published code asks for an unreduced cross-entropy in a way that torch takes as the mean. Arguments as ``structure_loss``.
    """
    return F.binary_cross_entropy_with_logits(logits, mask) + _weighted_iou(logits, mask, boundary_weight(mask)).mean()


def _weighted_iou(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """One minus the weighted IoU of each image, [B, 1], smoothed by one pixel."""
    probability = torch.sigmoid(logits)
    intersection = (probability * mask * weight).sum(dim=(2, 3))
    total = ((probability + mask) * weight).sum(dim=(2, 3))
    return 1 - (intersection + 1) / (total - intersection + 1)

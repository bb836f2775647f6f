"""Soft Dice losses of regions that may overlap.

Brügger, Baumgartner and Konukoglu, "A Partially Reversible U-Net for Memory-Efficient Volumetric Image Segmentation", MICCAI 2019.
"""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor

__all__ = ["dice_loss", "published_dice_loss", "published_squared_dice_loss"]

SMOOTH = 1.0
"""Added to both sides of the fraction, in voxels."""

DIVISOR = 5
"""Of the published sum over three regions. Adam's steps do not depend on it, but for the weight decay."""


def dice_loss(logits: Tensor, regions: Tensor) -> Tensor:
    """One minus the soft Dice, smoothed by one voxel, the mean over volumes and regions: 0 to 1.

    Each volume counts by itself, so it means the same for a batch of any size.

    Args:
        logits: [B, R, *spatial].
        regions: [B, R, *spatial], bool or values 0 to 1.

    Raises:
        ValueError: if the two differ in shape.
    """
    return DiceLoss(smooth_nr=SMOOTH, smooth_dr=SMOOTH)(*_pair(logits, regions))


def published_dice_loss(logits: Tensor, regions: Tensor) -> Tensor:
    """The loss of the released training program: the regions' losses added up and divided by five. Arguments as ``dice_loss``.

    The fraction's denominator is summed over the batch, its numerator is not: with more than one volume it is no Dice. The authors trained
    with one, where it is ``dice_loss`` times 3/5.
    """
    probability, truth = _pair(logits, regions)
    overlap = (probability * truth).flatten(2).sum(dim=2)
    total = (probability + truth).flatten(2).sum(dim=(0, 2))
    return _fifths((2 * overlap + SMOOTH) / (total + SMOOTH))


def published_squared_dice_loss(logits: Tensor, regions: Tensor) -> Tensor:
    """The released program's other form, with squares in the denominator, which it did not train with. Arguments as ``dice_loss``."""
    probability, truth = _pair(logits, regions)
    overlap = (probability * truth).flatten(2).sum(dim=2)
    total = (probability.square() + truth.square()).flatten(2).sum(dim=2)
    return _fifths((2 * overlap + SMOOTH) / (total + SMOOTH))


def _fifths(dice: Tensor) -> Tensor:
    """dice: [B, R]."""
    return (1 - dice.mean(dim=0)).sum() / DIVISOR


def _pair(logits: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and truth in at least float32: sums over a volume overflow in float16 and stand still in bfloat16."""
    if logits.shape != regions.shape:
        raise ValueError(f"logits and regions must have one shape, not {list(logits.shape)} and {list(regions.shape)}")
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.sigmoid(logits.to(wide)), regions.to(wide)

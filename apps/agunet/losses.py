"""The Dice loss of AGUNet and DAUNet, and deep supervision.

Bouget et al., "Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms", Frontiers in Radiology 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from monai.losses import DeepSupervisionLoss, DiceLoss
from torch import Tensor

__all__ = ["class_dice", "deep_supervision", "dice_loss", "published_dice_loss"]

SMOOTH = 1.0


def dice_loss(logits: Tensor, labels: Tensor, *, include_background: bool = False) -> Tensor:
    """One minus the mean soft Dice of the classes, 0 to 1, with the batch as one volume.

    Args:
        logits: [B, K, *spatial].
        labels: [B, 1, *spatial], whole numbers from 0 to K - 1.
        include_background: count class 0 as well; a large background then hides how a small tumour is missed.
    """
    return DiceLoss(
        include_background=include_background,
        to_onehot_y=True,
        softmax=True,
        squared_pred=True,
        smooth_nr=SMOOTH,
        smooth_dr=SMOOTH,
        batch=True,
    )(logits.float(), labels)


def published_dice_loss(probability: Tensor, labels: Tensor) -> Tensor:
    """The released code's loss, for comparison only. Arguments as ``class_dice``.

    Its sum counts the background, its divisor does not. With two classes it is 0, and so is its gradient, as soon as the Dice of background
    and tumour add up to 1: once the background is learnt, nothing asks for the tumour.
    """
    return (1 - class_dice(probability, labels).sum() / (probability.shape[1] - 1)).clamp(0, 1 - 1e-10)


def class_dice(probability: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice of each class, [K], with squared denominators, smoothed by one voxel, with the batch as one volume.

    Args:
        probability: [B, K, *spatial].
        labels: [B, 1, *spatial], whole numbers from 0 to K - 1.
    """
    truth = F.one_hot(labels.squeeze(1).long(), probability.shape[1]).movedim(-1, 1).to(probability.dtype)
    everywhere = (0, *range(2, probability.ndim))
    overlap = (probability * truth).sum(dim=everywhere)
    return (2 * overlap + SMOOTH) / (probability.square().sum(dim=everywhere) + truth.sum(dim=everywhere) + SMOOTH)


def deep_supervision(
    outputs: Sequence[Tensor],
    labels: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = dice_loss,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The sum of the losses of all side outputs, each against the labels at its own resolution.

    The article does not say how labels are brought there. Here each coarse voxel has the label of the fine one nearest to its centre (the
    later of two), which on the whole leaves the classes
    their shares.

    Args:
        outputs: logits [B, K, *coarser] each, the full resolution first.
        labels: [B, 1, *spatial], whole numbers from 0 to K - 1.
        loss: of logits and labels.
        weights: one for each output; equal ones, of 1, by default, as in the article's figure.

    Raises:
        ValueError: if there are more or fewer weights than outputs.
    """
    if weights is not None and len(weights) != len(outputs):
        raise ValueError(f"{len(weights)} weights for {len(outputs)} outputs")
    of_all = DeepSupervisionLoss(loss, weight_mode="same", weights=None if weights is None else list(weights))  # type: ignore[arg-type]
    return of_all(list(outputs), labels.float())

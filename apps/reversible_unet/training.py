"""Training on windows as large as memory allows, up to whole volumes; then a threshold, and a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from apps.reversible_unet.config import LossConfig, TrainConfig
from apps.reversible_unet.inference import ReversibleUNetPredictor, build
from apps.reversible_unet.losses import SMOOTH, dice_loss, published_dice_loss, published_squared_dice_loss
from shared.config import plain
from shared.errors import UserError
from shared.phantoms.head_settings import HeadSettings
from shared.segmentation.labels import Labels
from shared.segmentation.predictor import Options, SegmentationSettings
from shared.segmentation.preparation import NativePreparation
from shared.segmentation.training import Loss, train_volumes

__all__ = ["loss_of", "train"]


def train(config: TrainConfig) -> None:
    """Trains and leaves a run folder with a bundle in ``model/``; see README.md of this app for the recipes."""

    def bundled(network: nn.Module, settings: SegmentationSettings, facts: dict[str, Any]) -> ReversibleUNetPredictor:
        return ReversibleUNetPredictor(network, model=plain(config.model), settings=settings, facts=facts, options=Options(device="auto"))

    train_volumes(
        config,
        network=lambda labels: build(config.model, labels),
        outputs=_output,
        loss=loss_of(config.loss, Labels(config.task)),
        prepare=NativePreparation(config.preprocessing),
        phantoms=HeadSettings(kind="glioma", skull_stripped=True),
        bundled=bundled,
    )


def loss_of(config: LossConfig, labels: Labels) -> Loss:
    """Of the logits [B, K, *spatial], alone in a list, and what ``Labels.encode`` makes of the labels.

    Raises:
        UserError: if a loss for overlapping regions is asked for where classes exclude each other.
    """
    if not labels.task.overlapping:
        if config.name not in ("dice", "dice_bce"):
            raise UserError(
                f"loss.name {config.name}: is of overlapping regions (task.overlapping); for these classes take dice or dice_bce."
            )
        classes = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH, batch=True)

        def exclusive(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
            dice = classes(outputs[0], target.float())
            return dice + F.cross_entropy(outputs[0], target[:, 0].long()) if config.name == "dice_bce" else dice

        return exclusive
    losses = {"dice": dice_loss, "published_dice": published_dice_loss, "published_squared_dice": published_squared_dice_loss}

    def overlapping(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        if config.name == "dice_bce":
            return dice_loss(outputs[0], target) + F.binary_cross_entropy_with_logits(outputs[0], target.float())
        return losses[config.name](outputs[0], target)

    return overlapping


def _output(network: nn.Module, image: Tensor) -> Sequence[Tensor]:
    return [network(image)]

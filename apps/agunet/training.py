"""Training: our recipe, windows at native resolution, or the published one, whole heads of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.agunet.config import LossConfig, TrainConfig
from apps.agunet.inference import AGUNetPredictor, PublishedPreparation, build, preparation_of
from apps.agunet.losses import deep_supervision, dice_loss, published_dice_loss
from shared.config import plain
from shared.errors import UserError
from shared.phantoms.head_settings import HeadSettings
from shared.segmentation.config import WindowConfig
from shared.segmentation.predictor import Options, SegmentationSettings
from shared.segmentation.preparation import NativePreparation, Prepare
from shared.segmentation.training import Loss, train_volumes

__all__ = ["loss_of", "train"]


def train(config: TrainConfig) -> None:
    """Trains and leaves a run folder with a bundle in ``model/``; see README.md of this app for the recipes."""
    if config.task.overlapping:
        raise UserError("task.overlapping: these networks answer with a softmax, so classes exclude each other; see apps.reversible_unet.")
    prepare: Prepare = NativePreparation(config.preprocessing)
    if config.published is not None:
        prepare = PublishedPreparation(preparation_of(config.published))
        config = replace(config, window=WindowConfig(size=config.published.size, overlap=0.0))
    _check_window(config)
    model = {"network": plain(replace(config.model, checkpointing=False)), "published": plain(config.published)}

    def bundled(network: nn.Module, settings: SegmentationSettings, facts: dict[str, Any]) -> AGUNetPredictor:
        return AGUNetPredictor(network, model=model, settings=settings, facts=facts, options=Options(device="auto"))

    train_volumes(
        config,
        network=lambda labels: build(config.model, labels),
        outputs=_outputs,
        loss=loss_of(config.loss),
        prepare=prepare,
        phantoms=HeadSettings(kind="meningioma", sequences=("t1ce",)),
        bundled=bundled,
    )


def loss_of(config: LossConfig) -> Loss:
    """Of the logits of all outputs, the full resolution first, and class numbers [B, 1, *spatial]."""

    def one(logits: Tensor, target: Tensor) -> Tensor:
        match config.name:
            case "published_dice":
                return published_dice_loss(torch.softmax(logits, dim=1), target)
            case "dice_ce":
                return dice_loss(logits, target) + F.cross_entropy(logits, target[:, 0].long())
            case _:
                return dice_loss(logits, target)

    return lambda outputs, target: deep_supervision(outputs, target, loss=one)


def _outputs(network: nn.Module, image: Tensor) -> Sequence[Tensor]:
    """All heads of AGUNet and DAUNet; the only one of the baseline."""
    side_outputs = getattr(network, "side_outputs", None)
    return side_outputs(image) if side_outputs is not None else [network(image)]


def _check_window(config: TrainConfig) -> None:
    multiple = 2 ** (len(config.model.channels) - 1)
    if any(size % multiple for size in config.window.size) or min(config.window.size) <= multiple // 2:
        key = "window.size" if config.published is None else "published.size"
        found = list(config.window.size)
        raise UserError(f"{key} is {found}; with {len(config.model.channels)} widths each must be a multiple of {multiple}.")

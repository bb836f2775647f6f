"""Training on windows as large as memory allows, up to whole volumes; then a threshold, and a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import lightning.pytorch as pl
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from apps.reversible_unet.config import LossConfig, TrainConfig
from apps.reversible_unet.inference import ReversibleUNetPredictor, build
from apps.reversible_unet.losses import SMOOTH, dice_loss, published_dice_loss, published_squared_dice_loss
from shared.bundle import provenance
from shared.config import plain
from shared.errors import UserError
from shared.phantoms.head_settings import HeadSettings
from shared.segmentation.cases import describe, divide
from shared.segmentation.config import check_task
from shared.segmentation.labels import Labels
from shared.segmentation.predictor import Options, SegmentationSettings
from shared.segmentation.preparation import NativePreparation
from shared.segmentation.report import write_training_report
from shared.segmentation.training import Loss, forget_prepared, train_volumes, training_data
from shared.training.fit import new_run

__all__ = ["train"]


def train(config: TrainConfig) -> None:
    """Trains and leaves a run folder with a bundle in ``model/``; see README.md of this app for the recipes."""
    folder = config.resume or config.output
    check_task(config.task)
    labels = Labels(config.task)
    loss = loss_of(config.loss, labels)
    new_run(folder, config, resume=config.resume)
    volumes = training_data(config.data, config.task, seed=config.fit.seed, phantoms=HeadSettings(kind="glioma", skull_stripped=True))
    training, validation = divide(volumes, config.data, seed=config.fit.seed)
    print(f"{config.data.root}: {len(training)} volumes to train on, {len(validation)} to validate on")

    pl.seed_everything(config.fit.seed, verbose=False)
    try:
        network = build(config.model, labels)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    trained = train_volumes(
        network,
        outputs=_output,
        loss=loss,
        labels=labels,
        prepare=NativePreparation(config.preprocessing),
        volumes=(training, validation),
        window=config.window,
        sampling=config.sampling,
        config=config.fit,
        folder=folder,
        resume=config.resume is not None,
    )
    if not trained.run.leads:
        return
    settings = SegmentationSettings(
        task=config.task,
        preprocessing=config.preprocessing,
        window=config.window,
        flip_axes=config.sampling.flip_axes,
        threshold=trained.threshold,
        minimum_ml=config.minimum_ml,
        lesion=config.lesion,
    )
    facts = provenance(
        seed=config.fit.seed,
        **describe(config.data.root, volumes),
        best_epoch=trained.run.epoch,
        volumes=[len(training), len(validation)],
        metrics={"dice": trained.dice, "validation": trained.run.score},
    )
    model = plain(replace(config.model, memory="plain" if config.model.name != "reversible_unet" else config.model.memory))
    predictor = ReversibleUNetPredictor(network, model=model, settings=settings, facts=facts, options=Options(device="auto"))
    predictor.save_bundle(folder / "model")
    report = write_training_report(folder, trained, predictor, validation)
    forget_prepared(folder)
    print(f"best epoch {trained.run.epoch}: validation Dice {trained.run.score:.3f}. Model: {folder / 'model'}, report: {report}")


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

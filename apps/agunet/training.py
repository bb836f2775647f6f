"""Training: our recipe, windows at native resolution, or the published one, whole heads of one size; then a threshold, and a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.agunet.config import LossConfig, TrainConfig
from apps.agunet.inference import AGUNetPredictor, PublishedPreparation, build, preparation_of
from apps.agunet.losses import deep_supervision, dice_loss, published_dice_loss
from shared.bundle import provenance
from shared.config import plain
from shared.errors import UserError
from shared.phantoms.head_settings import HeadSettings
from shared.segmentation.cases import describe, divide
from shared.segmentation.config import WindowConfig, check_task
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
    if config.task.overlapping:
        raise UserError(
            "task.overlapping: these networks answer with a softmax, so classes exclude each other. apps.reversible_unet has regions."
        )
    window = config.window
    if config.published is not None:
        window = WindowConfig(size=config.published.size, overlap=0.0)
    _check_window(window, config)
    new_run(folder, config, resume=config.resume)
    volumes = training_data(config.data, config.task, seed=config.fit.seed, phantoms=HeadSettings(kind="meningioma", sequences=("t1ce",)))
    training, validation = divide(volumes, config.data, seed=config.fit.seed)
    print(f"{config.data.root}: {len(training)} volumes to train on, {len(validation)} to validate on")

    pl.seed_everything(config.fit.seed, verbose=False)
    try:
        network = build(config.model, labels)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    prepare = (
        NativePreparation(config.preprocessing) if config.published is None else PublishedPreparation(preparation_of(config.published))
    )
    trained = train_volumes(
        network,
        outputs=_outputs,
        loss=loss_of(config.loss),
        labels=labels,
        prepare=prepare,
        volumes=(training, validation),
        window=window,
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
        window=window,
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
    model = {"network": plain(replace(config.model, checkpointing=False)), "published": plain(config.published)}
    predictor = AGUNetPredictor(network, model=model, settings=settings, facts=facts, options=Options(device="auto"))
    predictor.save_bundle(folder / "model")
    report = write_training_report(folder, trained, predictor, validation)
    forget_prepared(folder)
    print(f"best epoch {trained.run.epoch}: validation Dice {trained.run.score:.3f}. Model: {folder / 'model'}, report: {report}")


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


def _check_window(window: WindowConfig, config: TrainConfig) -> None:
    multiple = 2 ** (len(config.model.channels) - 1)
    key = "window.size" if config.published is None else "published.size"
    if any(size % multiple for size in window.size) or min(window.size) <= multiple // 2:
        raise UserError(f"{key} is {list(window.size)}; with {len(config.model.channels)} widths each must be a multiple of {multiple}.")
    if not window.overlap < 1:
        raise UserError(f"window.overlap is {window.overlap}; it must be below 1, such as 0.5.")

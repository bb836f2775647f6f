"""Training on windows, validating on whole volumes; the app brings the network and the loss."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shared.bundle import provenance
from shared.errors import UserError
from shared.files import atomic_folder
from shared.inference.sliding import sliding_window
from shared.metrics.segmentation import confusion
from shared.phantoms.head import write_heads
from shared.phantoms.head_settings import HeadSettings
from shared.segmentation.cases import LabelledVolume, describe, divide, labelled_volumes
from shared.segmentation.config import TaskConfig, TrainVolumesConfig, VolumeDataConfig, WindowConfig, check_task
from shared.segmentation.labels import Labels
from shared.segmentation.predictor import SegmentationSettings, VolumePredictor
from shared.segmentation.preparation import Prepare
from shared.segmentation.report import write_training_report
from shared.segmentation.samples import Batch, PreparedVolume, TrainingWindows, WholeVolumes, prepare_volumes
from shared.training.config import FitConfig
from shared.training.fit import Run, configure_optimizers, fit, new_run
from shared.training.loader import TrainingLoader

__all__ = ["Loss", "Outputs", "Trained", "VolumeTraining", "fit_threshold", "train_volumes"]

Outputs = Callable[[nn.Module, Tensor], Sequence[Tensor]]
"""The network, and a batch of windows [B, C, *size] -> logits, the full resolution first."""
Loss = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Those logits, and what ``Labels.encode`` makes of the labels -> a number."""

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(2, 9))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves besides the weights."""

    run: Run
    threshold: float
    dice: dict[str, float]
    """Mean over the validation volumes of each class, on the network's voxels, at the threshold."""
    volumes: tuple[list[LabelledVolume], list[LabelledVolume]]
    """For training and for validation; some may have been left out."""


class VolumeTraining(pl.LightningModule):
    """One network, one loss.

    Args:
        network: [B, C, *size] to logits [B, K, *size].
        outputs: what the loss looks at; see ``Outputs``.
        loss: see ``Loss``.
        labels: the classes.
        window: for validation.
        config: optimiser and schedule.
    """

    def __init__(
        self, network: nn.Module, *, outputs: Outputs, loss: Loss, labels: Labels, window: WindowConfig, config: FitConfig
    ) -> None:
        super().__init__()
        self.network, self.outputs, self.loss = network, outputs, loss
        self.labels, self.window, self.config = labels, window, config

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """batch: "image" [B, C, *size], "labels" [B, 1, *size]."""
        logits = self.outputs(self.network, batch["image"])
        loss = self.loss([each.float() for each in logits], self.labels.encode(batch["labels"]))
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}: the training has diverged. Lower fit.optimizer.lr."
            )
        self.log("loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Logs the mean Dice over classes, 1 for an absent class left out, at probability 0.5, of one whole volume."""
        probability = predict_prepared(self.network, batch["image"][0], self.labels, self.window, batch_size=self.config.batch_size)
        dice = class_dice(self.labels, probability.cpu().numpy(), batch["labels"][0, 0].cpu().numpy(), threshold=0.5)
        values = {"val_dice": sum(dice.values()) / len(dice)}
        if len(dice) > 1:
            values |= {f"val_dice_{name.replace(' ', '_')}": value for name, value in dice.items()}
        self.log_dict(values, prog_bar=False, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """As the settings say."""
        return configure_optimizers(self, self.config)


def train_volumes(
    config: TrainVolumesConfig,
    *,
    network: Callable[[Labels], nn.Module],
    outputs: Outputs,
    loss: Loss,
    prepare: Prepare,
    phantoms: HeadSettings,
    bundled: Callable[[nn.Module, SegmentationSettings, dict[str, Any]], VolumePredictor],
) -> None:
    """A whole training: data, network, threshold, bundle and report, in the run folder.

    Args:
        config: what the app's settings have in common with every other's; all of it is written down.
        network: makes the network, with fresh weights, once the seed is set. May raise ValueError.
        outputs, loss: see ``VolumeTraining``.
        prepare: the way to the network's input.
        phantoms: which are made where ``config`` asks for phantoms.
        bundled: the predictor of the trained network, its settings and its provenance.

    Raises:
        UserError: if the settings contradict each other, there is no data, or as ``fit``.
    """
    folder, labels, resume = config.resume or config.output, Labels(config.task), config.resume is not None
    check_task(config.task)
    if not config.window.overlap < 1:
        raise UserError(f"window.overlap is {config.window.overlap}; it must be below 1, such as 0.5.")
    new_run(folder, config, resume=config.resume)
    volumes = _labelled(config.data, config.task, seed=config.fit.seed, phantoms=phantoms)
    parts = divide(volumes, config.data, seed=config.fit.seed)
    print(f"{config.data.root}: {len(parts[0])} volumes to train on, {len(parts[1])} to validate on")
    pl.seed_everything(config.fit.seed, verbose=False)
    try:
        trainable = network(labels).to(memory_format=torch.channels_last_3d)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    module = VolumeTraining(trainable, outputs=outputs, loss=loss, labels=labels, window=config.window, config=config.fit)
    trained = _trained(module, parts, prepare, config, folder=folder, resume=resume)
    if trained is None:
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
        volumes=[len(part) for part in parts],
        metrics={"dice": trained.dice, "validation": trained.run.score},
    )
    predictor = bundled(trainable, settings, facts)
    predictor.save_bundle(folder / "model")
    report = write_training_report(folder, trained, predictor)
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    print(f"best epoch {trained.run.epoch}: validation Dice {trained.run.score:.3f}. Model: {folder / 'model'}, report: {report}")


def _trained(
    module: VolumeTraining,
    volumes: tuple[list[LabelledVolume], list[LabelledVolume]],
    prepare: Prepare,
    config: TrainVolumesConfig,
    *,
    folder: Path,
    resume: bool,
) -> Trained | None:
    """Prepares, fits, and chooses the threshold; None in all but one process of a parallel training."""
    training, validation = (
        prepare_volumes(part, prepare, module.labels, folder=folder / "prepared" / name)
        for name, part in zip(("training", "validation"), volumes, strict=True)
    )
    loader = TrainingLoader(
        TrainingWindows(training, size=config.window.size, config=config.sampling),
        batch_size=config.fit.batch_size,
        seed=config.fit.seed,
        workers=config.fit.workers,
    )
    checks = DataLoader(WholeVolumes(validation), batch_size=1)
    run = fit(module, loader, checks, config.fit, folder=folder, monitor="val_dice", resume=resume)
    if not run.leads:
        return None
    threshold, dice = fit_threshold(module.network, validation, module.labels, config.window, batch_size=config.fit.batch_size)
    return Trained(run=run, threshold=threshold, dice=dice, volumes=volumes)


def _labelled(config: VolumeDataConfig, task: TaskConfig, *, seed: int, phantoms: HeadSettings) -> list[LabelledVolume]:
    """The labelled volumes of ``config.root``, where phantoms are made first if it asks for some and does not exist yet."""
    if config.phantoms and not config.root.exists():
        print(f"{config.root}: making {config.phantoms} head phantoms")
        settings = dataclasses.replace(phantoms, shape=config.phantom_shape, spacing_mm=config.phantom_spacing_mm)
        with atomic_folder(config.root) as folder:
            write_heads(folder, count=config.phantoms, seed=seed, settings=settings)
    return labelled_volumes(config.root, task)


def fit_threshold(
    network: nn.Module, volumes: Sequence[PreparedVolume], labels: Labels, window: WindowConfig, *, batch_size: int
) -> tuple[float, dict[str, float]]:
    """The threshold with the highest mean Dice over volumes and classes, 0.5 among equals; and the mean Dice of each class there."""
    device = next(network.parameters()).device
    network.eval()
    scores = np.zeros((len(THRESHOLDS), len(volumes), len(labels.names)))
    for number, volume in enumerate(track(volumes, "choosing the threshold", transient=True)):
        image = torch.from_numpy(np.array(volume.image)).to(device)
        probability = predict_prepared(network, image, labels, window, batch_size=batch_size).cpu().numpy()
        for row, threshold in enumerate(THRESHOLDS):
            scores[row, number] = list(class_dice(labels, probability, volume.labels, threshold=threshold).values())
    means = scores.mean(axis=(1, 2))
    middle = THRESHOLDS.index(0.5)
    best = int(means.argmax()) if means.max() > means[middle] + 1e-3 else middle
    return THRESHOLDS[best], dict(zip(labels.names, scores[best].mean(axis=0).tolist(), strict=True))


def predict_prepared(network: nn.Module, image: Tensor, labels: Labels, window: WindowConfig, *, batch_size: int) -> Tensor:
    """Probabilities [K, X, Y, Z] of a prepared volume [C, X, Y, Z], where it lies."""
    return sliding_window(
        image, lambda windows: labels.activate(network(windows)), window=window.size, batch_size=batch_size, overlap=window.overlap
    )


def class_dice(labels: Labels, probability: np.ndarray, truth: np.ndarray, *, threshold: float) -> dict[str, float]:
    """Dice of each class; 1 where there is none and none was found."""
    predicted = labels.masks(labels.decode(probability, threshold=threshold))
    return {name: confusion(predicted[name], mask).dice for name, mask in labels.masks(truth).items()}

"""Training: the published recipe or one's own, then thresholds and calibration on the validation frames, and a bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from apps.pranet.config import TrainConfig
from apps.pranet.data import SMALLEST_SIDE, Batch, TrainingFrames, ValidationFrames, describe, divide, labelled_frames, rescale
from apps.pranet.inference import PraNetPredictor, Settings, frame_confidence
from apps.pranet.losses import published_structure_loss, structure_loss
from apps.pranet.model import PraNet, UNet
from apps.pranet.published import published_backbone
from apps.pranet.report import write_training_report
from shared.bundle import load_weights, provenance, read_checkpoint
from shared.errors import UserError
from shared.files import atomic_folder
from shared.metrics.calibration import Reliability, logit_histogram, reliability
from shared.metrics.segmentation import confusion, youden_threshold
from shared.phantoms.colonoscopy import write_colonoscopy
from shared.training.config import FitConfig
from shared.training.fit import configure_optimizers, fit, new_run
from shared.training.loader import TrainingLoader

__all__ = ["PraNetTraining", "train"]

Loss = Callable[[Tensor, Tensor], Tensor]
_LOSSES: dict[str, Loss] = {"structure": structure_loss, "published_structure": published_structure_loss}


class PraNetTraining(pl.LightningModule):
    """Deep supervision: the loss is the sum over all side outputs, with equal weights (paper, section 2.4).

    Args:
        network: gives ``side_outputs``.
        loss: of logits and mask, [B, 1, H, W] each.
        config: optimiser and schedule.
    """

    def __init__(self, network: PraNet | UNet, *, loss: Loss, config: FitConfig) -> None:
        super().__init__()
        self.network, self.loss, self.config = network, loss, config

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """batch: "image" [B, 3, H, W], "mask" [B, 1, H, W]."""
        loss = torch.stack([self.loss(logits.float(), batch["mask"]) for logits in self.network.side_outputs(batch["image"])]).sum()
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}: the training has diverged. Lower fit.optimizer.lr."
            )
        self.log("loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Logs the mean Dice of the frames at probability 0.5, 1 for an empty frame left empty, and the loss of the prediction."""
        logits = self.network(batch["image"]).float()
        answers, truths = (logits > 0).cpu().numpy(), (batch["mask"] > 0.5).cpu().numpy()
        dice = [confusion(answer, truth).dice for answer, truth in zip(answers, truths, strict=True)]
        values = {"val_dice": sum(dice) / len(dice), "val_loss": self.loss(logits, batch["mask"])}
        self.log_dict(values, prog_bar=True, batch_size=len(dice), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """As the settings say."""
        return configure_optimizers(self, self.config)


def train(config: TrainConfig) -> None:
    """Trains and leaves a run folder with a bundle in ``model/``; see README.md of this app for the recipes."""
    folder = config.resume or config.output
    if config.data.size % 32 or config.data.size < SMALLEST_SIDE:
        raise UserError(f"data.size is {config.data.size}; it must be a multiple of 32, at least {SMALLEST_SIDE}, such as 352.")
    new_run(folder, config, resume=config.resume)
    if config.data.phantoms and not config.data.root.exists():
        print(f"{config.data.root}: making {config.data.phantoms} colonoscopy phantoms")
        with atomic_folder(config.data.root) as folder_being_made:
            write_colonoscopy(folder_being_made, count=config.data.phantoms, seed=config.fit.seed)
    if not config.data.root.is_dir():
        raise UserError(f"{config.data.root}: no such folder. `apps.pranet data list` shows what to fetch; your own: --data.root FOLDER")
    pairs = labelled_frames(config.data.root)
    training, validation = divide(pairs, config.data, seed=config.fit.seed)
    print(f"{config.data.root}: {len(training)} frames to train on, {len(validation)} to validate on")

    pl.seed_everything(config.fit.seed, verbose=False)
    settings = Settings(model=config.model, size=config.data.size)
    network = _network(config, settings).to(memory_format=torch.channels_last)
    loader = TrainingLoader(
        TrainingFrames(training, size=config.data.size, augment=config.data.augment),
        batch_size=config.fit.batch_size,
        seed=config.fit.seed,
        variants=config.data.scales,
        vary=rescale,
        workers=config.fit.workers,
    )
    module = PraNetTraining(network, loss=_LOSSES[config.loss.name], config=config.fit)
    frames = ValidationFrames(validation, size=config.data.size)
    checks = DataLoader(frames, batch_size=config.fit.batch_size, num_workers=config.fit.workers)
    run = fit(module, loader, checks, config.fit, folder=folder, monitor="val_dice", resume=config.resume is not None)

    if not run.leads:
        return
    facts = {"seed": config.fit.seed, **describe(config.data.root, pairs), "best_epoch": run.epoch}
    facts |= {"frames": [len(training), len(validation)]}
    settings, metrics = calibrate(network, settings, checks)
    metrics = {"dice": run.score, **metrics}
    predictor = PraNetPredictor(network, settings, facts=provenance(**facts, metrics=metrics), device="auto")
    predictor.save_bundle(folder / "model")
    report = write_training_report(folder, run, predictor, validation, metrics)
    print(f"best epoch {run.epoch}: validation Dice {run.score:.3f}. Model: {folder / 'model'}, report: {report}")


def calibrate(network: PraNet | UNet, settings: Settings, frames: DataLoader[Batch]) -> tuple[Settings, dict[str, float | None]]:
    """Fits temperature and detection threshold on validation frames.

    Returns:
        The settings with both, and the expected calibration error before and after. The detection threshold stays None where the frames
        are all with, or all without, a polyp.
    """
    predictor = PraNetPredictor(network, settings, device="auto")
    logits = [(predictor.logits(batch["image"])[0], batch["mask"] > 0.5) for batch in track(frames, "calibrating", transient=True)]
    first, *others = (logit_histogram(one.numpy(), truth.numpy()) for one, truth in logits)
    temperature = sum(others, first).temperature()
    confidences = [frame_confidence(torch.sigmoid(one / temperature)) for batch, _ in logits for one in batch]
    positive = [bool(one.any()) for _, truths in logits for one in truths]
    threshold = youden_threshold(confidences, positive)
    return Settings(model=settings.model, size=settings.size, temperature=temperature, detection_threshold=threshold), {
        "calibration_error": _reliability(logits, 1.0).expected_calibration_error,
        "calibration_error_after_temperature": _reliability(logits, temperature).expected_calibration_error,
        "temperature": temperature,
        "detection_threshold": threshold,
    }


def _reliability(logits: list[tuple[Tensor, Tensor]], temperature: float) -> Reliability:
    first, *others = (reliability(torch.sigmoid(one / temperature).numpy(), truth.numpy()) for one, truth in logits)
    return sum(others, first)


def _network(config: TrainConfig, settings: Settings) -> PraNet | UNet:
    network = settings.build()
    if config.model.backbone_weights is not None:
        if not isinstance(network, PraNet):
            raise UserError("model.backbone_weights is for model.name pranet; for the U-Net use model.pretrained.")
        state = published_backbone(read_checkpoint(config.model.backbone_weights))
        load_weights(network.backbone, state, source=config.model.backbone_weights)
    return network

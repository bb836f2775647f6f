"""A training that takes a second: a line fitted to noisy points, with everything random that a real one has."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shared.errors import UserError
from shared.training.config import FitConfig, OptimizerConfig
from shared.training.fit import Run, configure_optimizers, fit
from shared.training.loader import TrainingLoader

__all__ = ["Points", "StopAt", "TinyTraining", "settings", "state", "train"]


class Points:
    """x is the sample's number and noise of the seed; y is known exactly."""

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        index, seed = key
        noise = np.random.default_rng(seed).normal(scale=0.05, size=3)
        x = torch.tensor(np.full(3, index / self.count) + noise, dtype=torch.float32)
        return {"x": x, "y": torch.tensor([2 * index / self.count])}


class TinyTraining(pl.LightningModule):
    def __init__(self, config: FitConfig, *, diverge: bool = False) -> None:
        super().__init__()
        self.config, self.diverge = config, diverge
        self.network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.rates: list[float] = []
        self.precisions: set[torch.dtype] = set()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        answer = self.network(batch["x"])
        self.precisions.add(answer.dtype)
        loss = ((answer.float() - batch["y"]) ** 2).mean() * (float("nan") if self.diverge else 1)
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} in epoch {self.current_epoch}: the training has diverged.")
        self.log("loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch["x"]), sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        error = ((self.network(batch["x"]).float() - batch["y"]) ** 2).mean()
        self.log("val_error", error, batch_size=len(batch["x"]), sync_dist=True)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        super().optimizer_step(*arguments, **named)

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, self.config)


class StopAt(pl.Callback):
    """Sends this process a signal after so many batches of an epoch, as a scheduler or a Ctrl-C would."""

    def __init__(self, epoch: int, batch: int, number: int = signal.SIGTERM) -> None:
        self.at, self.number = (epoch, batch), number

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if (trainer.current_epoch, arguments[-1]) == self.at:
            os.kill(os.getpid(), self.number)


def settings(**changes: Any) -> FitConfig:
    given = {"epochs": 3, "batch_size": 4, "optimizer": OptimizerConfig(lr=0.05), "accelerator": "cpu", "precision": "fp32", "devices": 1}
    return FitConfig(**{**given, **changes})


def train(
    folder: Path,
    config: FitConfig | None = None,
    *,
    resume: bool = False,
    module: TinyTraining | None = None,
    variants: tuple[float, ...] = (1.0, 0.5),
    callbacks: tuple[pl.Callback, ...] = (),
) -> tuple[Run, TinyTraining]:
    """12 points, batches of 4, each given at both scales: 6 batches in an epoch."""
    config = config or settings()
    pl.seed_everything(config.seed, verbose=False)
    module = module or TinyTraining(config)
    loader = TrainingLoader(
        Points(), batch_size=config.batch_size, seed=config.seed, variants=variants, vary=_scaled, workers=config.workers
    )
    checks = DataLoader([Points()[index, 0] for index in range(4)], batch_size=2)
    run = fit(module, loader, checks, config, folder=folder, monitor="val_error", maximise=False, resume=resume, callbacks=callbacks)
    return run, module


def state(folder: Path) -> dict[str, Any]:
    """What the last checkpoint holds of the training: weights, optimiser and position."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"][0]["state"], "step": checkpoint["global_step"]}


def _scaled(batch: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    return {name: value * scale for name, value in batch.items()}

"""fit(): a LightningModule, a loader and settings in; a run folder out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from shared.config import to_yaml
from shared.devices import resolve_device, resolve_precision
from shared.errors import UserError
from shared.files import write_text
from shared.training.callbacks import AtomicCheckpoints, History, Position, StopOnSignal, TimedCheckpoint, signals_given_back
from shared.training.config import FitConfig
from shared.training.loader import TrainingLoader
from shared.training.schedule import learning_rate_factor

__all__ = ["Run", "configure_optimizers", "fit", "new_run"]

_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training."""

    folder: Path
    score: float
    """The best value of the monitored metric; the module's weights are of that epoch."""
    epoch: int
    """The epoch of the best value, from 0."""
    history: list[dict[str, float]]
    """What was logged, one row for each epoch."""
    leads: bool
    """False in all but one process of a parallel training: only that one goes on to write results."""


def new_run(folder: Path, settings: Any, *, resume: Path | None) -> None:
    """Makes the run folder with ``config.yaml``, or checks the one to resume.

    Raises:
        UserError: if a new run's folder already holds a run, or there is nothing to resume from.
    """
    if resume is not None:
        if not _last(resume).is_file():
            raise UserError(
                f"{resume}: no checkpoint to resume from ({_last(resume).relative_to(resume)} is missing). Start it without --resume."
            )
        return
    if _get_rank():
        return  # another process of a parallel training leads
    if _last(folder).exists():
        raise UserError(f"{folder}: holds a run already. Name another folder with --output, or go on with it: --resume {folder}")
    write_text(folder / "config.yaml", to_yaml(settings))


def fit(
    module: pl.LightningModule,
    loader: TrainingLoader,
    validation: Iterable[Any],
    config: FitConfig,
    *,
    folder: Path,
    monitor: str,
    maximise: bool = True,
    resume: bool = False,
    callbacks: Iterable[Callback] = (),
) -> Run:
    """Trains, and leaves in ``folder``: metrics.csv, tensorboard/, checkpoints/last.ckpt and checkpoints/best.ckpt.

    Args:
        module: gets the weights of the best epoch in the end. It logs ``monitor`` in its validation step.
        loader: batches to train on.
        validation: batches to validate on after every epoch.
        folder: the run folder.
        monitor: name of the metric that decides which epoch is best.
        resume: go on from ``folder``'s last checkpoint; the result is the same as if it had never stopped.

    Raises:
        UserError: if the settings contradict each other, the checkpoint does not fit, the loss is not finite, or the disk is full.
        Stopped: after SIGTERM or Ctrl-C, with a checkpoint left to resume from.
    """
    if config.clip_value is not None and config.clip_norm is not None:
        raise UserError("fit.clip_value and fit.clip_norm are two ways to clip a gradient: set one of them.")
    if resume:
        _check_readable(_last(folder))
    _quieten()
    history, last, best = History(folder / "metrics.csv"), _last(folder), folder / "checkpoints" / "best.ckpt"
    device = torch.device("cpu") if config.accelerator == "cpu" else resolve_device("auto")
    best_keeper = ModelCheckpoint(
        dirpath=best.parent, filename=best.stem, monitor=monitor, mode="max" if maximise else "min", enable_version_counter=False
    )
    every = timedelta(minutes=config.checkpoint_minutes)
    keepers = [
        best_keeper,
        ModelCheckpoint(dirpath=last.parent, filename=last.stem, enable_version_counter=False, save_on_train_epoch_end=True),
        TimedCheckpoint(dirpath=last.parent, filename=last.stem, enable_version_counter=False, train_time_interval=every),
    ]
    timers = [Timer(duration=timedelta(minutes=config.max_minutes))] if config.max_minutes else []
    try:
        trainer = pl.Trainer(
            max_epochs=config.epochs,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=config.strategy,
            precision=_LIGHTNING_PRECISION[resolve_precision(config.precision, device)],  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip_value if config.clip_norm is None else config.clip_norm,
            gradient_clip_algorithm="value" if config.clip_norm is None else "norm",
            deterministic="warn",
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            logger=TensorBoardLogger(folder, name="tensorboard", version=""),
            callbacks=[Position(loader), *callbacks, history, *timers, *keepers, StopOnSignal(last), RichProgressBar(leave=False)],
            plugins=[AtomicCheckpoints()],
            enable_model_summary=False,
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
        asked = (
            f"fit.accelerator {config.accelerator}, fit.devices {config.devices}, fit.nodes {config.nodes}, fit.strategy {config.strategy}"
        )
        raise UserError(f"this cannot be had here: {asked} ({' '.join(str(error).split())})") from error
    trained = torch.compile(module) if config.compile else module
    try:
        with signals_given_back():
            trainer.fit(trained, loader, validation, ckpt_path=last if resume else None, weights_only=True)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}). Free some space, then go on: --resume {folder}"
        ) from error
    except RuntimeError as error:
        if resume and "state_dict" in str(error):
            raise UserError(
                f"{last}: is of another model than these settings describe. Resume with the settings of its config.yaml."
            ) from error
        raise
    if not best.is_file() or best_keeper.best_model_score is None:
        raise UserError(f"{folder}: no epoch gave a finite {monitor}. Look at metrics.csv; a lower fit.optimizer.lr often helps.")
    checkpoint = torch.load(best, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    return Run(
        folder=folder,
        score=float(best_keeper.best_model_score),
        epoch=int(checkpoint["epoch"]),
        history=history.rows,
        leads=trainer.is_global_zero,
    )


def configure_optimizers(module: pl.LightningModule, config: FitConfig) -> Any:
    """What the ``configure_optimizers`` of a LightningModule in ``fit`` returns for these settings."""
    optimizer = _optimizer([parameter for parameter in module.parameters() if parameter.requires_grad], config)
    steps_per_epoch = int(module.trainer.estimated_stepping_batches) // config.epochs  # of one process, gradients added up
    schedule = LambdaLR(optimizer, learning_rate_factor(config, steps_per_epoch))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _optimizer(weights: list[nn.Parameter], config: FitConfig) -> Optimizer:
    settings = config.optimizer
    if settings.name == "sgd":
        return torch.optim.SGD(weights, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(weights, lr=settings.lr, weight_decay=settings.weight_decay)


def _check_readable(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # torch.load raises many types on a damaged file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint}: the checkpoint is damaged ({reason}). Start again without --resume, in another folder.") from error


def _last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def _quieten() -> None:
    """Keeps Lightning's tips and its remarks about choices made here from between the lines that a person reads."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|exists and is not empty|deterministic algorithms|LeafSpec).*")

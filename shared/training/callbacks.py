"""What happens beside the training steps: keeping the position, the history, and stopping when asked to."""

from __future__ import annotations

import csv
import io
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from shared.errors import UserError
from shared.files import write_bytes, write_text
from shared.training.loader import TrainingLoader

__all__ = ["AtomicCheckpoints", "History", "Position", "StopOnSignal", "Stopped", "TimedCheckpoint", "signals_given_back"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(UserError):
    """Training was asked to stop, and has left a checkpoint. The exit code is that of a process ended by the signal."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} with a checkpoint; to go on: --resume {folder}")
        self.exit_code = 128 + number


class Position(Callback):
    """Keeps in the checkpoint what Lightning's own lacks in the middle of an epoch.

    That is: how many batches of which epoch were trained on, the random state after them, and the means logged over them so far.
    """

    def __init__(self, loader: TrainingLoader) -> None:
        self.loader = loader
        self.epoch, self.done = 0, 0
        self.logged: dict[str, Any] = {}
        """Lightning's running means of this epoch, by name."""
        self.restored: dict[str, Any] | None = None
        """What a checkpoint held, until the first batch: on its way there Lightning draws random numbers, and forgets what was logged."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.restored is not None:
            torch.set_rng_state(self.restored["cpu"].cpu())
            if len(self.restored["cuda"]) == torch.cuda.device_count() > 0:
                torch.cuda.set_rng_state_all([state.cpu() for state in self.restored["cuda"]])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = (trainer._results or {}).items()
        self.logged = {name: metric for name, metric in metrics if metric.meta.on_epoch and metric.meta.is_mean_reduction}
        for name, (total, weight) in (self.restored or {"means": {}})["means"].items():
            if name in self.logged:
                self.logged[name].value += total
                self.logged[name].cumulated_batch_size += int(weight)
        self.restored = None
        self.epoch, self.done = trainer.current_epoch, batch_idx + 1
        if self.done == len(self.loader):
            self.epoch, self.done, self.logged = self.epoch + 1, 0, {}

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        means = {name: [float(metric.value), float(metric.cumulated_batch_size)] for name, metric in self.logged.items()}
        return {"epoch": self.epoch, "done": self.done, "means": means, "cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.done = state_dict["epoch"], state_dict["done"]
        self.loader.resume(self.epoch, self.done)
        self.restored = state_dict


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or absent. Lightning's own are moved from the system's temporary folder, which copies between disks."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        content = io.BytesIO()  # written in one piece, because torch.save hides why a write failed
        torch.save(checkpoint, content)
        write_bytes(path, content.getvalue())


class TimedCheckpoint(ModelCheckpoint):
    """A checkpoint after some time, but never between two batches whose gradients are added up: the sum is in no checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if _has_stepped(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class History(Callback):
    """One row of metrics.csv for each epoch: everything that was logged. A resumed run goes on where the checkpoint was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows = [row for row in self.rows if row["epoch"] < trainer.current_epoch]
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **values})
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(dict.fromkeys(name for row in self.rows for name in row)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


class StopOnSignal(Callback):
    """SIGTERM and Ctrl-C end the training after the optimiser step in progress, with a checkpoint; a second Ctrl-C ends it at once."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.received: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # the only one that may ask for signals
            for number in _SIGNALS:
                signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch or not _has_stepped(trainer, batch_idx):
            return  # the end of an epoch leaves a checkpoint anyway, after its validation
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            trainer.save_checkpoint(self.checkpoint)
            raise Stopped(self.received or signal.SIGTERM, self.checkpoint.parents[1])

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number


@contextmanager
def signals_given_back() -> Iterator[None]:
    """Afterwards SIGTERM and Ctrl-C do what they did before; ``StopOnSignal`` and Lightning both change that, and neither mends it."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _has_stepped(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimiser made a step after this batch, so that no gradients are waiting."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0

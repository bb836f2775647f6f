"""How long, on what and how to train: the same settings for every app. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from shared.config import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Precision

__all__ = ["FitConfig", "OptimizerConfig", "ScheduleConfig"]


@dataclass(kw_only=True)
class OptimizerConfig:
    """Which optimiser, and how fast."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-4
    """Learning rate at the start (after warm-up)."""
    weight_decay: NonNegativeFloat = 0.0
    momentum: NonNegativeFloat = 0.9
    """Of sgd only."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """How the learning rate changes over the steps of the whole run."""

    name: Literal["constant", "cosine", "step"] = "constant"
    """cosine falls to zero at the end; step multiplies by ``gamma`` every ``every`` epochs."""
    warmup: NonNegativeInt = 0
    """Optimiser steps of linear rise from zero."""
    every: PositiveInt = 50
    gamma: PositiveFloat = 0.1


@dataclass(kw_only=True)
class FitConfig:
    """The training run."""

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 16
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_value: PositiveFloat | None = None
    """Each element of the gradient is clamped to plus or minus this."""
    clip_norm: PositiveFloat | None = None
    """The gradient is scaled down to this norm; not together with clip_value."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are added before one optimiser step."""
    seed: NonNegativeInt = 0
    precision: Precision = "auto"
    """auto: bf16 on a GPU that computes it, else fp32."""
    compile: bool = False
    """torch.compile the training step: slow to start, faster after; needs a C++ compiler."""
    accelerator: str = "auto"
    """auto, cpu, gpu or another of Lightning's."""
    devices: int | str = "auto"
    """How many, or auto. More than one trains in parallel, as ``strategy`` says."""
    nodes: PositiveInt = 1
    strategy: str = "auto"
    """Lightning's: auto, ddp, fsdp, ... Start several processes with torchrun."""
    workers: NonNegativeInt = 0
    """Processes that read and augment samples; 0 reads in the training process."""
    checkpoint_minutes: PositiveFloat = 10.0
    """The longest time between two checkpoints; there is one after every epoch anyway."""
    max_minutes: PositiveFloat | None = None
    """Stop after this time and keep the best so far."""

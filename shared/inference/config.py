"""The settings of verbs that every app answers alike. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.config import Device, NonNegativeInt, PositiveInt, Precision

__all__ = ["ComputeConfig", "ConvertConfig", "InferConfig"]


@dataclass(kw_only=True)
class ComputeConfig:
    """Where and how to compute."""

    device: Device = "auto"
    """auto takes the first GPU, else the CPU."""
    precision: Precision = "auto"
    """auto: bf16 or fp16 on a GPU that computes it natively, else fp32."""
    batch_size: PositiveInt = 8
    """Samples computed together."""


@dataclass(kw_only=True)
class InferConfig(ComputeConfig):
    """Predict for files, folders or globs."""

    model: Path
    """A bundle."""
    input: list[Path]
    """Files, folders (searched with their sub-folders; one with a DICOM series counts as one volume) or quoted globs."""
    output: Path
    """A folder for the results. If it holds some of this model's already, only the missing ones are made."""
    engine: Literal["local", "ray"] = "local"
    """ray spreads the inputs over the machines of a Ray cluster; all must see the same files."""
    workers: NonNegativeInt = 2
    """local: threads that read inputs and write results; ray: predictors at work at once."""


@dataclass(kw_only=True)
class ConvertConfig:
    """Turn the authors' released weights into a bundle."""

    published: Path
    """The authors' checkpoint."""
    output: Path
    """A folder for the bundle."""

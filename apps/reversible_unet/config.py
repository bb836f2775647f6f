"""The settings of the reversible 3-D U-Net: the YAML under configs/reversible_unet/ mirrors these classes key by key. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apps.reversible_unet.config_memory import MemoryConfig, PlanConfig
from shared.config import Fraction, PositiveInt
from shared.inference.config import ConvertConfig
from shared.segmentation.config import (
    EvaluateVolumesConfig,
    ExportConfig,
    GrowthConfig,
    HeadPhantomConfig,
    InferVolumesConfig,
    ServeVolumesConfig,
    TaskConfig,
    TrainVolumesConfig,
    WindowConfig,
)
from shared.training.config import FitConfig

__all__ = [
    "ConvertConfig",
    "ExportConfig",
    "GrowthConfig",
    "InferVolumesConfig",
    "LossConfig",
    "MemoryConfig",
    "ModelConfig",
    "PlanConfig",
    "ReversibleEvaluateConfig",
    "ReversiblePhantomConfig",
    "ReversibleServeConfig",
    "TrainConfig",
    "brats_task",
]


def brats_task() -> TaskConfig:
    """Four sequences in the published order, and the nested regions of BraTS until 2021: painted over one another they are its labels."""
    words = {"t1": ["t1", "t1n", "t1w"], "t1ce": ["t1ce", "t1c", "t1gd"], "t2": ["t2", "t2w"], "flair": ["flair", "t2f"]}
    regions = {"whole tumour": [2, 1, 4], "tumour core": [1, 4], "enhancing tumour": [4]}
    return TaskConfig(modalities=words, labels=regions, overlapping=True)


@dataclass(kw_only=True)
class ModelConfig:
    """The network."""

    name: Literal["reversible_unet", "unet3d", "unet"] = "reversible_unet"
    """reversible_unet; unet3d: the published baseline, not reversible; unet: MONAI's plain 3-D U-Net, to compare with."""
    channels: tuple[PositiveInt, ...] = (60, 120, 240, 360, 480)
    """Widths from the full resolution to the bottom; each next one has half the resolution."""
    encoder_depth: PositiveInt = 1
    """Reversible blocks in each level of the encoder: deeper costs time, but no memory in training."""
    decoder_depth: PositiveInt = 1
    block: Literal["convolution", "bottleneck"] = "convolution"
    """convolution: the published one (MICCAI 2019); bottleneck: our reading of the mobile inverted one (BrainLes 2020)."""
    expansion: tuple[PositiveInt, ...] = (6,)
    """Of bottlenecks: one for all levels, or one for each width. At full resolution it decides the peak of memory."""
    chunks: tuple[PositiveInt, ...] = (1,)
    """Of bottlenecks: parts in which the inside is computed, one after the other; one for all levels, or one for each width."""
    drop_path: Fraction = 0.0
    """How often, in training, a volume passes half a block by."""
    inner_groups: PositiveInt | None = None
    """Groups of the normalisations; by default the largest number that fits all widths, and for the published widths the published one."""
    memory: Literal["plain", "checkpoint", "reversible"] = "reversible"
    """How gradients are had: all activations kept, those between blocks, or those between levels. The weights and answers are the same."""


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised."""

    name: Literal["dice", "dice_bce", "published_dice", "published_squared_dice"] = "dice_bce"
    """dice: soft Dice of each region; dice_bce: with cross-entropy besides, as nnU-Net; published_...: as the released program."""


@dataclass(kw_only=True)
class TrainConfig(TrainVolumesConfig):
    """Train on labelled volumes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=brats_task)
    window: WindowConfig = field(default_factory=lambda: WindowConfig(size=(128, 128, 128)))
    loss: LossConfig = field(default_factory=LossConfig)
    fit: FitConfig = field(default_factory=lambda: FitConfig(batch_size=1))
    output: Path = Path("runs/reversible_unet")


@dataclass(kw_only=True)
class ReversibleEvaluateConfig(EvaluateVolumesConfig):
    """Score a bundle on labelled volumes: plainly, and by the regions of BraTS as the challenge does."""

    output: Path = Path("results/reversible_unet")


@dataclass(kw_only=True)
class ReversibleServeConfig(ServeVolumesConfig):
    """Answer segmentations over HTTP: a zip of the four sequences, or one NIfTI with four channels."""


@dataclass(kw_only=True)
class ReversiblePhantomConfig(HeadPhantomConfig):
    """Make head phantoms with gliomas of known form and volume, in four sequences."""

    skull_stripped: bool = True
    """Zero outside the brain and its fluid, as in BraTS."""

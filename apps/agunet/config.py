"""The settings of AGUNet and DAUNet: the YAML under configs/agunet/ mirrors these classes key by key. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from shared.inference.config import ConvertConfig
from shared.segmentation.config import (
    EvaluateVolumesConfig,
    ExportConfig,
    GrowthConfig,
    HeadPhantomConfig,
    InferVolumesConfig,
    ServeVolumesConfig,
    TrainVolumesConfig,
)

__all__ = [
    "AGUNetConvertConfig",
    "AGUNetEvaluateConfig",
    "AGUNetPhantomConfig",
    "AGUNetServeConfig",
    "ExportConfig",
    "GrowthConfig",
    "InferVolumesConfig",
    "LossConfig",
    "ModelConfig",
    "PublishedConfig",
    "TrainConfig",
]


@dataclass(kw_only=True)
class ModelConfig:
    """The network. What an ablation of the paper switches off is an option of its own."""

    name: Literal["agunet", "daunet", "unet"] = "agunet"
    """agunet: attention gates; daunet: dual attention (the released DAGUNet); unet: MONAI's plain 3-D U-Net, to compare with."""
    channels: tuple[PositiveInt, ...] = (16, 32, 128, 256, 256)
    """Widths from the full resolution to the bottom; each next one has half the resolution. A window must divide by 2 for each step."""
    multi_scale_input: bool = True
    """The encoder sees the image at each of its resolutions (not unet)."""
    deep_supervision: bool = True
    """The loss looks at every resolution of the decoder (not unet)."""
    attention_gates: bool = True
    """Of agunet."""
    dual_attention: bool = True
    """Of daunet."""
    guidance: bool = True
    """Of daunet: the bottom is brought to every level of the decoder."""
    published_channel_attention: bool = False
    """Of daunet: the channel attention that released weights rely on, with its softmax over the wrong axis."""
    dropout: Fraction = 0.0
    """Of whole channels, in the blocks."""
    attention_dropout: Fraction = 0.5
    """Of daunet: within and after the dual attention."""
    momentum: Fraction = 0.01
    """The last batch's part in the statistics of the normalisations. 0.01 is Keras' 0.99; short trainings need more."""
    checkpointing: bool = False
    """Activations are computed twice instead of being kept: less memory, about a third more time."""


@dataclass(kw_only=True)
class PublishedConfig:
    """The published way to the network's input instead of ``preprocessing``: the whole head, squeezed into one size."""

    size: tuple[PositiveInt, PositiveInt, PositiveInt] = (128, 128, 144)
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = (1.0, 1.0, 1.0)
    percentiles: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 100.0)
    normalisation: Literal["range", "zero_mean"] = "range"
    crop: bool = True
    antialias: bool = True


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised."""

    name: Literal["dice", "dice_ce", "published_dice"] = "dice_ce"
    """dice: the paper's, without the background; dice_ce: with cross-entropy besides, as nnU-Net; published_dice: as the released code."""


@dataclass(kw_only=True)
class TrainConfig(TrainVolumesConfig):
    """Train on labelled volumes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    published: PublishedConfig | None = None
    """Train as published, on whole heads of one size; then preprocessing and window do not count."""
    loss: LossConfig = field(default_factory=LossConfig)
    output: Path = Path("runs/agunet")


@dataclass(kw_only=True)
class AGUNetEvaluateConfig(EvaluateVolumesConfig):
    """Score a bundle on labelled volumes: plainly, and by patients and objects as the paper does."""

    output: Path = Path("results/agunet")


@dataclass(kw_only=True)
class AGUNetServeConfig(ServeVolumesConfig):
    """Answer segmentations over HTTP: NIfTI, or a zipped DICOM series."""


@dataclass(kw_only=True)
class AGUNetPhantomConfig(HeadPhantomConfig):
    """Make head phantoms with meningiomas of known form and volume."""

    kind: Literal["glioma", "meningioma"] = "meningioma"


@dataclass(kw_only=True)
class AGUNetConvertConfig(ConvertConfig):
    """Turn a released model (model.h5 of the folders AGUNet and DAGUNet) into a bundle."""

    preparation: Path | None = None
    """The pre_processing.ini that belongs to it; by default the one beside it, else the published configuration."""

"""The settings of PraNet: the YAML under configs/pranet/ mirrors these classes key by key. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from shared.inference.config import ComputeConfig, ConvertConfig, InferConfig
from shared.serving.config import ServeConfig
from shared.training.config import FitConfig

__all__ = [
    "ConvertConfig",
    "DataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "LossConfig",
    "ModelConfig",
    "PhantomConfig",
    "PraNetInferConfig",
    "PraNetServeConfig",
    "TrainConfig",
]


@dataclass(kw_only=True)
class ModelConfig:
    """The network."""

    name: Literal["pranet", "unet"] = "pranet"
    """pranet is the published network; unet the baseline that users compare with."""
    backbone: str | None = None
    """pranet: any timm model with features at strides 8, 16 and 32 (default res2net50d, the paper's); unet: an encoder of
    segmentation-models-pytorch (default resnet34)."""
    channels: PositiveInt = 32
    """Width of PraNet's receptive-field blocks (paper, section 2.2)."""
    pretrained: bool = False
    """Start from ImageNet weights, downloaded from timm's hub (unet: segmentation-models-pytorch's)."""
    backbone_weights: Path | None = None
    """Start the backbone from this file instead, such as the Res2Net authors' res2net50_v1b_26w_4s-3cf99910.pth."""


@dataclass(kw_only=True)
class DataConfig:
    """The frames to train on."""

    root: Path = Path("data/pranet-train")
    """Folder with images/ and masks/ (or TrainDataset/ with these); pairs share a file stem."""
    phantoms: NonNegativeInt = 0
    """If root does not exist yet, make this many colonoscopy phantoms there first."""
    size: PositiveInt = 352
    """Side of the square that frames are resized to; a multiple of 32."""
    scales: tuple[PositiveFloat, ...] = (0.75, 1.0, 1.25)
    """Each batch is trained at each of these in turn, rounded to a multiple of 32 (paper, section 3.1)."""
    validation: Fraction = 0.1
    """Part of the frames kept for choosing the best epoch, the thresholds and the temperature."""
    group_pattern: str | None = None
    """A regular expression; frames whose stems match it with the same first group (a patient, a video) stay on one side of the split."""
    augment: bool = True
    """Random flips, quarter turns, small affine changes, colour and blur. The published recipe has none."""


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised."""

    name: Literal["structure", "published_structure"] = "structure"
    """structure is the paper's; published_structure what the released code computes (its cross-entropy is not weighted)."""


@dataclass(kw_only=True)
class TrainConfig:
    """Train on labelled frames."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    fit: FitConfig = field(default_factory=lambda: FitConfig(clip_value=0.5))
    """How long, on what, in which precision: the same for every app."""
    output: Path = Path("runs/pranet")
    """The run folder: settings, logs, checkpoints, a report, and the bundle in model/."""
    resume: Path | None = None
    """A run folder: go on from its last checkpoint, with its settings."""


@dataclass(kw_only=True)
class EvaluateConfig(ComputeConfig):
    """Score a bundle on labelled frames, as the paper does and plainly."""

    model: Path
    """A bundle."""
    data: Path
    """Folder with images/ and masks/, or a folder of such folders, one for each test set (TestDataset/Kvasir/images, ...)."""
    output: Path = Path("results/pranet")
    """Folder for metrics.json, cases.csv and report.html."""
    baseline: Path | None = None
    """A second bundle, scored beside the first."""
    bootstrap: NonNegativeInt = 2000
    """Resamples for the 95 % intervals; 0 leaves them out."""
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class PraNetInferConfig(InferConfig):
    """Segment images, folders or videos."""

    tta: bool = False
    """Average over flips, and write how much they disagree as an uncertainty map; takes four times as long."""
    threshold: Fraction | None = None
    """Probability from which a pixel is polyp; the bundle's own by default."""


@dataclass(kw_only=True)
class PraNetServeConfig(ServeConfig):
    """Answer predictions over HTTP."""


@dataclass(kw_only=True)
class ExportConfig:
    """Write a bundle in another format."""

    model: Path
    """A bundle."""
    output: Path
    """The file to write: .onnx or .pt2."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx for ONNX Runtime, OpenVINO and others; torch for torch.export."""
    size: PositiveInt | None = None
    """Side of the square input; the bundle's own by default. A multiple of 32."""
    batch_size: NonNegativeInt = 0
    """A fixed number of frames in a batch; 0 leaves it free."""


@dataclass(kw_only=True)
class PhantomConfig:
    """Make colonoscopy phantoms with known masks."""

    output: Path
    """A new folder; images/ and masks/ are made in it."""
    count: PositiveInt = 100
    seed: NonNegativeInt = 0
    height: PositiveInt = 352
    width: PositiveInt = 416
    empty_fraction: Fraction = 0.2
    """Part of the frames without a polyp."""

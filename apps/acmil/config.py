"""The settings of ACMIL: the YAML under configs/acmil/ mirrors these classes key by key. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apps.acmil.config_pipeline import EncoderConfig, TilingConfig
from shared.config import Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from shared.inference.config import ComputeConfig, ConvertConfig, InferConfig
from shared.serving.config import ServeConfig
from shared.training.config import FitConfig, OptimizerConfig, ScheduleConfig

__all__ = [
    "ACMILConvertConfig",
    "ACMILInferConfig",
    "ACMILServeConfig",
    "DataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ModelConfig",
    "PhantomConfig",
    "TrainConfig",
]

Name = Literal[
    "acmil_ga",
    "acmil_mha",
    "abmil",
    "mha",
    "mean",
    "max",
    "clam_sb",
    "clam_mb",
    "clam_mb_published",
    "transmil",
    "dtfd",
    "dsmil",
    "ibmil",
]


@dataclass(kw_only=True)
class ModelConfig:
    """The network that reads a bag of tile features."""

    name: Name = "acmil_ga"
    """acmil_ga and acmil_mha are the paper's; the others what it is compared with. clam_mb_published normalises its attention as the ACMIL
    repository does."""
    channels: PositiveInt | None = None
    """Width that the features are reduced to; the one that the authors pair with the features' width by default."""
    attention_channels: PositiveInt = 128
    """Hidden width of gated attention; 256 in the original CLAM."""
    blocks: NonNegativeInt = 0
    """Residual blocks of the reduction."""
    branches: PositiveInt = 5
    """acmil: attention branches."""
    top_instances: NonNegativeInt = 10
    """acmil: of how many of its highest-scoring tiles each branch has to do without some in training; 0 for none."""
    drop: Fraction = 0.6
    """acmil: which share of them."""
    dropout: Fraction | None = None
    """acmil_mha, mha, transmil: 0.1 by default; clam: 0.25."""
    samples: PositiveInt = 8
    """clam: tiles on each end for the second task."""
    subtyping: bool | None = None
    """clam: the classes exclude each other; by default if there are more than two."""
    instance_weight: Fraction = 0.3
    """clam: share of the second task in the loss. The ACMIL repository trains with 0."""
    groups: PositiveInt = 4
    """dtfd: pseudo-bags."""
    distillation: Literal["afs", "maxs", "maxmins"] = "afs"
    """dtfd: what a pseudo-bag hands on: its average, its highest tiles, or highest and lowest."""
    distilled: PositiveInt = 4
    """dtfd: tiles handed on from all pseudo-bags together, on each end."""
    prototypes: PositiveInt = 8
    """ibmil: how many."""
    first_stage: Path | None = None
    """ibmil: the bundle of an abmil trained on the same slides, whose bag features are clustered into the prototypes."""


@dataclass(kw_only=True)
class DataConfig:
    """The labelled slides."""

    root: Path = Path("data/acmil")
    """Folder with labels.csv and bags/ (HDF5, as `apps.acmil features`, CLAM and TRIDENT write them), or slides/ instead of bags/."""
    bags: Path | None = None
    """Folder of bags, if not ROOT/bags."""
    labels: Path | None = None
    """Table, if not ROOT/labels.csv: columns slide (or slide_id) and label, and if there are any patient (or case_id) and split."""
    phantoms: NonNegativeInt = 0
    """If root does not exist yet, make this many slide phantoms there first."""
    folds: NonNegativeInt = 0
    """Cross-validation by patient, stratified by label, into this many folds, of which ``fold`` is held out; 0: none is held out."""
    fold: NonNegativeInt = 0
    """Which fold is held out, from 0. It is scored once, after the training."""
    validation: Fraction = 0.2
    """Part of the other patients kept for choosing the best epoch."""
    splits: Path | None = None
    """A table of your own instead: split_<seed>.json as ACMIL writes it, or splits_<k>.csv as CLAM does."""
    balance: bool = True
    """Draw as many slides of each class, with replacement."""
    max_instances: PositiveInt | None = None
    """Train on at most this many tiles of a slide, drawn anew each time; all of them by default."""


@dataclass(kw_only=True)
class StopConfig:
    """When the training ends, and which epoch is kept."""

    select: Literal["loss", "score"] = "loss"
    """The epoch with the lowest validation loss, or with the highest sum of validation AUC and macro F1 (the paper's)."""
    patience: NonNegativeInt = 0
    """Stop after this many epochs without a better one; 0: train to the end."""
    not_before: NonNegativeInt = 0
    """Epochs before which the training never stops."""


@dataclass(kw_only=True)
class TrainConfig:
    """Train on labelled slides, of which the tiles' features are known."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    tiling: TilingConfig = field(default_factory=TilingConfig)
    """How slides are tiled: of the slides in ROOT/slides, and of those that the trained model is given later."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """What makes features of the tiles: as tiling."""
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=50,
            batch_size=1,
            optimizer=OptimizerConfig(name="adamw", lr=1e-4, weight_decay=1e-5),
            schedule=ScheduleConfig(name="cosine"),
        )
    )
    """How long, on what, in which precision: the same for every app. Slides differ in size, so that batch_size is 1; see accumulate."""
    output: Path = Path("runs/acmil")
    """The run folder: settings, logs, checkpoints, a report, and the bundle in model/."""
    resume: Path | None = None
    """A run folder: go on from its last checkpoint, with its settings."""


@dataclass(kw_only=True)
class EvaluateConfig(ComputeConfig):
    """Score a bundle on labelled slides, with intervals over patients."""

    model: Path
    """A bundle."""
    data: Path
    """Folder with labels.csv and bags/ or slides/."""
    bags: Path | None = None
    """Folder of bags or slides, if not in DATA."""
    labels: Path | None = None
    """Table, if not DATA/labels.csv."""
    split: str | None = None
    """Only the slides whose column split says this, such as test."""
    mpp: PositiveFloat | None = None
    """Micrometres per pixel of level 0, for slides that do not state it."""
    encoder_weights: Path | None = None
    """The encoder's weights, if it has any and slides are scored."""
    output: Path = Path("results/acmil")
    """Folder for metrics.json, slides.csv and report.html."""
    baseline: Path | None = None
    """A second bundle, scored beside the first."""
    bootstrap: NonNegativeInt = 2000
    """Resamples for the 95 % intervals; 0 leaves them out."""
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class ACMILInferConfig(InferConfig):
    """Predict for slides, or for bags of their features."""

    top: PositiveInt = 10
    """Tiles shown of each branch."""
    mpp: PositiveFloat | None = None
    """Micrometres per pixel of level 0, for slides that do not state it."""
    encoder_weights: Path | None = None
    """The encoder's weights, if it has any: a bundle holds only the network that reads its features."""
    batch_size: PositiveInt = 1
    """Slides read ahead together; each is computed on its own."""


@dataclass(kw_only=True)
class ACMILServeConfig(ServeConfig):
    """Answer predictions over HTTP."""

    mpp: PositiveFloat | None = None
    """Micrometres per pixel of level 0, for slides that do not state it."""
    encoder_weights: Path | None = None
    """The encoder's weights, if it has any."""
    max_upload_mb: PositiveFloat = 4096.0
    """Megabytes (10^6 bytes) of one request: slides are large."""
    timeout_s: PositiveFloat = 1800.0
    """Seconds to receive a request, and again to answer it: cutting a slide and making its features takes minutes."""
    max_pixels: PositiveInt = 10**12
    """Pixels of one slide; it is read by regions, never whole."""


@dataclass(kw_only=True)
class ExportConfig:
    """Write a bundle in another format."""

    model: Path
    """A bundle."""
    output: Path
    """The file to write: .onnx or .pt2."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx for ONNX Runtime, OpenVINO and others; torch for torch.export. The number of tiles stays free."""


@dataclass(kw_only=True)
class ACMILConvertConfig(ConvertConfig):
    """Turn the authors' checkpoints, of ACMIL or of what it is compared with, into a bundle."""

    classes: list[str] = field(default_factory=list)
    """Names of the classes in the order of the checkpoint's outputs."""
    encoder: str = ""
    """Name of the encoder that made the features, as in the bags; without it, bags of any encoder of that width are taken."""
    name: Name | None = None
    """What the checkpoint is of, where its names fit several: clam_mb_published."""


@dataclass(kw_only=True)
class PhantomConfig:
    """Make labelled phantoms: whole slides with and without tumour, or bags with known witnesses."""

    output: Path
    """A new folder; labels.csv, slides/ and bags/ are made in it."""
    kind: Literal["slides", "bags"] = "slides"
    """slides: pyramidal TIFF, and the bags of their tiles' features; bags: only features, drawn at random, with witnesses."""
    count: PositiveInt = 60
    seed: NonNegativeInt = 0
    side: PositiveInt = 1536
    """slides: width and height of level 0, in pixels of half a micrometre."""
    tiling: TilingConfig = field(default_factory=TilingConfig)
    """slides: how they are tiled."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """slides: what makes features of the tiles."""

"""The settings of the brain encoders: the YAML under configs/brain_encoders/ mirrors these classes key by key. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import Device, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from shared.inference.config import ComputeConfig, ConvertConfig, InferConfig
from shared.serving.config import ServeConfig
from shared.training.config import FitConfig, OptimizerConfig, ScheduleConfig

__all__ = [
    "BackboneConfig",
    "BrainConvertConfig",
    "BrainInferConfig",
    "BrainServeConfig",
    "CompareConfig",
    "DataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "GeneraliseConfig",
    "LossConfig",
    "ModelConfig",
    "PhantomConfig",
    "RidgeConfig",
    "SeriesConfig",
    "TrainConfig",
    "VoxelwiseConfig",
]


@dataclass(kw_only=True)
class BackboneConfig:
    """The frozen network whose features are read; the paper's DINOv2 by default."""

    source: Literal["timm", "transformers", "gabor"] = "timm"
    """Where the network comes from. gabor is a pyramid of Gabor wavelets, which needs no weights."""
    name: str = "vit_base_patch14_dinov2"
    """Of the model there; for transformers also a folder that save_pretrained wrote."""
    layer: str = "blocks.11.attn.qkv"
    """Any module of the network by name; what it answers is the features."""
    part: Literal["whole", "query", "key", "value"] = "query"
    """A third of the layer's channels, where it computes all three at once."""
    norm: str = ""
    """A module that is applied to the layer's answer, such as norm."""
    size: PositiveInt = 425
    """Side of the square that images are resized to."""
    multiple: PositiveInt = 14
    """Images are then padded at the bottom and the right, with zeros after normalisation, to a multiple of this."""
    pretrained: bool = False
    """Take the published weights, which downloads them."""
    weights: Path | None = None
    """Take the weights from this file instead, such as dinov2_vitb14_pretrain.pth."""
    options: tuple[str, ...] = ()
    """Other arguments of the network, as "depth=3"."""


@dataclass(kw_only=True)
class ModelConfig:
    """What reads the features."""

    name: Literal["transformer", "custom_transformer", "factorised", "linear", "ridge"] = "transformer"
    """transformer is the paper's; the next three are what it compares with; ridge is voxelwise ridge regression."""
    queries: Literal["regions", "hemispheres", "units"] = "regions"
    """What has a query: each region of each hemisphere, each hemisphere, or each vertex or voxel."""
    overlap: Literal["mean", "sum"] = "mean"
    """A unit of several regions reads the mean of their tokens; or their sum, biases and all, as published."""
    channels: PositiveInt = 768
    heads: PositiveInt = 16
    inner_channels: PositiveInt = 1024
    encoder_layers: NonNegativeInt = 0
    decoder_layers: PositiveInt = 1
    norm_first: bool = True
    memory_layer: int = -1
    """Which encoder layer is read; -1 the last."""
    stride: PositiveInt = 3
    """Of the linear readout's convolution."""


@dataclass(kw_only=True)
class RidgeConfig:
    """Ridge regression."""

    pool: PositiveInt = 1
    """Features are averaged to this many rows and columns before they are flattened; 1 is the mean over the image."""
    projection: Literal["none", "pca", "random"] = "pca"
    """Of the flattened features, fitted on the training images alone; random is a sparse random projection."""
    components: PositiveInt = 256
    """After the projection; at most as many as there are training images."""
    alphas: tuple[PositiveFloat, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
    """Penalties to choose from for each unit, on features of unit variance."""
    folds: PositiveInt = 5
    """Of the cross-validation that chooses; presentations of one image stay together."""


@dataclass(kw_only=True)
class DataConfig:
    """Stimuli and responses."""

    root: Path = Path("data/algonauts-2023/subj01")
    """A study: a folder of the Algonauts challenge, of BOLD5000 or Pereira's, or of our own layout (README)."""
    phantoms: NonNegativeInt = 0
    """If root does not exist yet, make a phantom brain there that has seen this many pictures."""
    subject: str = ""
    """Of a folder with several, such as CSI1 of BOLD5000 or P01 of Pereira's."""
    validation: Fraction = 0.1
    """Part of the training images kept for choosing the epoch; of ridge, for the scores that an ensemble trusts."""
    cache: Path | None = Path("cache/features")
    """Folder for the backbone's features, by content of image and backbone; null computes them anew in each epoch."""
    allow_repeats: bool = False
    """Go on though test images are also fitted: scores are then not those of new images."""
    bad_units: Literal["refuse", "drop"] = "refuse"
    """What to do with units whose responses are constant or not numbers."""


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised."""

    penalty: NonNegativeFloat = 0.02
    """Times the sum of the norms of the linear readout's weights (published); the other models have none."""


@dataclass(kw_only=True)
class TrainConfig:
    """Fit an encoder to responses."""

    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    ridge: RidgeConfig = field(default_factory=RidgeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=15,
            batch_size=16,
            optimizer=OptimizerConfig(name="adamw", lr=5e-4, weight_decay=1e-4),
            schedule=ScheduleConfig(name="step", every=4, gamma=0.5),
            clip_norm=0.1,
        )
    )
    """How long, on what, in which precision: the same for every app. Ridge takes the seed of it."""
    output: Path = Path("runs/brain_encoders")
    """The run folder: settings, logs, checkpoints, a report, and the bundle in model/."""
    resume: Path | None = None
    """A run folder: go on from its last checkpoint, with its settings."""


@dataclass(kw_only=True)
class EvaluateConfig(ComputeConfig):
    """Score bundles on held-out images: correlation, R2, noise-ceiling-normalised scores and 2V2, by region."""

    model: list[Path]
    """One bundle, or several of the same units: then each of them and their ensemble are scored."""
    data: Path
    """A study; its test images are scored."""
    subject: str = ""
    output: Path = Path("results/brain_encoders")
    """Folder for metrics.json, units.csv, regions.csv, maps and report.html."""
    sharpness: NonNegativeFloat = 50.0
    """How strongly each unit of an ensemble trusts the bundles that predicted its validation images best."""
    permutations: NonNegativeInt = 1000
    """Of the images, for p-values; 0 leaves them out."""
    allow_repeats: bool = False
    """Go on though test images were also fitted."""
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class GeneraliseConfig(ComputeConfig):
    """Cross-subject generalisation: how well each subject's encoder predicts each subject's responses, on the units that all have."""

    model: list[Path]
    """A bundle of each subject."""
    data: list[Path]
    """The study of each, in the same order; its test images are scored."""
    output: Path = Path("results/generalisation")
    """Folder for generalisation.csv, units.csv, metrics.json, generalisation.png, maps and report.html."""
    allow_repeats: bool = False
    """Go on though test images of one subject were fitted for another: scores are then not those of new images."""


@dataclass(kw_only=True)
class BrainInferConfig(InferConfig):
    """Predict the responses to images or to the frames of videos."""

    formats: tuple[Literal["gifti", "nifti", "cifti"], ...] = ("gifti", "nifti")
    """Which brain files to write, of those that the bundle's units allow. The array (.npy) and the table of regions (.csv) always come."""
    routing: bool = False
    """Also draw which part of the image each region looked at."""


@dataclass(kw_only=True)
class BrainServeConfig(ServeConfig):
    """Answer predictions over HTTP."""


@dataclass(kw_only=True)
class BrainConvertConfig(ConvertConfig):
    """Turn a checkpoint of the transformer brain encoder's program into a bundle."""

    subject: Path | None = None
    """The Algonauts folder that it was trained on, for regions and vertices; or an .npz with lh and rh, [regions, vertices] each."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Its backbone: the authors' files hold none."""
    heads: PositiveInt = 16
    """Attention heads; the shapes of the weights do not tell."""
    norm_first: bool = True
    """The program's pre_norm."""
    memory_layer: int = -1
    """The program's enc_output_layer, if there are encoder layers."""


@dataclass(kw_only=True)
class ExportConfig:
    """Write a bundle in another format: images in, responses out."""

    model: Path
    """A bundle."""
    output: Path
    """The file to write: .onnx or .pt2."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx for ONNX Runtime, OpenVINO and others; torch for torch.export."""
    batch_size: NonNegativeInt = 0
    """A fixed number of images in a batch; 0 leaves it free."""


@dataclass(kw_only=True)
class PhantomConfig:
    """Make a phantom brain: pictures that it has seen, and responses with a known encoding."""

    output: Path
    """A new folder."""
    count: PositiveInt = 240
    """Pictures to train on, shown once."""
    test: PositiveInt = 40
    """Other pictures, shown ``repeats`` times."""
    repeats: PositiveInt = 3
    size: PositiveInt = 96
    """Side of the pictures in pixels."""
    signal_share: Fraction = 0.4
    """Mean part of a presentation's variance that is signal."""
    space: Literal["surface", "volume"] = "surface"
    """fsaverage5, or a grid of 4 mm in MNI space."""
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class SeriesConfig:
    """Fit time series: events or their pictures to BOLD that fMRIPrep has preprocessed, scored on runs left out."""

    derivatives: Path
    """fMRIPrep's output folder."""
    raw: Path | None = None
    """The BIDS data set itself: events tables, and pictures below stimuli/."""
    subject: str
    """Without sub-."""
    task: str = ""
    """Without task-; needed where there are several."""
    space: str = ""
    """Such as MNI152NLin2009cAsym or fsaverage5; needed where there are several."""
    kind: Literal["volume", "surface", "cifti"] = "volume"
    """Which files to read: .nii.gz with its brain mask, .func.gii of both hemispheres, or .dtseries.nii."""
    features: Literal["events", "images"] = "events"
    """events: one regressor for each trial_type; images: the backbone's features of each stim_file."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    components: PositiveInt = 64
    """Of the pictures' features."""
    cache: Path | None = Path("cache/features")
    """Folder for the backbone's features."""
    delays: tuple[NonNegativeInt, ...] = (1, 2, 3, 4)
    """Volumes between a stimulus and the responses that it may cause."""
    confounds: bool = True
    """Take out fMRIPrep's head motion, white matter and CSF."""
    alphas: tuple[PositiveFloat, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    folds: PositiveInt = 5
    """Blocks of a single run; several runs are left out one by one."""
    permutations: PositiveInt = 1000
    output: Path = Path("results/series")
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class CompareConfig:
    """Compare feature spaces on one study, alone and together: image, text and joint models, with published and leakage-safe folds."""

    data: DataConfig = field(default_factory=DataConfig)
    spaces: tuple[Literal["image", "text", "joint", "light"], ...] = ("image", "text")
    """light is mean and spread of the pictures' colours, for a floor. Of two or three spaces the shared variance is found too."""
    joined: tuple[Literal["concatenated", "stacked", "banded"], ...] = ("concatenated", "stacked")
    """How several spaces also predict together. concatenated: one penalty for all features; stacked: the spaces' predictions, mixed for
    each unit; banded: a penalty for each space, which also says how much of R2 comes from which space. Every unit has its own choice."""
    search: PositiveInt = 10
    """banded: how many mixtures of penalties are tried, in each of ten folds. One in one fold took 33 s on two cores for 4,000
    presentations, 1,000 units and two spaces of 768 features: an hour for 10 mixtures."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Of image."""
    text_model: str = "bert-base-uncased"
    """A transformers model, or a folder with its files; reads the captions."""
    text_layer: str = ""
    """A module of it by name; empty: the last hidden states."""
    text_pooling: Literal["mean", "first", "pooler"] = "mean"
    joint_model: str = "openai/clip-vit-base-patch32"
    """A transformers model of pictures with captions, or a folder with its files."""
    permutations: NonNegativeInt = 1000
    """Of the pictures, for what is predicted above chance: of few, none can be rare enough. 0 takes units with R2 above 0 instead."""
    output: Path = Path("results/spaces")
    """Folder for spaces.csv, units.csv, regions.csv, metrics.json, maps and report.html."""
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class CategoriesConfig:
    """Fit category encoders to a block design in the layout of OpenFMRI (Haxby et al. 2001), scored on runs left out."""

    data: Path
    """The data set's folder, with sub001/BOLD/task001_run001 and so on below it."""
    subject: str = "sub001"
    bold: str = "bold.nii.gz"
    """The name of the series in each run's folder."""
    mask: Path | None = None
    """A mask on the series' grid; without, all voxels that vary."""
    fit_runs: tuple[PositiveInt, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    test_runs: tuple[PositiveInt, ...] = (11, 12)
    delays: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Volumes between a picture and the responses that it may cause; below 0 where the events are those of the responses already."""
    alphas: tuple[PositiveFloat, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    permutations: PositiveInt = 2000
    block: PositiveInt = 10
    """Volumes that change places together in the permutation test; a response outlasts several."""
    output: Path = Path("results/categories")
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class SimilarityConfig:
    """Compare measured dissimilarities (RDMs) with simple models of the pictures and of their categories."""

    rdms: Path
    """An .npz with one array [..., n, n]; leading axes (sessions last) are averaged down to subjects [s, n, n]."""
    stimuli: Path
    """Folder of the n pictures, in the order of their names."""
    labels: Path | None = None
    """A JSON list of n objects; each of their keys but "file" becomes a model: equal or not."""
    similarity: Literal["spearman", "pearson", "kendall_tau_a"] = "spearman"
    permutations: PositiveInt = 1000
    output: Path = Path("results/similarity")
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class VoxelwiseConfig:
    """Fit a whole brain by ridge from tables on disk, voxel block by voxel block; the same command goes on where it stopped."""

    features: Path
    """.npy [stimuli, features]; rows that are equal are one stimulus shown again, and stay together in the cross-validation."""
    responses: Path
    """.npy or .h5 [stimuli, voxels]; never read as a whole."""
    key: str | None = None
    """The data set in an HDF5 file."""
    voxels_first: bool = False
    """The responses are [voxels, stimuli]: fastest to read."""
    test_features: Path | None = None
    """Other stimuli, on which each voxel's correlation and R2 are measured."""
    test_responses: Path | None = None
    allow_repeats: bool = False
    """Go on though test stimuli are also fitted: scores are then not those of new stimuli."""
    runs: tuple[PositiveInt, ...] = ()
    """Time series: the number of rows of each run; penalties are then chosen by leaving out each run in turn."""
    folds: PositiveInt = 5
    """Of the cross-validation, without runs."""
    alphas: tuple[PositiveFloat, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
    """Penalties to choose from for each voxel, added to the features' sums of squares."""
    voxels_at_once: PositiveInt = 4096
    """In a block, which is the unit of memory, of resuming, and of the work of a machine."""
    engine: Literal["local", "ray"] = "local"
    """ray spreads the blocks over the machines of a Ray cluster; all must see the same files."""
    workers: PositiveInt = 2
    """ray: processes at work at once; each holds what depends on the features."""
    device: Device = "auto"
    output: Path = Path("results/voxelwise")
    """A folder. If it holds some of this fit's blocks already, only the missing ones are made."""
    seed: NonNegativeInt = 0

"""The settings that every app for volumes shares; their YAML mirrors these classes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from shared.errors import UserError
from shared.inference.config import ComputeConfig, InferConfig
from shared.phantoms.head_settings import HeadSequence, LesionKind
from shared.serving.config import ServeConfig
from shared.training.config import FitConfig

__all__ = [
    "EvaluateVolumesConfig",
    "ExportConfig",
    "GrowthConfig",
    "HeadPhantomConfig",
    "InferVolumesConfig",
    "PreprocessingConfig",
    "SamplingConfig",
    "ServeVolumesConfig",
    "TaskConfig",
    "TrainVolumesConfig",
    "VolumeDataConfig",
    "WindowConfig",
    "check_task",
]

Normalisation = Literal["foreground", "all", "range"]


@dataclass(kw_only=True)
class TaskConfig:
    """What goes in and what comes out."""

    modalities: dict[str, list[str]] = field(default_factory=lambda: {"t1ce": ["t1ce", "t1c", "t1gd"]})
    """The sequences that the network takes, in the order of its channels, and the words in file names that stand for each."""
    channels: list[str] | None = None
    """The order in which a file with several channels holds them; that of ``modalities`` by default."""
    labels: dict[str, list[int]] = field(default_factory=lambda: {"tumour": [1]})
    """The classes, and the values in label maps that belong to each. Results are written with the first value of each."""
    overlapping: bool = False
    """Classes may overlap, as the nested regions of BraTS: one probability for each. In a label map later ones lie over earlier ones."""


@dataclass(kw_only=True)
class PreprocessingConfig:
    """From a file's voxels to the network's."""

    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = (1.0, 1.0, 1.0)
    """Along right, front and head; None: the volume's own spacing."""
    crop: bool = True
    """To the box around what is not air or zeroed background. False for volumes that are cut out already."""
    normalisation: Normalisation = "foreground"
    """Zero mean and unit deviation of each channel over the foreground or over all voxels; range: 0 to 1 over all voxels."""


@dataclass(kw_only=True)
class WindowConfig:
    """What the network sees at once."""

    size: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    """Voxels along right, front and head, for training and for prediction."""
    overlap: Fraction = 0.5
    """The part of a window that the next one covers; below 1."""


@dataclass(kw_only=True)
class SamplingConfig:
    """What training makes of a volume."""

    patches: PositiveInt = 4
    """Windows taken from each volume in an epoch."""
    foreground: Fraction = 0.5
    """How often a window is laid around a labelled voxel."""
    augment: bool = True
    """Turning up to 20 degrees, zoom 0.8 to 1.2, contrast, brightness, noise, blur; each for a part of the windows."""
    flip_axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    """Mirrored half of the time: 0 right-left, 1 front-back, 2 head-feet. Also those of test-time augmentation."""


@dataclass(kw_only=True)
class VolumeDataConfig:
    """The labelled volumes to train on."""

    root: Path = Path("data/volumes")
    """A folder of cases (case/case_t1ce.nii.gz, ..., case/case_seg.nii.gz), or images and labels in two folders (imagesTr, labelsTr)."""
    phantoms: NonNegativeInt = 0
    """If root does not exist yet, make this many head phantoms there first."""
    phantom_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    phantom_spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Of the phantoms; by default drawn anew for each."""
    validation: Fraction = 0.15
    """Part of the patients kept for choosing the best epoch and the threshold."""
    group_pattern: str | None = None
    """A regular expression; cases whose names match it with the same first group (the patient) stay on one side of the split."""
    fold: NonNegativeInt | None = None
    """Of a cross-validation: keep this of ``folds`` parts for validation instead of ``validation``."""
    folds: PositiveInt = 5


@dataclass(kw_only=True)
class TrainVolumesConfig:
    """What every training on volumes has, besides the network and the loss."""

    task: TaskConfig = field(default_factory=TaskConfig)
    data: VolumeDataConfig = field(default_factory=VolumeDataConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    fit: FitConfig = field(default_factory=lambda: FitConfig(batch_size=2))
    """How long, on what, in which precision: the same for every app."""
    minimum_ml: NonNegativeFloat = 0.0
    """The bundle drops lesions smaller than this."""
    lesion: bool = True
    """Whether the classes are parts of lesions, or anatomy."""
    output: Path
    """The run folder: settings, logs, checkpoints, a report, and the bundle in model/."""
    resume: Path | None = None
    """A run folder: go on from its last checkpoint, with its settings."""


@dataclass(kw_only=True)
class InferVolumesConfig(InferConfig):
    """Segment volumes, DICOM series or cases of several files."""

    batch_size: PositiveInt = 4
    """Windows computed together."""
    tta: bool = False
    """Average over mirror images."""
    threshold: Fraction | None = None
    """Probability from which a voxel is labelled; the bundle's own by default."""
    minimum_ml: NonNegativeFloat | None = None
    """Lesions smaller than this are dropped; the bundle's own by default."""
    uncertainty: bool = True
    """Write a volume of the entropy of the probabilities, 0 (sure) to 1."""
    probability: bool = False
    """Write the probabilities of the classes, too."""
    report: bool = True
    """Write a page for each patient."""


@dataclass(kw_only=True)
class EvaluateVolumesConfig(ComputeConfig):
    """Score a bundle on labelled volumes."""

    model: Path
    """A bundle."""
    data: Path
    """Labelled volumes, as for training."""
    output: Path
    """Folder for metrics.json, cases.csv and report.html."""
    baseline: Path | None = None
    """A second bundle of this app, scored beside the first."""
    batch_size: PositiveInt = 4
    """Windows computed together."""
    tta: bool = False
    bootstrap: NonNegativeInt = 2000
    """Resamples for the 95 % intervals; 0 leaves them out."""
    group_pattern: str | None = None
    """A regular expression; scans whose names match it with the same first group are one patient's. Intervals are over patients."""
    seed: NonNegativeInt = 0


@dataclass(kw_only=True)
class ServeVolumesConfig(ServeConfig):
    """Answer segmentations over HTTP: uploads are larger than pictures, and take longer."""

    max_upload_mb: PositiveFloat = 512.0
    timeout_s: PositiveFloat = 600.0
    batch_size: PositiveInt = 1
    queue_size: PositiveInt = 4


@dataclass(kw_only=True)
class GrowthConfig(ComputeConfig):
    """Compare two scans of one patient."""

    model: Path
    """A bundle."""
    before: Path
    """The earlier scan: a file, a DICOM series, or a folder with a case."""
    after: Path
    """The later scan, registered to the earlier one."""
    output: Path
    """A folder for both segmentations, growth.json and growth.html."""
    date_before: str | None = None
    """As 2024-03-31; taken from DICOM where it is there."""
    date_after: str | None = None
    batch_size: PositiveInt = 4
    """Windows computed together."""


@dataclass(kw_only=True)
class ExportConfig:
    """Write a bundle in another format."""

    model: Path
    """A bundle."""
    output: Path
    """The file to write: .onnx or .pt2."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx for ONNX Runtime and others; torch for torch.export."""
    size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Voxels of a window; the bundle's own by default."""


@dataclass(kw_only=True)
class HeadPhantomConfig:
    """Make head phantoms with lesions of known form and volume."""

    output: Path
    """A new folder; a folder for each case and truth.json are made in it."""
    count: PositiveInt = 20
    seed: NonNegativeInt = 0
    kind: LesionKind = "glioma"
    sequences: tuple[HeadSequence, ...] | None = None
    """Those that this app takes by default."""
    empty_fraction: Fraction | None = None
    """Part of the cases without a lesion; drawn by default."""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Of the voxels; drawn by default, as is the orientation."""
    volume_ml: tuple[PositiveFloat, PositiveFloat] = (2.0, 40.0)
    """Smallest and largest lesion."""
    skull_stripped: bool = False
    follow_up: bool = False
    """Two scans of each patient, between which the lesions grow or shrink."""


def check_task(task: TaskConfig) -> None:
    """Raises UserError where the task contradicts itself; names the key."""
    if not task.modalities or not task.labels:
        raise UserError("task.modalities and task.labels must each name at least one entry.")
    values = [value for several in task.labels.values() for value in several]
    if not all(task.labels.values()) or any(not 1 <= value <= 255 for value in values):
        raise UserError(f"task.labels needs values from 1 to 255 for every class, found {task.labels}.")
    firsts = [several[0] for several in task.labels.values()]
    if len(set(firsts)) < len(firsts) or (not task.overlapping and len(set(values)) < len(values)):
        raise UserError(
            f"task.labels gives one value to two classes ({task.labels}); with task.overlapping only the first ones must differ."
        )
    if task.channels is not None and sorted(task.channels) != sorted(task.modalities):
        raise UserError(f"task.channels must name each of {', '.join(task.modalities)} once, found {', '.join(task.channels)}.")

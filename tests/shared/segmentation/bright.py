"""A predictor without training, whose answers can be told beforehand: what is bright is found. And volumes with bright blocks in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import nn

from shared.imaging.volumes import Volume
from shared.segmentation.config import PreprocessingConfig, TaskConfig, WindowConfig
from shared.segmentation.labels import Labels
from shared.segmentation.predictor import Options, SegmentationSettings, VolumePredictor

__all__ = ["AFFINE", "BRATS_TASK", "BrightPredictor", "block", "bright_predictor", "scan", "settings", "write_case", "write_volume"]

AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])
"""A voxel is 0.01 ml."""

BRATS_TASK = TaskConfig(
    modalities={"flair": ["flair"], "t1ce": ["t1ce"]},
    labels={"whole tumour": [2, 1, 4], "tumour core": [1, 4], "enhancing tumour": [4]},
    overlapping=True,
)
"""Nested regions of a map in which 1 is the necrotic core, 2 oedema and 4 the enhancing rim."""


class BrightPredictor(VolumePredictor):
    """``model`` says from which prepared value on ("level") and how surely ("slope") a voxel belongs to every class."""

    app = "bright"

    @classmethod
    def build(cls, model: Mapping[str, Any], labels: Labels) -> nn.Module:
        level, slope = float(model["level"]), float(model["slope"])
        conv = nn.Conv3d(len(labels.task.modalities), labels.channels, 1)
        with torch.no_grad():
            conv.weight.zero_()
            conv.bias.zero_()
            conv.weight[-len(labels.names) :, 0] = slope
            conv.bias[-len(labels.names) :] = -slope * level
        return nn.Sequential(conv)

    @property
    def name(self) -> str:
        return "Bright"

    def write_card(self) -> str:
        return "# Bright\n"


def settings(**changes: Any) -> SegmentationSettings:
    """Windows smaller than the volumes; voxels as they are, scaled to 0 to 1."""
    preprocessing = PreprocessingConfig(spacing_mm=None, crop=False, normalisation="range")
    given = {"task": TaskConfig(), "preprocessing": preprocessing, "window": WindowConfig(size=(8, 8, 8))}
    return SegmentationSettings(**{**given, **changes})


def bright_predictor(*, level: float = 0.5, slope: float = 40.0, options: Options | None = None, **changes: Any) -> BrightPredictor:
    """``changes`` are those of ``settings``."""
    model, chosen = {"level": level, "slope": slope}, settings(**changes)
    return BrightPredictor(BrightPredictor.build(model, Labels(chosen.task)), model=model, settings=chosen, options=options)


def block(start: Sequence[int], stop: Sequence[int], shape: Sequence[int] = (14, 12, 10)) -> np.ndarray:
    """bool [X, Y, Z]: True in a box."""
    mask = np.zeros(tuple(shape), bool)
    mask[tuple(slice(low, high) for low, high in zip(start, stop, strict=True))] = True
    return mask


def scan(bright: np.ndarray, affine: np.ndarray = AFFINE) -> Volume:
    """100 to 110 where ``bright``, else 10 to 20; not the same everywhere, as no scan is."""
    noise = np.random.default_rng(0).uniform(0, 10, bright.shape)
    return Volume(values=(10 + 90 * bright + noise).astype(np.float32), affine=affine)


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


def write_case(folder: Path, name: str, truth: np.ndarray, *, found: np.ndarray | None = None) -> None:
    """``folder/name/name_t1ce.nii.gz`` and ``name_seg.nii.gz``; bright where ``found``, by default where the truth is."""
    write_volume(folder / name / f"{name}_t1ce.nii.gz", scan(truth if found is None else found).values)
    write_volume(folder / name / f"{name}_seg.nii.gz", truth.astype(np.uint8))

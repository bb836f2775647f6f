"""What contracts of apps for volumes compare: voxels and their places, not headers, which are those of the source's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

__all__ = ["grid", "grid_of_results", "mean_dice", "same_labels"]


def grid(shape: Sequence[int], affine: np.ndarray) -> Any:
    """Comparable by ``==``. To a thousandth of a millimetre: NIfTI keeps numbers in 32 bits, DICOM as text."""
    return tuple(int(size) for size in shape), tuple(np.round(affine, 3).ravel().tolist())


def grid_of_results(files: Mapping[str, Path], *, volumes: int = 2) -> Any:
    """Of all volumes among the files of one result; fails if they differ or are not so many."""
    images = [nibabel.load(path) for path in files.values() if path.name.endswith(".nii.gz")]
    found = {grid(image.shape, np.asarray(image.affine)) for image in images}
    assert len(images) == volumes, files
    assert len(found) == 1, found
    return found.pop()


def same_labels(path: Path) -> Any:
    """Of a label map: voxels and grid."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj).tobytes(), grid(image.shape, np.asarray(image.affine))


def mean_dice(output: Path) -> tuple[float, float]:
    """Of evaluate's output folder: mean Dice of the model, and of the best answer that needs no model."""
    found = json.loads((output / "metrics.json").read_text())
    return found["model"]["dice"]["estimate"], max(found["trivial_dice"].values())

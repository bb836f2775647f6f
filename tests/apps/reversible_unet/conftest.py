"""Small cases in the layout of BraTS, and a bundle that was trained on them for a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest

from shared.phantoms.head_settings import SEQUENCES
from tests.commands import Answer, run_here

AFFINE = np.array([[-4.0, 0, 0, 40], [0, -4.0, 0, 60], [0, 0, 4.0, -20], [0, 0, 0, 1]])
"""As BraTS has them: axes to the left, the back and the head; voxels of 4 mm."""
SHAPE = (20, 24, 18)


def tumour(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four sequences int16 [4, X, Y, Z], zero outside the brain, and labels uint8: a core (1) in a rim (4) in oedema (2)."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")

    def distance(centre: Sequence[float], scale: float = 1) -> np.ndarray:
        return np.sqrt(sum(((axis - at) / scale) ** 2 for axis, at in zip(axes, centre, strict=True)))

    brain = distance([10, 12, 9]) < 9
    radius = distance(rng.uniform([7, 9, 7], [13, 15, 11]))
    labels = np.select([radius < 2, radius < 3.2, (radius < 5) & brain], [1, 4, 2], 0).astype(np.uint8)
    tissue = 100 + 10 * rng.standard_normal((4, *SHAPE))
    tissue += np.array([-20, 0, 80, 100])[:, None, None, None] * (labels > 0)
    tissue[1] += 150 * (labels == 4)
    return np.where(brain | (labels > 0), np.maximum(tissue, 1), 0).astype(np.int16), labels


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)


def write_case(root: Path, name: str, values: np.ndarray, labels: np.ndarray | None, *, words: Sequence[str] = SEQUENCES) -> Path:
    """``name/name_t1.nii.gz`` and so on."""
    for word, one in zip(words, values, strict=True):
        save(root / name / f"{name}_{word}.nii.gz", one)
    if labels is not None:
        save(root / name / f"{name}_seg.nii.gz", labels)
    return root / name


@pytest.fixture(scope="session")
def reversible() -> Callable[..., Answer]:
    """The command line."""
    return partial(run_here, "reversible_unet")


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases; not to be changed."""
    root = tmp_path_factory.mktemp("reversible") / "cases"
    for number in range(6):
        write_case(root, f"p{number}", *tumour(number))
    return root


SMALL = (
    *("--model.channels", "[4,8]", "--preprocessing.spacing_mm", "[4,4,4]", "--window.size", "[16,16,16]", "--sampling.patches", 1),
    *("--sampling.augment", "false", "--fit.batch_size", 2, "--fit.optimizer.lr", 0.02, "--data.validation", 0.3),
)
"""A training of a moment."""


@pytest.fixture(scope="session")
def run(cases: Path, reversible: Callable[..., Answer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; not to be changed."""
    folder = tmp_path_factory.mktemp("reversible") / "run"
    answer = reversible("train", "--data.root", cases, "--output", folder, *SMALL, "--fit.epochs", 8)
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture(scope="session")
def bundle(run: Path) -> Path:
    """Not to be changed."""
    return run / "model"

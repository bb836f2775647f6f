"""Training, evaluation and inference are of one mind: what was trained is what is scored, and what is scored is what is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from shared.metrics.segmentation import confusion
from tests.apps.reversible_unet.conftest import AFFINE, SHAPE, SMALL, tumour, write_case
from tests.commands import Answer

Command = Callable[..., Answer]
REGIONS = {"whole tumour": (1, 2, 4), "tumour core": (1, 4), "enhancing tumour": (4,)}


@pytest.fixture(scope="module")
def scored(bundle: Path, cases: Path, reversible: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scored") / "scores"
    answer = reversible("evaluate", "--model", bundle, "--data", cases, "--output", output, "--bootstrap", 20)
    assert answer.code == 0, answer.err
    return output


@pytest.fixture(scope="module")
def inferred(bundle: Path, cases: Path, reversible: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("inferred") / "results"
    answer = reversible("infer", "--model", bundle, "--input", cases, "--output", output, "--report", "false")
    assert answer.code == 0, answer.err
    return output


def test_what_is_scored_is_what_is_written(scored: Path, inferred: Path, cases: Path) -> None:
    """The Dice of every region of every case, from the files; metrics keep six digits."""
    rows = list(csv.DictReader((scored / "cases.csv").open()))
    assert len(rows) == 6 * len(REGIONS)
    for row in rows:
        written = nibabel.load(next(inferred.rglob(f"{row['case']}_segmentation.nii.gz")))
        truth = np.asarray(nibabel.load(cases / row["case"] / f"{row['case']}_seg.nii.gz").dataobj)
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
        predicted = np.asarray(written.dataobj)
        assert predicted.shape == SHAPE
        assert set(np.unique(predicted)) <= {0, 1, 2, 4}
        values = REGIONS[row["class"]]
        assert float(row["dice"]) == pytest.approx(confusion(np.isin(predicted, values), np.isin(truth, values)).dice, abs=1e-5)


def test_the_regions_are_scored_as_the_challenge_does_too(scored: Path) -> None:
    found = json.loads((scored / "metrics.json").read_text())
    assert set(found["model"]["class_dice"]) == set(REGIONS)
    regions = found["cohort"]["model"]
    assert len(regions) == len(REGIONS)
    for region, plain in zip(regions.values(), found["model"]["class_dice"].values(), strict=True):
        assert region["dice"]["estimate"] == pytest.approx(plain["estimate"], abs=1e-6)  # no case here is without a region
    assert (scored / "report.html").stat().st_size > 10_000


def test_a_momentary_training_finds_whole_tumours_better_than_no_network(scored: Path) -> None:
    found = json.loads((scored / "metrics.json").read_text())
    assert found["model"]["class_dice"]["whole tumour"]["estimate"] > max(found["trivial_dice"].values())


def test_a_case_with_a_value_of_no_class_is_named_and_the_others_are_trained_on(cases: Path, reversible: Command, tmp_path: Path) -> None:
    for name in ("p0", "p1"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(cases / name)
    for name, seed in (("p2", 2), ("p3", 3)):
        values, labels = tumour(seed)
        write_case(tmp_path / "data", name, values, np.where(labels == 4, 3, labels) if name == "p2" else labels)
    words = ("train", "--data.root", tmp_path / "data", "--output", tmp_path / "run", *SMALL, "--fit.epochs", 1, "--data.validation", 0.5)
    answer = reversible(*words)
    assert answer.code == 0, answer.err
    assert f"left out: {tmp_path / 'data' / 'p2' / 'p2_seg.nii.gz'}: holds the value 3, which is no class of this task" in answer.out
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()

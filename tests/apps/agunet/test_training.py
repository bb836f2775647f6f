"""A training by command: our recipe and the published one, with the parts of the paper on and off; what is left is a bundle that works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from apps.agunet import AGUNetPredictor
from tests.apps.agunet.conftest import SMALL
from tests.commands import Answer

Command = Callable[..., Answer]
FIT = ("--fit.optimizer.lr", 0.02, "--fit.batch_size", 2, "--data.validation", 0.3)


def test_what_is_bright_is_learnt_within_a_minute_and_scored(scans: Path, agunet: Command, tmp_path: Path) -> None:
    words = ("--sampling.augment", "false", "--sampling.foreground", 1, "--fit.epochs", 12)
    answer = agunet("train", "--data.root", scans, "--output", "run", *SMALL, *FIT, *words)
    assert answer.code == 0, answer.err
    assert "4 volumes to train on, 2 to validate on" in answer.out
    assert not (tmp_path / "run" / "prepared").exists()
    facts = json.loads((tmp_path / "run" / "model" / "provenance.json").read_text())
    assert facts["volumes"] == [4, 2]
    assert facts["metrics"]["dice"]["tumour"] > 0.8
    answer = agunet("evaluate", "--model", "run/model", "--data", scans, "--output", "scores", "--bootstrap", 50)
    assert answer.code == 0, answer.err
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["model"]["dice"]["estimate"] > 0.8 > max(metrics["trivial_dice"].values())
    assert "patient F1" in answer.out
    assert metrics["cohort"]["model"]["recall_by_volume"]["patients"]


@pytest.mark.parametrize(
    "words",
    [
        ("--model.name", "daunet", "--loss.name", "dice", "--model.dual_attention", "false", "--model.guidance", "false"),
        ("--model.name", "unet", "--loss.name", "published_dice"),
        ("--model.attention_gates", "false", "--model.deep_supervision", "false", "--model.multi_scale_input", "false"),
    ],
    ids=["daunet", "unet", "agunet"],
)
def test_networks_with_parts_switched_off_are_trained_and_saved(
    words: tuple[object, ...], scans: Path, agunet: Command, tmp_path: Path
) -> None:
    answer = agunet("train", "--data.root", scans, "--output", "run", *SMALL, *FIT, "--fit.epochs", 1, *words)
    assert answer.code == 0, answer.err
    network = yaml.safe_load((tmp_path / "run" / "model" / "config.yaml").read_text())["model"]["network"]
    for name, value in zip(words[::2], words[1::2], strict=True):
        if str(name).startswith("--model."):
            assert str(network[str(name).removeprefix("--model.")]).lower() == value
    prediction = AGUNetPredictor.load(tmp_path / "run" / "model").predict(scans / "p0" / "p0_t1ce.nii.gz")
    assert prediction.labels.shape == (14, 12, 10)


def test_the_published_recipe_sees_whole_heads_of_one_size(scans: Path, agunet: Command, tmp_path: Path) -> None:
    words = ("--published.size", "[16,16,8]", "--published.spacing_mm", "null", "--published.crop", "false", "--fit.epochs", 1)
    answer = agunet("train", "--data.root", scans, "--output", "run", *SMALL, *FIT, *words)
    assert answer.code == 0, answer.err
    settings = yaml.safe_load((tmp_path / "run" / "model" / "config.yaml").read_text())
    assert settings["model"]["published"]["size"] == [16, 16, 8]
    assert settings["segmentation"]["window"]["size"] == [16, 16, 8]
    prediction = AGUNetPredictor.load(tmp_path / "run" / "model").predict(scans / "p0" / "p0_t1ce.nii.gz")
    assert prediction.labels.shape == (14, 12, 10)

"""Scores with intervals over patients, beside a baseline and what others report."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from apps.acmil.inference import ACMILPredictor
from tests.commands import Answer, one_line_error

Command = Callable[..., Answer]


def test_the_figures_are_those_of_the_table_of_slides(labelled: Path, bundle: Path, acmil: Command, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "camelyon16")
    words = ("evaluate", "--model", bundle, "--data", tmp_path / "camelyon16", "--output", tmp_path / "out", "--bootstrap", 30)
    answer = acmil(*words, "--baseline", bundle)
    assert answer.code == 0, answer.err
    assert "TransMIL on ResNet-50 (ImageNet): AUC 0.931" in answer.out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    with open(tmp_path / "out" / "slides.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48, "24 slides of two models"
    right = [(float(row["probability_positive"]) > 0.5) == (row["label"] == "positive") for row in rows[:24]]
    assert found["model"]["accuracy"]["estimate"] == np.mean(right)
    assert found["model"]["patients"] == 12
    assert found["model"]["accuracy"]["low"] <= found["model"]["accuracy"]["estimate"] <= found["model"]["accuracy"]["high"]
    assert found["difference_in_probability_of_the_true_class"]["estimate"] == 0
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_a_damaged_bag_is_left_out_and_named_and_the_exit_code_says_so(
    labelled: Path, bundle: Path, acmil: Command, tmp_path: Path
) -> None:
    shutil.copytree(labelled, tmp_path / "data")
    path = tmp_path / "data" / "bags" / "bag_0003.h5"
    path.write_bytes(path.read_bytes()[:900])
    answer = acmil("evaluate", "--model", bundle, "--data", tmp_path / "data", "--output", tmp_path / "out", "--bootstrap", 0)
    assert answer.code == 3
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(found["failures"]) == ["bag_0003"]
    assert str(path) in found["failures"]["bag_0003"]
    assert found["model"]["slides"] == 23


def test_only_the_slides_of_a_split_are_scored_if_asked(labelled: Path, bundle: Path, acmil: Command, tmp_path: Path) -> None:
    lines = (labelled / "labels.csv").read_text().splitlines()
    table = tmp_path / "labels.csv"
    table.write_text("\n".join([f"{lines[0]},split", *(f"{line},{'test' if n < 8 else 'train'}" for n, line in enumerate(lines[1:]))]))
    words = ("evaluate", "--model", bundle, "--data", labelled, "--labels", table, "--output", tmp_path / "out", "--bootstrap", 0)
    assert acmil(*words, "--split", "test").code == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["model"]["slides"] == 8
    one_line_error(acmil(*words, "--split", "later"), "no slide's column split says 'later'")


def test_bags_of_another_encoder_are_refused_one_by_one(
    labelled: Path, slide_predictor: ACMILPredictor, acmil: Command, tmp_path: Path
) -> None:
    slide_predictor.save_bundle(tmp_path / "bundle")
    (tmp_path / "labels.csv").write_text("slide,label\nbag_0000,normal\nbag_0001,tumour\n")
    words = (
        "evaluate",
        "--model",
        tmp_path / "bundle",
        "--data",
        labelled,
        "--labels",
        tmp_path / "labels.csv",
        "--output",
        tmp_path / "o",
    )
    answer = acmil(*words)
    assert answer.code == 2
    assert "features of another encoder: 16 wide, of 'witnesses'; this model reads features" in answer.err

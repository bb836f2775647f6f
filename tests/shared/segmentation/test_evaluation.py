"""Scores that can be worked out by hand."""

import csv
import json

import numpy as np
import pytest

from shared.errors import UserError
from shared.inference.run import SOME_FAILED
from shared.segmentation.config import EvaluateVolumesConfig, TaskConfig
from shared.segmentation.evaluation import evaluate_volumes, score_case
from shared.segmentation.trivial import TRIVIAL
from tests.shared.segmentation.bright import BrightPredictor, block, bright_predictor, scan, write_case, write_volume

SHAPE = (14, 12, 10)
TRUTH = block((4, 4, 4), (8, 8, 8), SHAPE)
SHIFTED = block((6, 4, 4), (10, 8, 8), SHAPE)
"""By two voxels, which are 4 mm: half of it is right."""


def score(found, truth):
    return score_case(bright_predictor().predict(scan(found)), truth.astype(np.uint8), name="a", patient="p", extra=None).classes["tumour"]


def test_a_block_moved_by_half_its_length_scores_one_half():
    scores = score(SHIFTED, TRUTH)
    assert scores.dice == pytest.approx(0.5)
    assert scores.sensitivity == pytest.approx(0.5)
    assert scores.specificity == pytest.approx(1 - 32 / (TRUTH.size - 64))
    assert (scores.true_ml, scores.predicted_ml) == (pytest.approx(0.64), pytest.approx(0.64))
    assert scores.hausdorff_95_mm == pytest.approx(4.0)
    assert 0 < scores.surface_mm < 4


def test_where_a_mask_is_empty_there_is_a_dice_but_no_distance():
    nothing = np.zeros(SHAPE, bool)
    both, missed, alarm = (score_case_of(found, truth) for found, truth in ((False, nothing), (False, TRUTH), (True, nothing)))
    assert (both.dice, missed.dice, alarm.dice) == (1.0, 0.0, 0.0)
    assert both.hausdorff_95_mm is missed.hausdorff_95_mm is alarm.surface_mm is None


def score_case_of(anything, truth):
    prediction = bright_predictor(level=0.5 if anything else 2).predict(scan(TRUTH))
    return score_case(prediction, truth.astype(np.uint8), name="a", patient="p", extra=None).classes["tumour"]


def test_trivial_answers_are_what_they_say():
    volume = scan(block((4, 4, 4), (6, 6, 6), SHAPE))
    assert not TRIVIAL["nothing"](volume).any()
    middle = TRIVIAL["central ellipsoid"](volume)
    assert middle[7, 6, 5]
    assert not middle[0].any()
    assert middle.mean() == pytest.approx(np.pi / 6 / 8, rel=0.25)  # of the box; few voxels
    assert TRIVIAL["brightest part"](volume)[4:6, 4:6, 4:6].any()


def test_a_folder_is_scored_with_intervals_beside_trivial_answers_and_what_failed_is_said(tmp_path, capsys):
    data, output = tmp_path / "data", tmp_path / "scores"
    write_case(data, "p1v1", TRUTH)
    write_case(data, "p1v2", TRUTH, found=SHIFTED)
    write_case(data, "p2v1", TRUTH, found=SHIFTED)
    write_case(data, "p3v1", TRUTH)
    write_volume(data / "p3v1" / "p3v1_seg.nii.gz", 9 * TRUTH.astype(np.uint8))
    bundle = bright_predictor().save_bundle(tmp_path / "model")
    blind = bright_predictor(level=2).save_bundle(tmp_path / "blind")
    config = EvaluateVolumesConfig(
        model=bundle, baseline=blind, data=data, output=output, bootstrap=200, group_pattern=r"^(p\d)", device="cpu"
    )
    assert evaluate_volumes(BrightPredictor, config) == SOME_FAILED

    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["model"]["cases"] == 3
    dice = metrics["model"]["dice"]
    assert dice["estimate"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert 0.5 <= dice["low"] <= dice["estimate"] <= dice["high"] <= 0.75 + 1e-9  # patients are drawn: 0.75 and 0.5
    assert metrics["baseline"]["dice"]["estimate"] == 0
    assert metrics["dice_difference"]["estimate"] == pytest.approx(dice["estimate"])
    assert metrics["trivial_dice"]["nothing"] == 0
    assert metrics["model"]["volume_error_ml"]["tumour"]["estimate"] == pytest.approx(0)
    assert list(metrics["failures"]) == ["p3v1"]
    said = capsys.readouterr().out
    assert "not scored: p3v1: " in said
    assert "trivial: nothing" in said

    rows = list(csv.DictReader((output / "cases.csv").read_text().splitlines()))
    assert [row["case"] for row in rows if row["model"] == "model"] == ["p1v1", "p1v2", "p2v1"]
    assert [float(row["dice"]) for row in rows if row["model"] == "model"] == pytest.approx([1, 0.5, 0.5])
    assert all(row["hausdorff_95_mm"] == "" for row in rows if row["model"] == "baseline")
    assert "worst cases" in (output / "report.html").read_text()


def test_bundles_of_different_tasks_are_not_compared(tmp_path):
    write_case(tmp_path / "data", "a", TRUTH)
    one = bright_predictor().save_bundle(tmp_path / "one")
    two = bright_predictor(task=TaskConfig(labels={"cyst": [1]})).save_bundle(tmp_path / "two")
    config = EvaluateVolumesConfig(model=one, baseline=two, data=tmp_path / "data", output=tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match="other classes"):
        evaluate_volumes(BrightPredictor, config)

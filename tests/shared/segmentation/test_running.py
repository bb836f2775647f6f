"""The verbs that only differ in the predictor: two scans of one patient, many volumes, and phantoms."""

import json

import nibabel
import numpy as np
import pytest

from shared.errors import InputError, UserError
from shared.inference.run import SOME_FAILED
from shared.segmentation.config import GrowthConfig, HeadPhantomConfig, InferVolumesConfig
from shared.segmentation.running import growth_volumes, infer_volumes, make_heads
from tests.shared.segmentation.bright import BrightPredictor, block, bright_predictor, scan, write_volume


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bright_predictor().save_bundle(tmp_path_factory.mktemp("bright") / "model")


def test_growth_between_two_scans_is_measured_lesion_by_lesion(bundle, tmp_path, capsys):
    before = write_volume(tmp_path / "before.nii.gz", scan(block((2, 2, 2), (4, 4, 4))).values)
    grown = block((2, 2, 2), (5, 5, 5)) | block((10, 8, 7), (12, 10, 9))
    after = write_volume(tmp_path / "after.nii.gz", scan(grown).values)
    config = GrowthConfig(
        model=bundle, before=before, after=after, output=tmp_path / "out", date_before="2024-01-01", date_after="2024-12-31", device="cpu"
    )
    growth_volumes(BrightPredictor, config)
    assert "0.08 ml before, 0.35 ml after" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert found["total"]["before_ml"] == pytest.approx(0.08)
    assert found["total"]["after_ml"] == pytest.approx(0.35)
    assert [(lesion["fate"], lesion["volume"]["after_ml"]) for lesion in found["lesions"]] == [
        ("same", pytest.approx(0.27)),
        ("new", pytest.approx(0.08)),
    ]
    assert found["total"]["days"] == 365
    assert "<html" in (tmp_path / "out" / "growth.html").read_text()
    for stem, voxels in (("before", 8), ("after", 35)):
        assert np.asarray(nibabel.load(tmp_path / "out" / f"{stem}_segmentation.nii.gz").dataobj).sum() == voxels


def test_what_is_no_date_and_what_is_no_scan_is_named(bundle, tmp_path):
    path = write_volume(tmp_path / "a.nii.gz", scan(block((2, 2, 2), (4, 4, 4))).values)
    with pytest.raises(UserError, match=r"--date_after 31\.12\.2024: is no date; write it as 2024-03-31"):
        growth_volumes(
            BrightPredictor,
            GrowthConfig(model=bundle, before=path, after=path, output=tmp_path / "out", date_after="31.12.2024", device="cpu"),
        )
    with pytest.raises(InputError, match=r"none\.nii"):
        growth_volumes(BrightPredictor, GrowthConfig(model=bundle, before=path, after=tmp_path / "none.nii", output=tmp_path / "out"))


def test_many_volumes_are_answered_and_a_bad_one_among_them_is_listed(bundle, tmp_path, capsys):
    inputs = tmp_path / "inputs"
    write_volume(inputs / "a.nii.gz", scan(block((2, 2, 2), (4, 4, 4))).values)
    write_volume(inputs / "b.nii", np.full((6, 6, 6), np.nan, np.float32))
    config = InferVolumesConfig(model=bundle, input=[inputs], output=tmp_path / "out", workers=0, device="cpu")
    assert infer_volumes(BrightPredictor, config) == SOME_FAILED
    said = capsys.readouterr().out
    assert "1 volumes: something found in 1, nothing in 0" in said
    assert "not finite" in (tmp_path / "out" / "failures.csv").read_text()
    report = (tmp_path / "out" / "report.html").read_text()
    assert "a_report.html" in report
    assert "0.08" in report
    assert json.loads((tmp_path / "out" / "predictions.jsonl").read_text())["volume_ml"] == 0.08


def test_phantoms_are_not_written_over_anything(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        make_heads(HeadPhantomConfig(output=tmp_path / "mine"), sequences=("t1ce",), train="apps.agunet train")

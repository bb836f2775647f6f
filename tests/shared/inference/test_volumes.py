"""A run over volumes: a folder with a DICOM series, or the four files of an examination, is one input like any other."""

import json
from pathlib import Path

import numpy as np
import pytest

from shared.imaging.volumes import find_cases, find_volumes, read_labels
from shared.inference.config import InferConfig
from shared.inference.run import SOME_FAILED, Find, Outcome, local_engine, run
from tests.shared.imaging.volumes.made import dicom_files, nifti_bytes, orientations
from tests.shared.inference.volumes import BrightCasePredictor, BrightVolumePredictor

AFFINE = dict(orientations())["LPS"]
VALUES = np.arange(120, 240, dtype=np.int16).reshape(4, 5, 6) - 60


def infer(tmp_path: Path, predictor: BrightVolumePredictor, find: Find, *, output: str = "out") -> Outcome:
    config = InferConfig(model=Path("unused"), input=[tmp_path / "in"], output=tmp_path / output, batch_size=2)
    engine = local_engine(predictor, output=config.output, batch_size=2, workers=2)
    return run(config, suffixes=predictor.suffixes, engine=engine, maker={"model": "bright"}, find=find)


def write_series(folder: Path, slices: list[int] | None = None) -> None:
    folder.mkdir(parents=True)
    files = dicom_files(VALUES, AFFINE)
    for index in range(len(files)) if slices is None else slices:
        (folder / f"IM{index:04d}").write_bytes(files[index])


def write_case(folder: Path, *modalities: str) -> None:
    folder.mkdir(parents=True)
    for modality in modalities:
        (folder / f"{folder.name}_{modality}.nii.gz").write_bytes(nifti_bytes(VALUES, AFFINE))


def names(tmp_path: Path, outcome: Outcome) -> list[str]:
    return [Path(row["input"]).relative_to(tmp_path / "in").as_posix() for row in outcome.rows]


def test_a_dicom_series_is_one_input_and_its_result_lies_beside_those_of_files(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "patient" / "T1")
    write_series(tmp_path / "in" / "gap", slices=[0, 1, 3, 4, 5])
    (tmp_path / "in" / "a.nii.gz").write_bytes(nifti_bytes(VALUES, AFFINE))
    outcome = infer(tmp_path, BrightVolumePredictor(), find_volumes)
    assert outcome.exit_code == SOME_FAILED
    assert names(tmp_path, outcome) == ["a.nii.gz", "patient/T1"]
    assert {Path(source).name for source in outcome.failures} == {"gap"}
    (reason,) = outcome.failures.values()
    assert "missing" in reason
    assert [row["files"]["mask"] for row in outcome.rows] == ["a_mask.nii.gz", "patient/T1_mask.nii.gz"]
    for row in outcome.rows:
        mask = read_labels(outcome.folder / row["files"]["mask"])
        np.testing.assert_array_equal(mask.values, VALUES > 100)
        np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)


def test_an_incomplete_examination_is_one_line_that_names_what_is_missing_and_the_others_go_on(tmp_path: Path) -> None:
    write_case(tmp_path / "in" / "p1", "t1", "t1ce", "t2", "flair")
    write_case(tmp_path / "in" / "p2", "t1", "t2")
    write_case(tmp_path / "in" / "p3", "t1", "t1ce", "t2", "flair", "seg")
    outcome = infer(tmp_path, BrightCasePredictor(), find_cases)
    assert names(tmp_path, outcome) == ["p1", "p3"]
    assert [row["files"]["mask"] for row in outcome.rows] == ["p1_mask.nii.gz", "p3_mask.nii.gz"]
    ((source, reason),) = outcome.failures.items()
    assert Path(source).name == "p2"
    assert "t1ce, flair are missing" in reason


def test_folders_that_are_done_are_not_read_again(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "T1")
    first = infer(tmp_path, BrightVolumePredictor(), find_volumes)
    for path in (tmp_path / "in" / "T1").iterdir():
        path.write_text("gone")
    (tmp_path / "in" / "T1" / "IM0000.dcm").write_text("gone")
    (tmp_path / "in" / "T1" / "IM0001.dcm").write_text("gone")
    second = infer(tmp_path, BrightVolumePredictor(), find_volumes)
    assert [row["input"] for row in second.rows] == [row["input"] for row in first.rows]
    assert json.loads((first.folder / "predictions.jsonl").read_text())["volume_ml"] > 0


@pytest.mark.thorough
def test_ray_answers_for_folders_as_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from shared.scaling.infer import ray_engine

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    write_series(tmp_path / "in" / "T1")
    write_case(tmp_path / "in" / "p2", "t1")
    expected = infer(tmp_path, BrightVolumePredictor(), find_volumes, output="local")
    config = InferConfig(model=Path("unused"), input=[tmp_path / "in"], output=tmp_path / "ray", workers=1)
    engine = ray_engine(BrightVolumePredictor, config, {"device": "cpu"})
    outcome = run(config, suffixes=BrightVolumePredictor.suffixes, engine=engine, maker={}, find=find_volumes)
    assert len(outcome.rows) == 2
    assert {row["input"]: row for row in outcome.rows} == {row["input"]: row for row in expected.rows}

"""Time series: a real BOLD run in a BIDS derivatives folder made on the spot, with a response planted in it, end to end."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.brain_encoders.alignment import align_to_volumes, lanczos
from apps.brain_encoders.bids import find_runs, read_bold
from shared.errors import UserError
from tests.commands import Answer, one_line_error

TR_S = 2.0
SPACE = "space-MNI152NLin2009cAsym"


def real_run() -> nib.Nifti1Image:
    file = importlib.resources.files("nibabel") / "tests" / "data" / "functional.nii"
    if not file.is_file():
        pytest.skip("this installation of nibabel has no test data, and with it no BOLD run")
    return nib.load(file)


@pytest.fixture
def derivatives(tmp_path: Path) -> Path:
    """Two runs of 60 and 50 volumes: those of a real run, shuffled, with the response to a face, 4 s later, added in one corner."""
    image = real_run()
    bold = np.asarray(image.dataobj, dtype=np.float32)
    root = tmp_path / "fmriprep"
    folder = root / "sub-01" / "func"
    folder.mkdir(parents=True)
    description = {"Name": "fMRIPrep", "BIDSVersion": "1.8.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    mask = bold.mean(axis=3) > 1500
    rng = np.random.default_rng(0)
    for run, volumes in ((1, 60), (2, 50)):
        order = np.concatenate([rng.permutation(bold.shape[3]) for _ in range(3)])[:volumes]
        series = bold[..., order] + rng.normal(0, 5, (*bold.shape[:3], volumes))
        onsets = np.arange(4, volumes - 8, 6) * TR_S
        names = ["face" if number % 2 else "house" for number in range(len(onsets))]
        for onset, name in zip(onsets, names, strict=True):
            if name == "face":
                series[:4, :6, :, int(onset / TR_S) + 2] += 300
        stem = f"sub-01_task-look_run-{run}"
        nib.save(nib.Nifti1Image(series.astype(np.float32), image.affine), folder / f"{stem}_{SPACE}_desc-preproc_bold.nii.gz")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), folder / f"{stem}_{SPACE}_desc-brain_mask.nii.gz")
        (folder / f"{stem}_{SPACE}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": TR_S}))
        rows = [f"{onset}\t2.0\t{name}" for onset, name in zip(onsets, names, strict=True)]
        (folder / f"{stem}_events.tsv").write_text("onset\tduration\ttrial_type\n" + "\n".join(rows) + "\n")
    return root


def test_a_planted_response_is_found_where_it_is(derivatives: Path, encoders: Callable[..., Answer]) -> None:
    words = ("--subject", "01", "--delays", "[1,2,3]", "--confounds", "false", "--permutations", 200, "--output", "out")
    answer = encoders("series", "--derivatives", derivatives, *words)
    assert answer.code == 0, answer.err
    image = nib.load("out/maps_nifti.nii.gz")
    correlation, _, face, house = np.moveaxis(np.asarray(image.dataobj), -1, 0)
    planted = np.zeros(correlation.shape, dtype=bool)
    planted[:4, :6] = True
    known = np.isfinite(correlation)
    assert np.array_equal(image.affine, real_run().affine)
    assert correlation[known & planted].mean() > 0.5
    assert abs(correlation[known & ~planted].mean()) < 0.15
    assert (face - house)[known & planted].mean() > 3 * abs((face - house)[known & ~planted].mean())
    assert json.loads(Path("out/metrics.json").read_text())["runs"] == 2


def test_a_mask_on_another_grid_is_refused(derivatives: Path, encoders: Callable[..., Answer]) -> None:
    path = derivatives / f"sub-01/func/sub-01_task-look_run-2_{SPACE}_desc-brain_mask.nii.gz"
    mask = nib.load(path)
    moved = np.asarray(mask.dataobj).copy()
    nib.save(nib.Nifti1Image(moved, mask.affine + np.diag([1.0, 0, 0, 0])), path)
    answer = encoders("series", "--derivatives", derivatives, "--subject", "01", "--confounds", "false")
    one_line_error(answer, path.name, "its affine is not that of", "Resample the mask")


def test_a_subject_that_is_not_there_is_named(derivatives: Path, encoders: Callable[..., Answer]) -> None:
    one_line_error(encoders("series", "--derivatives", derivatives, "--subject", "09"), "sub-09", "no preprocessed volume BOLD")
    one_line_error(encoders("series", "--derivatives", derivatives / "sub-01", "--subject", "01"), "dataset_description.json")


def test_surfaces_of_both_hemispheres_are_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "sub-01" / "func"
    folder.mkdir(parents=True)
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.8.0", "DatasetType": "derivative"}))
    rng = np.random.default_rng(0)
    for side in "LR":
        arrays = [nib.gifti.GiftiDataArray(rng.standard_normal(642).astype(np.float32)) for _ in range(12)]
        nib.save(nib.GiftiImage(darrays=arrays), folder / f"sub-01_task-look_hemi-{side}_space-fsaverage3_bold.func.gii")
        (folder / f"sub-01_task-look_hemi-{side}_space-fsaverage3_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    (run,) = find_runs(tmp_path, None, subject="01", kind="surface")
    series, space = read_bold(run, confounds=False)
    assert series.shape == (12, 1284)
    assert (space.mesh, space.hemispheres) == ("fsaverage3", (642, 642))
    assert series.mean(axis=0) == pytest.approx(np.zeros(1284), abs=1e-5)
    assert series.std(axis=0) == pytest.approx(np.ones(1284), abs=1e-5)


def test_an_event_counts_for_each_volume_by_its_share_of_it() -> None:
    found = align_to_volumes([[1.0], [10.0]], [1.0, 5.0], [2.0, 0.0], repetition_time_s=2.0, volumes=4)
    assert found[:, 0].tolist() == [0.5, 0.5, 10.0, 0.0]


def test_events_in_other_units_than_seconds_are_noticed() -> None:
    with pytest.raises(UserError, match="no event falls into the 4 volumes"):
        align_to_volumes([[1.0]], [12_000.0], [2000.0], repetition_time_s=2.0, volumes=4)


def test_words_at_every_moment_give_a_level_signal() -> None:
    """Words at a constant rate, all with the same vector: between the ends the filter's weights add up to the rate."""
    times = np.arange(0, 60, 0.5)
    found = lanczos(np.ones((len(times), 1)), times, np.arange(0, 60, 2.0))
    assert found[4:-4, 0] == pytest.approx(np.full(22, 4.0), rel=0.03)

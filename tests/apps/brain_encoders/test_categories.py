"""A block design in the layout of OpenFMRI, made on the spot with a response planted in it, and what is wrong with such a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.brain_encoders.openfmri import find_runs, read_run
from shared.errors import InputError, UserError
from tests.commands import Answer, one_line_error

TR_S = 2.5
SHAPE = (4, 4, 2)
AFFINE = np.diag([3.0, 3.0, 4.0, 1.0])
WORDS = ("--data", "study", "--fit_runs", "[1,2,3]", "--test_runs", "[4]", "--delays", "[1,2,3]", "--permutations", 200, "--block", 4)


@pytest.fixture
def study(encoders: Callable[..., Answer]) -> Path:
    """Four runs of 60 volumes; the first column of voxels answers to faces two volumes later, the last plane is outside of the brain."""
    rng = np.random.default_rng(0)
    for run in range(1, 5):
        folder = Path(f"study/sub001/BOLD/task001_run{run:03d}")
        folder.mkdir(parents=True)
        series = 100 + rng.normal(size=(*SHAPE, 60))
        starts = np.arange(4, 54, 6)
        names = rng.permutation(["face", "house"] * 5)[: len(starts)]
        for start in starts[names == "face"]:
            series[0, :, :, start + 2 : start + 4] += 4
        series[..., 1, :] = 0
        image = nib.Nifti1Image(series.astype(np.float32), AFFINE)
        image.header.set_zooms((3.0, 3.0, 4.0, TR_S))
        nib.save(image, folder / "bold.nii.gz")
        rows = [f"{start * TR_S}\t{2 * TR_S}\t{name}" for start, name in zip(starts, names, strict=True)]
        (folder / "bold_events.tsv").write_text("onset\tduration\ttrial_type\n" + "\n".join(rows) + "\n")
    return Path("study")


def test_voxels_that_answer_to_a_category_are_found_on_runs_left_out(study: Path, encoders: Callable[..., Answer]) -> None:
    answer = encoders("categories", *WORDS, "--output", "out")
    assert answer.code == 0, answer.err
    assert "16 voxels, " in answer.out
    correlation, adjusted_p, face, house = np.moveaxis(np.asarray(nib.load("out/maps_nifti.nii.gz").dataobj), -1, 0)
    assert np.isnan(correlation[..., 1]).all(), "what never varies is no brain"
    assert correlation[0, :, 0].min() > 0.6
    assert (adjusted_p[0, :, 0] < 0.05).all()
    assert (face - house)[0, :, 0].min() > 0.3
    assert np.abs(correlation[1:, :, 0]).mean() < 0.25
    lines = Path("out/scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 16
    assert all(line.endswith("face") for line in lines[1:5])
    assert json.loads(Path("out/metrics.json").read_text())["best_voxel"][0] == 0
    assert {"map.png", "courses.png", "report.html"} <= {path.name for path in Path("out").iterdir()}


def test_what_a_study_lacks_is_said_in_one_line(study: Path, encoders: Callable[..., Answer]) -> None:
    one_line_error(encoders("categories", *WORDS, "--subject", "sub009"), "has no sub009/BOLD/task001_run001")
    one_line_error(encoders("categories", *WORDS, "--test_runs", "[12]"), "run 12 is missing; there are 1, 2, 3, 4")
    one_line_error(encoders("categories", *WORDS, "--test_runs", "[3]"), "also fitted")
    one_line_error(encoders("categories", *WORDS, "--fit_runs", "[]"), "fit_runs: name at least one run; there are 1, 2, 3, 4")
    one_line_error(encoders("categories", *WORDS, "--delays", "[]"), "delays: at least one")
    one_line_error(encoders("categories", *WORDS, "--block", 31), "block: the runs that judge have 60 volumes")
    one_line_error(encoders("categories", *WORDS, "--bold", "other.nii"), "task001_run001/other.nii: cannot be read as a NIfTI image")
    one_line_error(encoders("categories", *WORDS, "--mask", "no.nii"), "no.nii: cannot be read as a NIfTI image")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype=np.uint8), AFFINE), "mask.nii.gz")
    one_line_error(encoders("categories", *WORDS, "--mask", "mask.nii.gz"), "mask.nii.gz: holds no voxel")
    mask = nib.Nifti1Image(np.ones(SHAPE, dtype=np.uint8), AFFINE + np.diag([0.0, 0, 0.5, 0]))
    nib.save(mask, "mask.nii.gz")
    one_line_error(encoders("categories", *WORDS, "--mask", "mask.nii.gz"), "mask.nii.gz: its affine does not match", "Resample the mask")


def test_a_run_is_cleaned_and_a_silent_voxel_stays_zero(study: Path) -> None:
    runs = find_runs(study, "sub001")
    assert list(runs) == [1, 2, 3, 4]
    run = read_run(1, runs[1], bold="bold.nii.gz", mask=np.ones(SHAPE, dtype=bool), affine=AFFINE, mask_name="everything")
    assert run.bold.shape == (60, 32)
    outside = np.zeros(SHAPE, dtype=bool)
    outside[..., 1] = True
    assert not run.bold[:, outside.ravel()].any()
    assert run.bold[:, ~outside.ravel()].std(axis=0, ddof=1) == pytest.approx(np.ones(16))
    assert run.repetition_time_s == TR_S
    assert set(run.names) == {"face", "house"}


def test_files_that_are_no_run_are_named(study: Path) -> None:
    folder = find_runs(study, "sub001")[1]
    options = {"bold": "bold.nii.gz", "mask": np.ones(SHAPE, dtype=bool), "affine": AFFINE, "mask_name": "everything"}
    (folder / "bold_events.tsv").write_text("onset\tduration\n1\t2\n")
    with pytest.raises(InputError, match=r"bold_events\.tsv: cannot be read as a table with onset, duration and trial_type"):
        read_run(1, folder, **options)
    nib.save(nib.Nifti1Image(np.ones(SHAPE, dtype=np.float32), AFFINE), folder / "bold.nii.gz")
    with pytest.raises(InputError, match=r"bold\.nii\.gz: a series of volumes .* is needed; found \(4, 4, 2\)"):
        read_run(1, folder, **options)
    (folder / "bold.nii.gz").write_bytes(b"words")
    with pytest.raises(InputError, match=r"bold\.nii\.gz: cannot be read as a NIfTI image"):
        read_run(1, folder, **options)
    with pytest.raises(UserError, match="has no sub002/BOLD"):
        find_runs(study, "sub002")

"""Time series: a real BOLD run in a BIDS derivatives folder made on the spot, with a response planted in it, end to end."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, SeriesAxis

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


def test_cifti_is_read_as_its_cortex_and_cleaned_of_fmripreps_confounds(tmp_path: Path, encoders: Callable[..., Answer]) -> None:
    """Noise and a movement that fMRIPrep's table knows, in 60 vertices and a thalamus; its repetition time is in the file alone."""
    tables = importlib.resources.files("nilearn") / "interfaces" / "fmriprep" / "data"
    if not (tables / "test-v21_desc-confounds_timeseries.tsv").is_file():
        pytest.skip("this installation of nilearn has no table of confounds")
    folder = tmp_path / "prep" / "sub-01" / "func"
    folder.mkdir(parents=True)
    root = tmp_path / "prep"
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.8.0", "DatasetType": "derivative"}))
    for suffix in ("tsv", "json"):
        content = (tables / f"test-v21_desc-confounds_timeseries.{suffix}").read_bytes()
        (folder / f"sub-01_task-look_desc-confounds_timeseries.{suffix}").write_bytes(content)
    rows = [line.split("\t") for line in (folder / "sub-01_task-look_desc-confounds_timeseries.tsv").read_text().splitlines()]
    movement = np.array([float(row[rows[0].index("trans_x")]) for row in rows[1:]])
    vertices = {"LEFT": np.arange(0, 400, 10), "RIGHT": np.arange(5, 205, 10)}
    parts = [BrainModelAxis.from_surface(places, 32492, name=f"CIFTI_STRUCTURE_CORTEX_{side}") for side, places in vertices.items()]
    parts.append(BrainModelAxis.from_mask(np.ones((2, 2, 2), dtype=bool), affine=np.eye(4), name="CIFTI_STRUCTURE_THALAMUS_LEFT"))
    axis = parts[0] + parts[1] + parts[2]
    series = np.random.default_rng(0).standard_normal((len(movement), len(axis))) + 5 * (movement / movement.std())[:, None]
    image = Cifti2Image(series.astype(np.float32), header=(SeriesAxis(0, TR_S, len(series)), axis))
    nib.save(image, folder / "sub-01_task-look_space-fsLR_den-91k_bold.dtseries.nii")
    events = [f"{2 * TR_S * number}\t2.0\t{'face' if number % 2 else 'house'}" for number in range(1, 13)]
    (folder / "sub-01_task-look_events.tsv").write_text("onset\tduration\ttrial_type\n" + "\n".join(events) + "\n")

    (run,) = find_runs(root, None, subject="01", kind="cifti")
    assert run.repetition_time_s == TR_S
    raw, space = read_bold(run, confounds=False)
    cleaned, _ = read_bold(run, confounds=True)
    assert (space.mesh, space.left.tolist(), space.right.tolist()) == ("fsLR32k", vertices["LEFT"].tolist(), vertices["RIGHT"].tolist())
    assert abs(np.corrcoef(raw.mean(axis=1), movement)[0, 1]) > 0.5
    assert abs(np.corrcoef(cleaned.mean(axis=1), movement)[0, 1]) < 1e-6, "what is a confound is gone, to rounding"

    words = ("--subject", "01", "--kind", "cifti", "--delays", "[1,2]", "--folds", 3, "--permutations", 20)
    answer = encoders("series", "--derivatives", root, *words, "--output", "out")
    assert answer.code == 0, answer.err
    maps = nib.load("out/maps_cifti.dscalar.nii")
    assert maps.shape == (4, 60)
    assert [model.vertex.tolist() for _, _, model in maps.header.get_axis(1).iter_structures()] == [v.tolist() for v in vertices.values()]
    table = folder / "sub-01_task-look_desc-confounds_timeseries.tsv"
    table.write_text("\n".join(table.read_text().splitlines()[:-3]) + "\n")
    one_line_error(encoders("series", "--derivatives", root, *words), table.name, "Are they of one run?")
    (folder / "sub-01_task-look_space-fsLR_den-91k_bold.json").write_text(json.dumps({"RepetitionTime": TR_S}))
    run.bold[0].write_bytes(b"words")
    one_line_error(encoders("series", "--derivatives", root, *words), run.bold[0].name, "cannot be read as cifti BOLD")


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

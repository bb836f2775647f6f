"""A whole brain from tables on disk, as a person calls it: the fit in memory, resumed, judged, and clear about what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

from shared.encoding.ridge import fit_ridge
from shared.encoding.splits import grouped_splits
from shared.encoding.stream import StreamedRidge
from tests.commands import Answer, one_line_error

ALPHAS = (1.0, 10.0, 100.0, 1000.0)
WORDS = ("--features", "features.npy", "--responses", "responses.npy", "--output", "fit", "--alphas", "[1,10,100,1000]")
BLOCKS = ("--voxels_at_once", 6)


@pytest.fixture
def tables(encoders: Callable[..., Answer]) -> tuple[np.ndarray, np.ndarray]:
    """60 stimuli to fit and 20 new ones, in the test's own folder; 15 voxels from little to much noise."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 8)).astype(np.float32)
    responses = features @ rng.normal(size=(8, 15)) + rng.normal(size=(80, 15)) * np.linspace(0.3, 10, 15)
    responses = responses.astype(np.float32)
    for name, table in (("features", features), ("responses", responses)):
        np.save(f"{name}.npy", table[:60])
        np.save(f"test_{name}.npy", table[60:])
    return features, responses


TEST = ("--test_features", "test_features.npy", "--test_responses", "test_responses.npy")


def test_the_fit_is_that_in_memory_and_tables_say_how_well_new_stimuli_are_predicted(tables, encoders: Callable[..., Answer]) -> None:
    features, responses = tables
    answer = encoders("voxelwise", *WORDS, *BLOCKS, *TEST)
    assert answer.code == 0, answer.err
    assert "15 of 15 voxels fitted" in answer.out
    assert "3/3 blocks" in answer.err
    expected = fit_ridge(features[:60], responses[:60], alphas=ALPHAS)
    found = StreamedRidge(folder=Path("fit"))
    np.testing.assert_array_equal(found.alphas, expected.alphas)
    np.testing.assert_allclose(found.predict(features[60:]), expected.predict(features[60:]), atol=1e-5)  # float32
    lines = Path("fit/voxels.csv").read_text().splitlines()
    assert lines[0] == "voxel,alphas,scores,test_pearson,test_r2"
    assert float(lines[1].split(",")[3]) > 0.9
    assert json.loads(Path("fit/metrics.json").read_text())["voxels"] == 15


def test_the_same_command_makes_only_what_is_missing(tables, encoders: Callable[..., Answer]) -> None:
    assert encoders("voxelwise", *WORDS, *BLOCKS).code == 0
    blocks = sorted(Path("fit/blocks").iterdir())
    blocks[1].unlink()
    kept = [path.stat().st_mtime_ns for path in (blocks[0], blocks[2])]
    assert encoders("voxelwise", *WORDS, *BLOCKS).code == 0
    assert sorted(Path("fit/blocks").iterdir()) == blocks
    assert [path.stat().st_mtime_ns for path in (blocks[0], blocks[2])] == kept
    one_line_error(encoders("voxelwise", *WORDS, "--voxels_at_once", 5), "fit: holds a fit of other features, responses or settings")


def test_voxels_that_are_not_numbers_are_listed_and_the_others_fitted(tables, encoders: Callable[..., Answer]) -> None:
    responses = np.load("responses.npy")
    responses[3, 4], responses[:, 9] = np.nan, 2.0
    np.save("responses.npy", responses)
    answer = encoders("voxelwise", *WORDS, *BLOCKS)
    assert answer.code == 3
    assert "2 voxels could not be fitted: 4 (not finite (NaN or infinity)), 9 (constant)" in answer.out
    assert Path("fit/failures.csv").read_text().splitlines()[1:] == ["4,not finite (NaN or infinity)", "9,constant"]
    assert json.loads(Path("fit/metrics.json").read_text())["voxels_left_out"] == 2


def test_presentations_of_one_stimulus_stay_in_one_fold_and_runs_are_left_out(tables, encoders: Callable[..., Answer]) -> None:
    features, responses = tables
    again = np.concatenate([features[:30], features[:30]])
    np.save("features.npy", again)
    assert encoders("voxelwise", *WORDS).code == 0
    splits = grouped_splits(list(range(30)) * 2, 5)
    expected = fit_ridge(again, responses[:60], alphas=ALPHAS, splits=splits)
    np.testing.assert_allclose(StreamedRidge(folder=Path("fit")).scores, expected.scores, rtol=1e-5)
    assert encoders("voxelwise", *WORDS, "--runs", "[20,40]", "--output", "runs").code == 0
    rows = np.arange(60)
    expected = fit_ridge(again, responses[:60], alphas=ALPHAS, splits=[(rows[20:], rows[:20]), (rows[:20], rows[20:])])
    np.testing.assert_allclose(StreamedRidge(folder=Path("runs")).scores, expected.scores, rtol=1e-5)


def test_hdf5_is_read_by_key(tables, encoders: Callable[..., Answer]) -> None:
    with h5py.File("responses.h5", "w") as file:
        file["betas"] = np.load("responses.npy").T
    words = ("--features", "features.npy", "--responses", "responses.h5", "--output", "fit", "--voxels_first", "true")
    one_line_error(encoders("voxelwise", *words, "--key", "beta"), "responses.h5: has no data set 'beta'; it has betas")
    assert encoders("voxelwise", *words, "--key", "betas").code == 0


def test_what_cannot_be_fitted_is_said_in_one_line(tables, encoders: Callable[..., Answer]) -> None:
    features, _ = tables
    one_line_error(encoders("voxelwise", *WORDS, "--features", "no.npy"), "no.npy: cannot be read as a table of features")
    one_line_error(encoders("voxelwise", *WORDS, "--features", "test_features.npy"), "test_features.npy: 20 rows", "responses.npy: 60 rows")
    one_line_error(encoders("voxelwise", *WORDS, *TEST[:2]), "test_features and test_responses belong together")
    one_line_error(encoders("voxelwise", *WORDS, "--runs", "[20,20]"), "runs: 40 rows in all", "features.npy: 60")
    np.save("test_features.npy", np.concatenate([features[7:8], features[61:]]))
    repeated = encoders("voxelwise", *WORDS, *TEST)
    one_line_error(repeated, "1 of 20 test samples show a stimulus that is also fitted ('row 7 of features.npy', for one)")
    assert encoders("voxelwise", *WORDS, *TEST, "--allow_repeats", "true").code == 0
    features[2, 5] = np.nan
    np.save("features.npy", features[:60])
    one_line_error(encoders("voxelwise", *WORDS), "features.npy: feature 5 is not finite")


@pytest.mark.thorough
def test_ray_leaves_the_same_blocks(tables, encoders: Callable[..., Answer]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    assert encoders("voxelwise", *WORDS, *BLOCKS, *TEST).code == 0
    answer = encoders("voxelwise", *WORDS, *BLOCKS, *TEST, "--engine", "ray", "--workers", 1, "--output", "ray")
    assert answer.code == 0, answer.err
    assert [path.name for path in sorted(Path("ray/blocks").iterdir())] == [path.name for path in sorted(Path("fit/blocks").iterdir())]
    for path in Path("fit/blocks").iterdir():
        local, over_ray = load_file(path), load_file(Path("ray/blocks", path.name))
        assert local.keys() == over_ray.keys()
        for name, values in local.items():
            np.testing.assert_allclose(over_ray[name], values, rtol=1e-4, atol=1e-5, err_msg=name)  # float32, other threads
    assert Path("ray/failures.csv").read_bytes() == Path("fit/failures.csv").read_bytes()

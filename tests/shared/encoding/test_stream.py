"""Ridge from disk: the fit in memory, block by block; it goes on where it stopped, and a broken voxel costs only itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from shared.encoding.responses import ResponseFile
from shared.encoding.ridge import fit_ridge
from shared.encoding.stream import Block, BlockDone, Job, StreamedRidge, here, stream_ridge
from shared.errors import InputError, UserError
from shared.metrics.encoding import pearson

ALPHAS = np.logspace(0, 4, 5)


def write(path: Path, responses: np.ndarray) -> ResponseFile:
    np.save(path, responses)
    return ResponseFile(path)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(80, 10)).astype(np.float32)
    responses = features @ generator.normal(size=(10, 25)) + generator.normal(size=(80, 25)) * np.linspace(0.5, 20, 25)
    return features, responses.astype(np.float32)


def test_the_fit_is_that_in_memory_and_is_judged_on_new_stimuli(data, tmp_path: Path) -> None:
    features, responses = data
    test = (features[60:], write(tmp_path / "test.npy", responses[60:]))
    train = write(tmp_path / "train.npy", responses[:60])
    streamed = stream_ridge(features[:60], train, tmp_path / "fit", test=test, alphas=ALPHAS, voxels_at_once=8)
    fit = fit_ridge(features[:60], responses[:60], alphas=ALPHAS)
    np.testing.assert_array_equal(streamed.alphas, fit.alphas)
    np.testing.assert_allclose(streamed.scores, fit.scores, rtol=1e-6)
    np.testing.assert_allclose(streamed.predict(features[60:]), fit.predict(features[60:]), rtol=0, atol=1e-5)  # float32
    np.testing.assert_allclose(streamed.test_pearson, pearson(responses[60:], fit.predict(features[60:])), rtol=0, atol=1e-5)
    assert [block for block, _ in streamed.blocks()] == [(0, 8), (8, 16), (16, 24), (24, 25)]


def test_hdf5_and_tables_with_voxels_first_give_the_same_fit(data, tmp_path: Path) -> None:
    features, responses = data
    with h5py.File(tmp_path / "responses.h5", "w") as file:
        file["betas"] = responses
    np.save(tmp_path / "turned.npy", np.ascontiguousarray(responses.T))
    plain = stream_ridge(features, write(tmp_path / "responses.npy", responses), tmp_path / "1", alphas=ALPHAS, voxels_at_once=10)
    hdf5 = stream_ridge(features, ResponseFile(tmp_path / "responses.h5", "betas"), tmp_path / "2", alphas=ALPHAS, voxels_at_once=10)
    turned = ResponseFile(tmp_path / "turned.npy", voxels_first=True)
    first = stream_ridge(features, turned, tmp_path / "3", alphas=ALPHAS, voxels_at_once=10)
    np.testing.assert_array_equal(plain.scores, hdf5.scores)
    np.testing.assert_array_equal(plain.scores, first.scores)


def test_a_run_that_was_killed_goes_on_and_does_nothing_twice(data, tmp_path: Path) -> None:
    features, responses = data
    file = write(tmp_path / "responses.npy", responses)
    done: list[Block] = []

    def interrupted(job: Job, blocks: Sequence[Block]) -> Iterator[BlockDone]:
        for number, finished in enumerate(here(job, blocks)):
            yield finished
            if number == 1:
                raise KeyboardInterrupt

    def watched(job: Job, blocks: Sequence[Block]) -> Iterator[BlockDone]:
        done.extend(blocks)
        return here(job, blocks)

    with pytest.raises(KeyboardInterrupt):
        stream_ridge(features, file, tmp_path / "fit", alphas=ALPHAS, voxels_at_once=6, engine=interrupted)
    with pytest.raises(UserError, match=r"some blocks of voxels are missing\. Run the same command again"):
        StreamedRidge(folder=tmp_path / "fit")
    streamed = stream_ridge(features, file, tmp_path / "fit", alphas=ALPHAS, voxels_at_once=6, engine=watched)
    assert done == [(12, 18), (18, 24), (24, 25)]
    np.testing.assert_array_equal(streamed.alphas, fit_ridge(features, responses, alphas=ALPHAS).alphas)


def test_voxels_that_cannot_be_fitted_are_listed_and_the_others_are_fitted(data, tmp_path: Path) -> None:
    features, responses = data
    responses[3, 4], responses[:, 20], responses[:, 8:16] = np.nan, 1.5, 0.0  # one block has no voxel left
    streamed = stream_ridge(features, write(tmp_path / "responses.npy", responses), tmp_path / "fit", alphas=ALPHAS, voxels_at_once=8)
    assert np.flatnonzero(np.isnan(streamed.scores)).tolist() == [4, *range(8, 16), 20]
    lines = (tmp_path / "fit" / "failures.csv").read_text().splitlines()
    assert lines[:3] == ["voxel,reason", "4,not finite (NaN or infinity)", "8,constant"]
    assert len(lines) == 11
    assert np.isnan(streamed.predict(features)[:, 4]).all()


def test_a_folder_is_never_filled_from_two_fits(data, tmp_path: Path) -> None:
    features, responses = data
    file = write(tmp_path / "responses.npy", responses)
    stream_ridge(features, file, tmp_path / "fit", alphas=ALPHAS)
    with pytest.raises(UserError, match=r"holds a fit of other features, responses or settings\. Name another folder"):
        stream_ridge(features + 1, file, tmp_path / "fit", alphas=ALPHAS)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: path.write_bytes(b"not an array"), "cannot be read as a table of responses"),
        (lambda path: np.save(path, np.zeros(4)), r"found float64 of shape \(4,\)"),
        (lambda path: np.save(path, np.zeros((7, 5))), "features: 80 rows, but .*responses.npy: 7 rows"),
    ],
)
def test_files_that_are_no_responses_are_named(data, tmp_path: Path, spoil, says: str) -> None:
    features, responses = data
    file = write(tmp_path / "responses.npy", responses)
    spoil(file.path)
    with pytest.raises((InputError, UserError), match=says):
        stream_ridge(features, file, tmp_path / "fit", alphas=ALPHAS)


def test_a_data_set_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "responses.h5", "w") as file:
        file["betas"] = np.zeros((2, 2))
    with pytest.raises(InputError, match="has no data set 'beta'; it has betas"):
        ResponseFile(tmp_path / "responses.h5", "beta").read(0, 1)


def test_a_common_penalty_needs_all_voxels_at_once(data, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be chosen block by block"):
        stream_ridge(data[0], write(tmp_path / "r.npy", data[1]), tmp_path / "fit", alphas=ALPHAS, choice="common")

"""Nothing crosses from one run into the next, and nothing that is fitted also judges."""

from __future__ import annotations

import numpy as np
import pytest

from shared.encoding.checks import check_grid, unusable
from shared.encoding.delays import delay
from shared.encoding.runs import check_runs, run_labels, run_slices, zscore_runs
from shared.encoding.splits import check_leakage, contiguous_splits, grouped_splits, run_splits
from shared.errors import UserError


def test_a_delayed_feature_comes_from_earlier_in_the_same_run() -> None:
    features = np.arange(1.0, 8.0)[:, None]  # runs of 3 and 4 volumes
    delayed = delay(features, [0, 2, -1], run_labels([3, 4]))
    assert delayed[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert delayed[:, 1].tolist() == [0, 0, 1, 0, 0, 4, 5]
    assert delayed[:, 2].tolist() == [2, 3, 0, 5, 6, 7, 0]


def test_a_delay_longer_than_a_run_leaves_nothing_of_it() -> None:
    assert not delay(np.ones((3, 2)), [5, -5]).any()


def test_columns_go_delay_by_delay() -> None:
    features = np.array([[1.0, 10.0], [2.0, 20.0]])
    assert delay(features, [0, 1]).tolist() == [[1, 10, 0, 0], [2, 20, 1, 10]]


def test_each_run_is_scored_by_itself_and_a_constant_one_becomes_zero() -> None:
    series = np.array([[0.0, 5], [2, 5], [100, 1], [300, 3]])
    assert zscore_runs(series, run_labels([2, 2])).tolist() == [[-1, 0], [1, 0], [-1, -1], [1, 1]]


def test_runs_must_stay_together() -> None:
    assert run_slices(["a", "a", "b"], 3) == [slice(0, 2), slice(2, 3)]
    with pytest.raises(UserError, match="run 'a' is interrupted by another run"):
        run_slices(["a", "b", "a"], 3)
    with pytest.raises(UserError, match="runs must name the run of each of 4 samples"):
        run_slices([0, 0, 1], 4)


def test_runs_whose_features_and_responses_differ_in_length_are_named() -> None:
    assert check_runs([np.zeros((3, 1)), np.zeros((2, 1))], [np.zeros((3, 5)), np.zeros((2, 5))]).tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="run-02: features of 4 volumes, but 2 volumes of responses"):
        check_runs([np.zeros((3, 1)), np.zeros((4, 1))], [np.zeros((3, 5)), np.zeros((2, 5))], ["run-01", "run-02"])
    with pytest.raises(UserError, match="1 runs of features, but 2 runs of responses"):
        check_runs([np.zeros((3, 1))], [np.zeros((3, 5)), np.zeros((2, 5))])


def test_every_sample_judges_once_and_is_never_fitted_then() -> None:
    for splits in (contiguous_splits(11, 3), run_splits(run_labels([2, 5, 4])), grouped_splits(list("abacabadbcd"), 3)):
        judged = np.concatenate([validation for _, validation in splits])
        assert sorted(judged.tolist()) == list(range(11))
        for train, validation in splits:
            assert sorted([*train.tolist(), *validation.tolist()]) == list(range(11))


def test_repeats_of_a_stimulus_stay_on_one_side() -> None:
    images = [f"image {index % 7}" for index in range(40)]
    for train, validation in grouped_splits(images, 3, seed=1):
        assert not {images[index] for index in train} & {images[index] for index in validation}
        assert 8 <= len(validation) <= 18  # 2 or 3 of 7 images with 5 or 6 trials each
    with pytest.raises(UserError, match="7 groups cannot be divided into 8 folds"):
        grouped_splits(images, 8)


def test_a_stimulus_on_both_sides_is_refused_unless_asked_for() -> None:
    assert check_leakage(["a", "b"], ["c"]) == 0
    with pytest.raises(UserError, match=r"1 of 2 test samples show a stimulus that is also fitted \('b', for one\)"):
        check_leakage(["a", "b"], ["c", "b"])
    assert check_leakage(["a", "b"], ["c", "b"], allow_repeats=True) == 1


def test_one_run_alone_cannot_be_left_out() -> None:
    with pytest.raises(UserError, match="one run alone"):
        run_splits([0, 0, 0])


def test_an_affine_that_does_not_match_the_mask_is_said_in_millimetres() -> None:
    affine, moved, turned = np.diag([2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1]), np.diag([-2.0, 2, 2, 1])
    moved[0, 3] = 2.5
    check_grid((4, 5, 6, 100), affine, (4, 5, 6), affine + 1e-5)
    with pytest.raises(UserError, match=r"mask.nii: its affine does not match that of bold.nii: the origins differ by up to 2.5 mm"):
        check_grid((4, 5, 6), affine, (4, 5, 6), moved, names=("bold.nii", "mask.nii"))
    with pytest.raises(UserError, match="the voxel axes differ by up to 4 mm"):
        check_grid((4, 5, 6), affine, (4, 5, 6), turned)
    with pytest.raises(UserError, match="a grid of 4 x 5 x 7 voxels, but image: 4 x 5 x 6"):
        check_grid((4, 5, 6), affine, (4, 5, 7), affine)


def test_voxels_that_cannot_be_fitted_are_found_with_their_reason() -> None:
    responses = np.random.default_rng(0).normal(size=(5, 4))
    responses[0, 1], responses[:, 2] = np.inf, 3.0
    assert unusable(responses) == {1: "not finite (NaN or infinity)", 2: "constant"}

"""Scores of masks: right by hand, right against other libraries, and defined on empty frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.metrics.segmentation import Confusion, confusion, detection, match_objects, surface_distances, youden_threshold

RATIOS = ("dice", "iou", "precision", "sensitivity", "specificity", "accuracy")
NOTHING, ALL = np.zeros((3, 4), bool), np.ones((3, 4), bool)


def square(top: int, left: int, side: int, shape: tuple[int, int] = (32, 40)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_ratios_of_two_overlapping_squares() -> None:
    # 4 x 4 = 16 each, 2 x 4 = 8 shared, 10 x 10 in all.
    counts = confusion(square(0, 0, 4, (10, 10)), square(2, 0, 4, (10, 10)))
    assert counts == Confusion(true_positives=8, false_positives=8, false_negatives=8, true_negatives=76)
    assert counts.dice == 0.5
    assert counts.iou == pytest.approx(1 / 3)
    assert counts.precision == counts.sensitivity == 0.5
    assert counts.specificity == pytest.approx(76 / 84)
    assert counts.accuracy == 0.84


def test_an_empty_frame_left_empty_is_perfect_and_a_false_alarm_is_not() -> None:
    for same in (NOTHING, ALL):
        assert [getattr(confusion(same, same), ratio) for ratio in RATIOS] == [1.0] * 6
    alarm = confusion(square(0, 0, 1, (3, 4)), NOTHING)
    assert (alarm.dice, alarm.iou, alarm.precision, alarm.sensitivity) == (0, 0, 0, 0)
    assert alarm.specificity == pytest.approx(11 / 12)
    missed = confusion(NOTHING, square(0, 0, 1, (3, 4)))
    assert (missed.dice, missed.precision, missed.sensitivity, missed.specificity) == (0, 0, 0, 1)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)), st.randoms())
def test_ratios_lie_between_zero_and_one_and_follow_from_each_other(mask: np.ndarray, random) -> None:
    other = np.array([random.random() < 0.5 for _ in range(mask.size)], bool).reshape(mask.shape)
    counts = confusion(mask, other)
    assert all(0 <= getattr(counts, ratio) <= 1 for ratio in RATIOS)
    assert counts.dice == pytest.approx(2 * counts.iou / (1 + counts.iou))
    assert confusion(other, mask).dice == counts.dice


def test_pooled_counts_weigh_frames_by_their_pixels() -> None:
    small, large = Confusion(true_positives=1, false_negatives=1), Confusion(true_positives=98)
    assert sum([small, large], Confusion()).sensitivity == 0.99


def test_distances_of_two_shifted_squares() -> None:
    # A square moved by 3 pixels: no surface point is farther than 3 from the other surface, and the leading edge is exactly 3 away.
    distances = surface_distances(square(5, 5, 8), square(5, 8, 8))
    assert distances.hausdorff_95 == 3
    assert 0 < distances.average < 3
    assert surface_distances(square(5, 5, 8), square(5, 8, 8), spacing=0.5).hausdorff_95 == 1.5
    assert surface_distances(square(5, 5, 8), square(5, 8, 8), spacing=(9.0, 2.0)).hausdorff_95 == 6
    same = surface_distances(square(5, 5, 8), square(5, 5, 8))
    assert (same.hausdorff_95, same.average) == (0, 0)


def test_distances_are_defined_on_empty_masks() -> None:
    assert surface_distances(NOTHING, NOTHING).hausdorff_95 == 0
    one_sided = surface_distances(NOTHING, ALL)
    assert (one_sided.hausdorff_95, one_sided.average) == (math.inf, math.inf)


@pytest.mark.parametrize(("shape", "spacing"), [((40, 50), (1.0, 1.0)), ((40, 50), (0.7, 1.9)), ((18, 20, 22), (3.0, 1.0, 1.0))])
def test_distances_agree_with_monai(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(len(shape))
    from scipy import ndimage

    for _ in range(4):
        masks = [ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0.05 for _ in range(2)]
        tensors = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in masks]
        ours = surface_distances(*masks, spacing=spacing)
        hausdorff = metrics.compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
        average = metrics.compute_average_surface_distance(*tensors, include_background=True, symmetric=True, spacing=spacing)
        # MONAI computes in single precision.
        assert ours.hausdorff_95 == pytest.approx(hausdorff.item(), rel=1e-6)
        assert ours.average == pytest.approx(average.item(), rel=1e-5)


def test_objects_are_matched_one_to_one() -> None:
    truth = square(2, 2, 6) | square(2, 20, 6) | square(20, 2, 6)
    prediction = square(3, 2, 6) | square(2, 20, 6) | square(25, 30, 3) | square(12, 12, 1)
    match = match_objects(prediction, truth)
    assert (match.found, match.missed, match.false_alarms) == (2, 1, 2)
    assert match.dice == pytest.approx((1.0, 60 / 72))
    assert match.recall == pytest.approx(2 / 3)
    assert match.precision == 0.5
    assert match_objects(prediction, truth, minimum_size=2).false_alarms == 1
    assert match_objects(prediction, truth, minimum_dice=0.9).found == 1


def test_one_blob_over_two_polyps_finds_one_of_them() -> None:
    truth = square(2, 2, 6) | square(2, 10, 6)
    blob = np.zeros_like(truth)
    blob[2:8, 2:16] = True
    match = match_objects(blob, truth)
    assert (match.found, match.missed, match.false_alarms) == (1, 1, 0)


def test_objects_touching_at_a_corner_are_two_and_volumes_work() -> None:
    diagonal = np.eye(4, dtype=bool)
    assert match_objects(diagonal, diagonal).found == 4
    volume = np.zeros((5, 5, 5), bool)
    volume[1:3, 1:3, 1:3] = True
    assert match_objects(volume, volume).dice == (1.0,)


def test_frames_without_objects_have_no_recall() -> None:
    empty = match_objects(NOTHING, NOTHING)
    assert (empty.found, empty.missed, empty.false_alarms, empty.recall, empty.precision) == (0, 0, 0, None, None)
    assert match_objects(ALL, NOTHING).false_alarms == 1
    assert match_objects(NOTHING, ALL).recall == 0


def test_frames_are_detected_by_their_score() -> None:
    found = detection([0.9, 0.8, 0.3, 0.8, 0.1, 0.0], np.array([1, 1, 1, 0, 0, 0], bool), threshold=0.8)
    assert found.sensitivity == pytest.approx(2 / 3)
    assert found.specificity == pytest.approx(2 / 3)
    # Of the 9 pairs, 0.9 wins 3, 0.8 wins 2 and ties 1, 0.3 wins 2: 7.5.
    assert found.roc_auc == pytest.approx(7.5 / 9)


def test_the_roc_area_agrees_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.3
    scores = np.round(rng.normal(size=300) + positive, 1)
    assert detection(scores, positive, threshold=0).roc_auc == pytest.approx(sklearn.roc_auc_score(positive, scores))


def test_a_video_of_one_kind_only_has_no_roc_area() -> None:
    only = detection([0.2, 0.7], np.array([True, True]), threshold=0.5)
    assert (only.sensitivity, only.specificity, only.roc_auc) == (0.5, None, None)


def test_the_chosen_threshold_lies_between_the_frames_it_separates() -> None:
    scores, positive = np.array([0.1, 0.2, 0.3, 0.7, 0.8]), np.array([False, False, False, True, True])
    assert youden_threshold(scores, positive) == pytest.approx(0.5)
    # One positive among the negatives: worth giving up, because a lower threshold would cost both negatives above it.
    assert youden_threshold([0.1, 0.2, 0.3, 0.7, 0.8], np.array([True, False, False, True, True])) == pytest.approx(0.5)
    assert youden_threshold(scores, ~positive) is None
    assert youden_threshold(scores, np.ones(5, bool)) is None
    assert youden_threshold([0.5, 0.5], np.array([True, False])) is None


def test_what_cannot_be_scored_is_refused() -> None:
    for function in (confusion, surface_distances, match_objects):
        with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 3\)"):
            function(NOTHING, NOTHING.T)
        with pytest.raises(ValueError, match="truth must be bool, got uint8"):
            function(NOTHING, NOTHING.astype(np.uint8))
    with pytest.raises(ValueError, match="one length"):
        detection([0.1], np.array([True, False]), threshold=0.5)
    with pytest.raises(ValueError, match="not finite"):
        detection([np.nan], np.array([True]), threshold=0.5)

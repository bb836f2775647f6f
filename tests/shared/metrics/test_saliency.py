"""The benchmark's scores are the published ones, on any map and mask, and are defined where the published program fails."""

from __future__ import annotations

import numpy as np
import py_sod_metrics
import pytest
from scipy import ndimage

from shared.metrics.saliency import (
    THRESHOLDS,
    benchmark_scores,
    region_similarity,
    s_measure,
    stretch,
    summarise,
    threshold_curves,
    weighted_f,
)


def frame(seed: int, height: int = 61, width: int = 83, *, truth: str = "blob") -> tuple[np.ndarray, np.ndarray]:
    """A smooth 8-bit map of the full grey range that fits its mask in part."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(height, width)), 6)
    mask = {"blob": field > 0.8 * field.max(), "large": field > 0, "empty": np.zeros_like(field, bool), "full": np.ones_like(field, bool)}[
        truth
    ]
    grey = field / np.ptp(field) + 0.3 * ndimage.gaussian_filter(rng.normal(size=(height, width)), 2)
    grey = (grey - grey.min()) / np.ptp(grey)
    return np.round(255 * grey).astype(np.uint8), mask


def pixel_curves(levels: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """The definitions, one threshold and one pixel at a time."""
    curves: dict[str, list[float]] = {name: [] for name in ("precision", "sensitivity", "specificity", "dice", "iou", "e_measure")}
    for level in range(255, -1, -1):
        found = levels >= level
        tp, fp, fn, tn = (float((a & b).sum()) for a, b in ((found, truth), (found, ~truth), (~found, truth), (~found, ~truth)))
        hit = tp > 0
        curves["precision"].append(tp / (tp + fp) if hit else 0)
        curves["sensitivity"].append(tp / (tp + fn) if hit else 0)
        curves["specificity"].append(tn / (tn + fp) if hit and tn + fp else 0)
        curves["dice"].append(2 * tp / (truth.sum() + found.sum()) if hit else 0)
        curves["iou"].append(tp / (fn + found.sum()) if hit else 0)
        if not truth.any():
            enhanced = 1.0 - found
        elif truth.all():
            enhanced = found.astype(float)
        else:
            a, b = found - found.mean(), truth - truth.mean()
            enhanced = (2 * a * b / (a * a + b * b + 2.2e-16) + 1) ** 2 / 4
        curves["e_measure"].append(enhanced.sum() / (truth.size - 1 + 2.2e-16))
    return {name: np.array(curve) for name, curve in curves.items()}


@pytest.mark.parametrize("truth", ["blob", "large", "empty", "full"])
def test_curves_from_histograms_equal_the_definition_pixel_by_pixel(truth: str) -> None:
    prediction, mask = frame(1, truth=truth)
    curves = threshold_curves(prediction, mask)
    for name, expected in pixel_curves(prediction, mask).items():
        # Both sum at most 5063 terms of size one in double precision.
        np.testing.assert_allclose(getattr(curves, name), expected, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("truth", ["blob", "large", "empty", "full"])
def test_agrees_with_pysodmetrics(seed: int, truth: str) -> None:
    prediction, mask = frame(seed, 40 + 7 * seed, 64 + 3 * seed, truth=truth)
    ours = benchmark_scores(prediction, mask)
    theirs = {
        "wfm": py_sod_metrics.WeightedFmeasure(),
        "sm": py_sod_metrics.Smeasure(),
        "em": py_sod_metrics.Emeasure(),
        "mae": py_sod_metrics.MAE(),
    }
    for metric in theirs.values():
        metric.step(prediction, (255 * mask).astype(np.uint8))
    assert ours.weighted_f == pytest.approx(theirs["wfm"].get_results()["wfm"], abs=1e-9)
    assert ours.mean_absolute_error == pytest.approx(theirs["mae"].get_results()["mae"], abs=1e-9)
    assert ours.s_measure == pytest.approx(theirs["sm"].get_results()["sm"], abs=1e-9)
    np.testing.assert_allclose(ours.curves.e_measure, theirs["em"].get_results()["em"]["curve"], atol=1e-9)


def test_no_rounding_decides_at_a_threshold() -> None:
    # Stretching 0..254 to 0..255 puts no level but the ends on a threshold; stretching 10..95 (range 85) puts every level on one.
    for low, high in ((0, 254), (10, 95), (0, 1), (3, 236), (0, 255), (255 - 51, 255)):
        prediction = np.arange(low, high + 1, dtype=np.uint8)[None, :]
        truth = np.ones_like(prediction, bool)
        found = threshold_curves(prediction, truth).sensitivity * prediction.size
        expected = [sum(255 * (value - low) >= level * (high - low) for value in range(low, high + 1)) for level in range(255, -1, -1)]
        np.testing.assert_array_equal(np.round(found), expected)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_float_map_made_from_grey_levels_scores_like_the_grey_levels(kind: type) -> None:
    # Levels 40 to 91 are stretched by a whole factor of 5, so that each of them belongs exactly on a threshold and rounding misses it.
    prediction, mask = frame(3)
    prediction = 40 + prediction // 5
    exact, floating = threshold_curves(prediction, mask), threshold_curves((prediction / 255).astype(kind), mask)
    np.testing.assert_array_equal(exact.dice, floating.dice)


def test_a_perfect_map_scores_one_and_its_alignment_slightly_more() -> None:
    _, mask = frame(0)
    scores = benchmark_scores((255 * mask).astype(np.uint8), mask)
    assert scores.weighted_f == pytest.approx(1)
    assert scores.s_measure == pytest.approx(1, abs=2e-3)  # its object half falls short of 1 only through the (N - 1) in the variance
    assert scores.mean_absolute_error == 0
    assert scores.curves.dice[0] == 1
    assert scores.curves.e_measure[0] == pytest.approx(mask.size / (mask.size - 1))
    assert scores.curves.dice[-1] == pytest.approx(2 * mask.sum() / (mask.sum() + mask.size))  # threshold 0 takes everything


def test_a_frame_without_a_polyp_follows_the_published_rule() -> None:
    prediction, empty = frame(2, truth="empty")
    scores = benchmark_scores(prediction, empty)
    for name in ("precision", "sensitivity", "specificity", "dice", "iou"):
        assert not getattr(scores.curves, name).any()
    assert scores.weighted_f == 0
    assert scores.s_measure == pytest.approx(1 - stretch(prediction).mean())
    rightly_black = benchmark_scores(np.zeros_like(prediction), empty)
    assert rightly_black.s_measure == 1
    assert rightly_black.curves.dice.max() == 0
    assert rightly_black.curves.e_measure[0] == pytest.approx(1, abs=1e-3)


def test_a_constant_map_is_not_stretched() -> None:
    truth = np.array([[True, False]])
    assert stretch(np.full((1, 2), 51, np.uint8)).tolist() == [[0.2, 0.2]]
    assert stretch(np.full((1, 2), 1.5)).tolist() == [[1.0, 1.0]]
    curve = threshold_curves(np.full((1, 2), 51, np.uint8), truth).sensitivity
    assert THRESHOLDS[curve > 0].max() == pytest.approx(0.2)


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_polyp_of_one_pixel_in_a_corner_has_scores(corner: tuple[int, int]) -> None:
    truth = np.zeros((9, 12), bool)
    truth[corner] = True
    for values in (truth.astype(float), np.random.default_rng(0).random(truth.shape)):
        assert 0 <= s_measure(values, truth) <= 1
        assert 0 <= weighted_f(values, truth) <= 1 + 1e-12


def test_half_way_centroids_go_down_and_right_as_in_the_published_program() -> None:
    # Rows 1 and 2 (one-based) average to 1.5, which rounds to 2: both rows lie in the upper blocks, and the lower ones are one row.
    truth = np.array([[1, 1], [1, 1], [0, 0]], bool)
    inverted = (~truth).astype(float)
    # Upper blocks: mask constant 1, map constant 0, so 1 by the rule for flat blocks; the lower ones likewise. Split at row 1: the
    # lower blocks would hold both kinds and be perfectly anti-correlated.
    assert region_similarity(inverted, truth) == pytest.approx(1)


def test_a_data_set_is_summarised_by_the_mean_curve() -> None:
    images = [benchmark_scores(*frame(seed)) for seed in range(3)]
    table = summarise(images)
    curve = np.mean([image.curves.dice for image in images], axis=0)
    assert table.images == 3
    assert table.mean_dice == pytest.approx(curve.mean())
    assert table.max_dice == pytest.approx(curve.max())
    assert table.max_dice < np.mean([image.curves.dice.max() for image in images])
    assert table.max_e == pytest.approx(np.mean([image.curves.e_measure for image in images], axis=0).max())
    assert table.weighted_f == pytest.approx(np.mean([image.weighted_f for image in images]))
    with pytest.raises(ValueError, match="no images"):
        summarise([])


@pytest.mark.parametrize(
    ("prediction", "truth", "says"),
    [
        (np.zeros((4, 5)), np.zeros((5, 4), bool), r"\(4, 5\) and \(5, 4\)"),
        (np.zeros((4, 5)), np.zeros((4, 5), np.uint8), "uint8"),
        (np.zeros((0, 5)), np.zeros((0, 5), bool), "one size"),
        (np.full((4, 5), np.nan), np.zeros((4, 5), bool), "not finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(prediction: np.ndarray, truth: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        benchmark_scores(prediction, truth)

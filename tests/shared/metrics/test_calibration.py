"""Calibration: the error is zero for honest probabilities, the temperature undoes a known one, and parts add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from shared.metrics.calibration import fit_temperature, logit_histogram, reliability


def pixels(count: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too large by ``temperature``, and the truth that they should have predicted."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(scale=2, size=count)
    return temperature * honest, rng.random(count) < expit(honest)


def test_the_error_by_hand() -> None:
    # Bins of width 1/2: (0.1, 0.3) average 0.2 with none positive; (0.6, 0.8, 1.0) average 0.8 with two of three positive.
    curve = reliability([0.1, 0.3, 0.6, 0.8, 1.0], np.array([False, False, True, True, False]), bins=2)
    assert curve.edges.tolist() == [0, 0.5, 1]
    assert curve.pixels.tolist() == [2, 3]
    assert curve.predicted == pytest.approx([0.2, 0.8])
    assert curve.observed == pytest.approx([0, 2 / 3])
    assert curve.expected_calibration_error == pytest.approx((2 * 0.2 + 3 * (0.8 - 2 / 3)) / 5)


def test_empty_bins_and_no_pixels() -> None:
    curve = reliability([0.05], np.array([False]), bins=10)
    assert np.isnan(curve.predicted[1:]).all()
    assert curve.expected_calibration_error == pytest.approx(0.05)
    assert reliability([], np.array([], bool)).expected_calibration_error == 0


def test_honest_probabilities_have_a_small_error_and_overconfident_ones_a_large_one() -> None:
    honest, truth = pixels(200_000, 1)
    assert reliability(expit(honest), truth).expected_calibration_error < 0.005  # 15 bins of 200,000 pixels: sampling leaves about 0.003
    assert reliability(expit(4 * honest), truth).expected_calibration_error > 0.1


def test_agrees_with_torchmetrics_for_sure_predictions() -> None:
    # torchmetrics bins the likelier class; above one half, that is the foreground.
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    probability = 0.5 + 0.5 * rng.random(5000)
    truth = rng.random(5000) < probability**2
    theirs = torchmetrics.binary_calibration_error(torch.from_numpy(probability), torch.from_numpy(truth).int(), n_bins=14, norm="l1")
    assert reliability(probability, truth, bins=14).expected_calibration_error == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 2.5, 8.0])
def test_a_known_temperature_is_found(true_temperature: float) -> None:
    logits, truth = pixels(200_000, true_temperature)
    # Its standard error at this count is about 0.4 %.
    found = fit_temperature(logits, truth)
    assert found == pytest.approx(true_temperature, rel=0.015)
    assert reliability(expit(logits / found), truth).expected_calibration_error < 0.005


def test_binning_costs_nothing_that_matters() -> None:
    from scipy.optimize import minimize_scalar

    logits, truth = pixels(3000, 3.0)
    exact = minimize_scalar(lambda t: np.logaddexp(0, np.where(truth, -logits, logits) / t).mean(), bounds=(0.1, 10), method="bounded").x
    assert fit_temperature(logits, truth) == pytest.approx(exact, rel=1e-3)


def test_images_add_up_to_the_data_set() -> None:
    logits, truth = pixels(10_000, 2.0)
    halves = [(logits[:3000], truth[:3000]), (logits[3000:], truth[3000:])]
    curve = reliability(*[expit(halves[0][0]), halves[0][1]]) + reliability(expit(halves[1][0]), halves[1][1])
    assert curve.expected_calibration_error == pytest.approx(reliability(expit(logits), truth).expected_calibration_error)
    histogram = logit_histogram(*halves[0]) + logit_histogram(*halves[1])
    assert histogram.temperature() == pytest.approx(fit_temperature(logits, truth))


def test_temperature_is_one_where_the_pixels_cannot_tell() -> None:
    some = np.array([-3.0, -1.0, 2.0, 4.0])
    assert fit_temperature([], np.array([], bool)) == 1
    assert fit_temperature(some, np.zeros(4, bool)) == 1
    assert fit_temperature(some, some > 0) == 1  # perfectly separated: ever sharper would be ever likelier
    assert fit_temperature(some, some < 0) == 1  # wrong everywhere: ever flatter would be ever likelier
    assert fit_temperature(np.zeros(4), some > 0) == 1


def test_huge_and_infinite_logits_are_survived() -> None:
    logits, truth = pixels(20_000, 2.0)
    logits[:3] = [1e30, -np.inf, np.inf]
    truth[:3] = [True, False, True]
    assert fit_temperature(logits.astype(np.float32), truth) == pytest.approx(2, rel=0.05)


def test_a_map_of_any_shape_is_taken() -> None:
    logits, truth = pixels(600, 2.0)
    assert fit_temperature(logits.reshape(20, 30), truth.reshape(20, 30)) == fit_temperature(logits, truth)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="sigmoid"):
        reliability([1.2], np.array([True]))
    with pytest.raises(ValueError, match="sigmoid"):
        reliability([np.nan], np.array([True]))
    with pytest.raises(ValueError, match="bool"):
        reliability([0.2], [1])
    with pytest.raises(ValueError, match="shape"):
        logit_histogram([0.2, 0.1], np.array([True]))
    with pytest.raises(ValueError, match="NaN"):
        fit_temperature([np.nan], np.array([True]))

"""Intervals: as wide as statistics says, wider when frames share patients, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from shared.metrics.intervals import bootstrap_interval, paired_difference


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(values, resamples=2000)
    error = values.std(ddof=1) / 20
    assert interval.estimate == pytest.approx(values.mean())
    # 2000 resamples fix the ends to about a twentieth of a standard error.
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert interval.confidence == 0.95


def test_ninety_percent_is_narrower_than_ninety_five() -> None:
    values = np.random.default_rng(0).random(50)
    wide, narrow = (bootstrap_interval(values, confidence=level, resamples=1000) for level in (0.95, 0.9))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_without_resampling_there_is_an_estimate_and_no_bounds() -> None:
    interval = bootstrap_interval([0.2, 0.4, 0.9], resamples=0)
    assert (interval.estimate, interval.low, interval.high) == (pytest.approx(0.5), None, None)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values, resamples=500, seed=4) == bootstrap_interval(values, resamples=500, seed=4)
    assert bootstrap_interval(values, resamples=500, seed=4) != bootstrap_interval(values, resamples=500, seed=5)


def test_frames_of_the_same_patient_widen_the_interval() -> None:
    # Ten frames that repeat their patient's value hold no more than one: the interval is sqrt(10) times as wide.
    rng = np.random.default_rng(0)
    per_patient = rng.random(30)
    frames, patients = np.repeat(per_patient, 10), [f"patient{index // 10}" for index in range(300)]
    by_frame, by_patient = bootstrap_interval(frames, resamples=2000), bootstrap_interval(frames, groups=patients, resamples=2000)
    assert by_patient.estimate == by_frame.estimate
    assert (by_patient.high - by_patient.low) / (by_frame.high - by_frame.low) == pytest.approx(np.sqrt(10), rel=0.15)
    once = bootstrap_interval(per_patient, resamples=2000)
    assert (by_patient.low, by_patient.high) == pytest.approx((once.low, once.high))


def test_patients_with_more_frames_weigh_more() -> None:
    assert bootstrap_interval([1.0, 1.0, 1.0, 0.0], groups=["a", "a", "a", "b"], resamples=100).estimate == 0.75


def test_any_figure_can_be_resampled_also_one_of_curves() -> None:
    curves = np.random.default_rng(0).random((20, 256))
    interval = bootstrap_interval(curves, statistic=lambda cases: float(cases.mean(axis=0).max()), resamples=300)
    assert interval.estimate == pytest.approx(curves.mean(axis=0).max())
    median = bootstrap_interval(curves[:, 0], statistic=lambda cases: float(np.median(cases)), resamples=300)
    assert median.low <= median.estimate <= median.high


def test_two_models_on_the_same_frames_differ_more_surely_than_their_intervals_suggest() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.random(60)
    first, second = difficulty + 0.02, difficulty + rng.normal(scale=0.01, size=60)
    difference = paired_difference(first, second, resamples=1000)
    assert difference.low > 0
    assert difference.estimate == pytest.approx(0.02, abs=0.005)
    assert bootstrap_interval(first, resamples=1000).low < bootstrap_interval(second, resamples=1000).high


def test_cases_that_are_all_alike_have_an_interval_of_no_width() -> None:
    interval = bootstrap_interval([0.5] * 6, resamples=100)
    assert (interval.low, interval.estimate, interval.high) == (0.5, 0.5, 0.5)


def test_one_case_or_one_patient_has_no_interval() -> None:
    assert str(bootstrap_interval([0.812])) == "0.812"
    assert bootstrap_interval([0.1, 0.9], groups=["a", "a"]).low is None


def test_an_interval_prints_as_in_a_table() -> None:
    assert str(bootstrap_interval([0.0, 1.0] * 50, resamples=2000)).startswith("0.500 (0.4")


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(ValueError, match="no cases"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="each of 2 cases, got 1"):
        bootstrap_interval([0.1, 0.2], groups=["a"])
    with pytest.raises(ValueError, match="same cases"):
        paired_difference([0.1, 0.2], [0.1])

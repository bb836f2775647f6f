"""Detection of patients and of single lesions: the published conventions, by hand and against plain definitions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from shared.metrics.detection import PatientCounts, PatientScores, object_scores, patient_counts, score_patient, voxel_scores
from shared.metrics.operating_point import DICE_CUTOFFS, THRESHOLDS, PatientSweep, best_operating_point, sweep_patient
from shared.metrics.segmentation import match_objects, surface_distances

SHAPE = (24, 22, 20)
NOTHING = np.zeros(SHAPE, bool)
SMALL_MASKS = hnp.arrays(bool, (5, 5, 4))


def cube(x: int, y: int, z: int, side: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[x : x + side, y : y + side, z : z + side] = True
    return mask


def blobs(seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    return field > 1.5 * field.std()


def patient(true_ml: float, predicted_ml: float, dice: float = 0.0) -> PatientScores:
    scores = score_patient(NOTHING, NOTHING, patient="somebody", spacing_mm=(1, 1, 1))
    voxels = dataclasses.replace(scores.voxels, dice=dice)
    return dataclasses.replace(scores, true_ml=true_ml, predicted_ml=predicted_ml, voxels=voxels)


def test_voxels_of_two_overlapping_cubes() -> None:
    # 64 voxels each, 32 shared.
    scores = voxel_scores(cube(2, 2, 2, 4), cube(4, 2, 2, 4))
    assert scores.dice == 0.5
    # 1e-6 in a denominator of 64.
    assert scores.recall == scores.precision == pytest.approx(0.5, rel=2e-8)
    assert scores.f1 == pytest.approx(0.5, rel=1e-8)


def test_voxels_of_empty_masks_score_nothing_as_published() -> None:
    for prediction, truth in ((NOTHING, NOTHING), (cube(0, 0, 0, 3), NOTHING), (NOTHING, cube(0, 0, 0, 3))):
        assert set(dataclasses.astuple(voxel_scores(prediction, truth))) == {0.0}


def test_dice_agrees_with_monai() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    for seed in range(4):
        prediction, truth = blobs(seed), blobs(seed + 100)
        tensors = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, truth)]
        assert voxel_scores(prediction, truth).dice == pytest.approx(metrics.compute_dice(*tensors).item(), abs=1e-6)


def test_objects_are_matched_and_small_ones_do_not_count() -> None:
    truth = cube(1, 1, 1, 4) | cube(10, 1, 1, 6) | cube(1, 12, 1, 5) | cube(20, 18, 16, 2)
    prediction = cube(2, 1, 1, 4) | cube(10, 1, 1, 6) | cube(12, 12, 12, 4) | cube(20, 18, 16, 2)
    scores = object_scores(prediction, truth)
    assert [(lesion.voxels, lesion.dice) for lesion in scores.true_objects] == [(216, 1.0), (125, 0.0), (64, 0.75)]
    assert (scores.predicted, scores.found) == (3, 2)
    assert (scores.recall, scores.precision, scores.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert scores.matched.dice == pytest.approx((0.875, 0.125))
    assert scores.matched.recall == pytest.approx((0.875, 0.125), rel=1e-6)
    assert object_scores(prediction, truth, smallest_object=8).found == 3
    assert object_scores(prediction, truth, minimum_dice=0.8).found == 1


def test_objects_of_empty_masks_follow_the_published_conventions() -> None:
    some = cube(3, 3, 3, 5)
    expected = {"both": (1, 1, 1), "truth": (0, 1, 0.5), "prediction": (1, 0, 0.5)}
    for name, (prediction, truth) in {"both": (NOTHING, NOTHING), "truth": (NOTHING, some), "prediction": (some, NOTHING)}.items():
        scores = object_scores(prediction, truth)
        assert (scores.recall, scores.precision, scores.f1) == expected[name]
        assert scores.matched.dice == (0, 0)
        assert tuple(mean for mean, _ in (scores.matched.recall, scores.matched.precision, scores.matched.f1)) == expected[name]
    # What is too small to count is not there.
    assert object_scores(cube(0, 0, 0, 3), NOTHING).f1 == 1


def test_objects_that_do_not_overlap_are_missed() -> None:
    scores = object_scores(cube(1, 1, 1, 5), cube(12, 12, 12, 5))
    assert (scores.recall, scores.precision, scores.f1) == (0, 0, 0)
    assert scores.matched.f1 == (0, 0)


@given(SMALL_MASKS, SMALL_MASKS)
@settings(deadline=None)
def test_objects_are_those_of_match_objects(prediction: np.ndarray, truth: np.ndarray) -> None:
    ours, theirs = object_scores(prediction, truth, smallest_object=2), match_objects(prediction, truth, minimum_size=2)
    assert (ours.found, len(ours.true_objects), ours.predicted) == (
        theirs.found,
        theirs.found + theirs.missed,
        theirs.found + theirs.false_alarms,
    )
    assert sum(lesion.dice for lesion in ours.true_objects) == pytest.approx(sum(theirs.dice))
    assert 0 <= min(ours.recall, ours.precision, ours.f1) <= max(ours.recall, ours.precision, ours.f1) <= 1


@given(SMALL_MASKS, SMALL_MASKS, st.integers(0, 3))
@settings(deadline=None)
def test_objects_do_not_depend_on_the_field_of_view(prediction: np.ndarray, truth: np.ndarray, margin: int) -> None:
    first = object_scores(prediction, truth, smallest_object=1)
    second = object_scores(np.pad(prediction, (margin, 1)), np.pad(truth, (margin, 1)), smallest_object=1)
    assert first == second


def test_a_scan_has_volumes_and_distances_in_the_patients_units() -> None:
    prediction, truth, spacing = cube(2, 2, 2, 5), cube(4, 2, 2, 5), (1.0, 2.0, 3.0)
    scores = score_patient(prediction, truth, patient="a", fold=3, spacing_mm=spacing)
    assert (scores.patient, scores.fold) == ("a", 3)
    assert scores.true_ml == scores.predicted_ml == pytest.approx(0.75)
    assert scores.distances == surface_distances(prediction, truth, spacing=spacing)
    assert scores.objects == object_scores(prediction, truth)
    assert score_patient(NOTHING, truth, patient="a", spacing_mm=spacing).distances is None


def test_patients_are_counted_under_the_three_published_conditions() -> None:
    patients = [
        patient(10, 9, 0.8),
        patient(10, 2, 0.3),  # found, poorly outlined
        patient(10, 0.4, 0.05),  # called only from the smallest volume on
        patient(0.4, 0.3, 0.7),  # a tumour below the limit, rightly found
        patient(8, 0),
        patient(0, 5),
        patient(0, 0.2),
        patient(0, 0),
    ]
    everyone = patient_counts(patients)
    assert dataclasses.astuple(everyone) == (4, 2, 1, 1)
    positive = patient_counts(patients, minimum_ml=0.5)
    assert dataclasses.astuple(positive) == (2, 1, 2, 3)
    outlined = patient_counts(patients, minimum_ml=0.5, minimum_dice=0.5)
    assert dataclasses.astuple(outlined) == (1, 1, 3, 3)
    # "Above" leaves the limit itself out.
    assert patient_counts([patient(0.5, 0.5, 0.5)], minimum_ml=0.5).true_negatives == 1
    assert patient_counts([patient(1, 1, 0.5)], minimum_dice=0.5).false_negatives == 1


def test_ratios_of_patients_by_hand() -> None:
    counts = PatientCounts(true_positives=6, false_positives=2, false_negatives=3, true_negatives=1)
    # 1e-6 in denominators of 8 and more.
    assert counts.recall == pytest.approx(6 / 9, rel=2e-7)
    assert counts.precision == pytest.approx(6 / 8, rel=2e-7)
    assert counts.f1 == pytest.approx(12 / 17, rel=2e-7)
    assert counts.specificity == 1 / 3
    assert counts.accuracy == 7 / 12
    assert counts.balanced_accuracy == pytest.approx((6 / 9 + 1 / 3) / 2, rel=2e-7)
    only_tumours = PatientCounts(true_positives=6, false_positives=0, false_negatives=4, true_negatives=0)
    assert (only_tumours.specificity, only_tumours.balanced_accuracy) == (1, pytest.approx(0.8))
    nobody = PatientCounts(true_positives=0, false_positives=0, false_negatives=0, true_negatives=0)
    assert (nobody.recall, nobody.precision, nobody.f1, nobody.specificity, nobody.accuracy) == (0, 0, 0, 1, 0)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20), st.floats(0, 1)), max_size=8), st.floats(0, 5), st.floats(0, 1))
@settings(deadline=None)
def test_every_patient_is_counted_once_and_a_stricter_dice_finds_fewer(cases, minimum_ml: float, minimum_dice: float) -> None:
    patients = [patient(*case) for case in cases]
    loose, strict = (patient_counts(patients, minimum_ml=minimum_ml, minimum_dice=dice) for dice in (minimum_dice / 2, minimum_dice))
    for counts in (loose, strict, patient_counts(patients)):
        assert sum(dataclasses.astuple(counts)) == len(patients)
    assert strict.true_positives <= loose.true_positives


def test_a_sweep_is_what_each_threshold_would_give() -> None:
    rng = np.random.default_rng(0)
    truth = blobs(1)
    probability = np.clip(0.6 * truth + 0.4 * rng.random(SHAPE), 0, 1)
    probability.ravel()[:30] = np.repeat(THRESHOLDS, 3)  # at the threshold is above it
    for kind in (np.float64, np.float32):
        stored = probability.astype(kind)
        sweep = sweep_patient(stored, truth, spacing_mm=(1, 2, 2.5))
        for threshold, dice, volume in zip(THRESHOLDS, sweep.dice, sweep.predicted_ml, strict=True):
            mask = stored >= kind(threshold)
            assert dice == pytest.approx(voxel_scores(mask, truth).dice)
            assert volume == pytest.approx(mask.sum() * 0.005)
        assert sweep.true_ml == pytest.approx(truth.sum() * 0.005)
    empty = sweep_patient(np.zeros(SHAPE), NOTHING, spacing_mm=(1, 1, 1))
    assert set(empty.dice) == {0.0}


def test_the_best_pair_maximises_dice_of_the_found_plus_recall() -> None:
    sweeps = [
        PatientSweep(true_ml=5, dice=(0.5, 0.8, 0.6), predicted_ml=(6, 5, 4)),
        PatientSweep(true_ml=4, dice=(0.3, 0.2, 0.0), predicted_ml=(6, 5, 0)),
        PatientSweep(true_ml=0.1, dice=(0.9, 0.9, 0.9), predicted_ml=(0.1, 0.1, 0.1)),
        PatientSweep(true_ml=0, dice=(0.0, 0.0, 0.0), predicted_ml=(3, 0, 0)),
    ]
    best = best_operating_point(sweeps, thresholds=(0.3, 0.5, 0.7), dice_cutoffs=(0.0, 0.25), minimum_ml=1)
    # (0.5, 0): Dice 0.5 of both, recall 1. (0.5, 0.25): Dice 0.8 of one, recall 0.5. (0.3, either): 0.4 and 1.
    assert (best.threshold, best.minimum_dice, best.mean_dice) == (0.5, 0.0, 0.5)
    assert best.recall == pytest.approx(1, abs=1e-6)
    assert best.score == pytest.approx(0.75, abs=1e-6)


@given(st.lists(hnp.arrays(float, 10, elements=st.floats(0, 1)), min_size=1, max_size=6))
@settings(deadline=None)
def test_no_other_pair_scores_higher(curves: list[np.ndarray]) -> None:
    sweeps = [PatientSweep(true_ml=1, dice=tuple(curve.tolist()), predicted_ml=(1.0,) * 10) for curve in curves]
    best = best_operating_point(sweeps)
    for index in range(10):
        for cutoff in DICE_CUTOFFS:
            found = [curve[index] for curve in curves if curve[index] > cutoff]
            score = (np.mean(found) + len(found) / len(curves)) / 2 if found else 0.0
            # 1e-6 in the denominator of the recall.
            assert score <= best.score + 1e-6


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        object_scores(NOTHING, NOTHING[1:])
    with pytest.raises(ValueError, match="prediction must be bool, got float64"):
        voxel_scores(NOTHING * 0.5, NOTHING)
    with pytest.raises(ValueError, match="without NaN"):
        sweep_patient(np.full(SHAPE, np.nan), NOTHING, spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match="must increase"):
        sweep_patient(np.zeros(SHAPE), NOTHING, spacing_mm=(1, 1, 1), thresholds=(0.5, 0.4))
    with pytest.raises(ValueError, match="one shape"):
        sweep_patient(np.zeros(SHAPE), NOTHING.astype(int), spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match=r"more than 2 ml"):
        best_operating_point([PatientSweep(true_ml=1, dice=(0.5,) * 10, predicted_ml=(1.0,) * 10)], minimum_ml=2)
    with pytest.raises(ValueError, match=r"10 thresholds, got \[2\]"):
        best_operating_point([PatientSweep(true_ml=1, dice=(0.5, 0.5), predicted_ml=(1, 1))])

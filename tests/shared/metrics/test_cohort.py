"""A cohort's table: averages by hand, intervals over patients, and counts behind every recall."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.metrics.cohort import lesion_recall_by_volume, patient_recall_by_volume, recall_by_volume, summarise_cohort
from shared.metrics.detection import PatientScores, object_scores, patient_counts, score_patient
from shared.metrics.intervals import bootstrap_interval
from shared.metrics.segmentation import SurfaceDistances

NOTHING = np.zeros((12, 12, 12), bool)
FEW = {"resamples": 200}


def scan(
    name: str, *, fold: int = 0, dice: float = 0.0, true_ml: float = 5.0, predicted_ml: float = 5.0, distance: float | None = None
) -> PatientScores:
    scores = score_patient(NOTHING, NOTHING, patient=name, fold=fold, spacing_mm=(1, 1, 1))
    return dataclasses.replace(
        scores,
        true_ml=true_ml,
        predicted_ml=predicted_ml,
        voxels=dataclasses.replace(scores.voxels, dice=dice),
        distances=None if distance is None else SurfaceDistances(hausdorff_95=distance, average=distance / 2),
    )


COHORT = [
    scan("a", fold=0, dice=0.9, distance=1),
    scan("b", fold=0, dice=0.7, distance=4),
    scan("c", fold=0, dice=0.0, predicted_ml=0),
    scan("d", fold=1, dice=0.5, distance=10),
    scan("e", fold=1, dice=0.0, true_ml=0, predicted_ml=0),
]


def test_folds_are_averaged_by_their_size_with_a_pooled_deviation() -> None:
    table = summarise_cohort(COHORT, **FEW)
    first, second = table.dice.folds
    assert (first.fold, first.count, second.count) == (0, 3, 2)
    assert first.mean == pytest.approx(1.6 / 3)
    assert first.deviation == pytest.approx(np.std([0.9, 0.7, 0.0], ddof=1))
    assert second.mean == 0.25
    assert table.dice.mean == pytest.approx(2.1 / 5)
    assert table.dice.deviation == pytest.approx(math.sqrt((2 * first.deviation**2 + second.deviation**2) / 3))
    assert table.dice.count == 5


def test_dice_is_given_for_all_and_for_the_true_positives() -> None:
    table = summarise_cohort(COHORT, **FEW)
    assert table.dice_found is not None
    assert table.dice_found.mean == pytest.approx(0.7)
    assert table.dice_found.count == 3
    strict = summarise_cohort(COHORT, minimum_dice=0.6, **FEW)
    assert strict.dice_found is not None
    assert strict.dice_found.mean == pytest.approx(0.8)
    assert summarise_cohort(COHORT[-1:]).dice_found is None


def test_detection_of_patients_is_averaged_over_folds() -> None:
    table = summarise_cohort(COHORT, **FEW)
    assert table.patients == patient_counts(COHORT)
    assert [fold.mean for fold in table.patient_recall.folds] == pytest.approx([2 / 3, 1], rel=1e-5)
    assert table.patient_recall.mean == pytest.approx((3 * 2 / 3 + 2 * 1) / 5, rel=1e-5)
    assert table.patient_recall.deviation == pytest.approx(math.sqrt((3 * (2 / 3 - 0.8) ** 2 + 2 * 0.2**2) / 5), rel=1e-4)
    assert table.patient_specificity.mean == 1
    one_fold = summarise_cohort([dataclasses.replace(patient, fold=7) for patient in COHORT], **FEW)
    assert one_fold.patient_recall.mean == pytest.approx(table.patients.recall)
    assert one_fold.patient_f1.mean == pytest.approx(table.patients.f1)
    assert one_fold.patient_precision.deviation == pytest.approx(0, abs=1e-12)


def test_undefined_distances_are_left_out() -> None:
    table = summarise_cohort(COHORT, **FEW)
    assert table.hausdorff_95_mm is not None
    assert (table.hausdorff_95_mm.mean, table.hausdorff_95_mm.count) == (5, 3)
    assert table.average_surface_mm is not None
    assert table.average_surface_mm.mean == 2.5
    assert summarise_cohort(COHORT[2:3]).hausdorff_95_mm is None


def test_intervals_are_those_over_patients() -> None:
    rng = np.random.default_rng(0)
    patients = [scan(f"patient {index // 3}", fold=index % 2, dice=float(rng.random())) for index in range(30)]
    table = summarise_cohort(patients, **FEW)
    dice = [patient.voxels.dice for patient in patients]
    assert table.dice.interval == bootstrap_interval(dice, groups=[patient.patient for patient in patients], **FEW)
    assert str(table.dice).startswith(f"{np.mean(dice):.3f} (")


def test_the_interval_of_recall_is_as_wide_as_statistics_says() -> None:
    # 80 of 100 patients found: a standard error of 0.04; 2000 resamples fix the ends to about a twentieth of it, whole patients to 0.01.
    patients = [scan(str(index), predicted_ml=5.0 * (index % 5 > 0)) for index in range(100)]
    recall = summarise_cohort(patients).patient_recall
    assert recall.interval.estimate == pytest.approx(recall.mean) == pytest.approx(0.8)
    assert (recall.interval.low, recall.interval.high) == (pytest.approx(0.72, abs=0.02), pytest.approx(0.88, abs=0.02))


def test_recall_by_volume_says_on_how_many_tumours_it_rests() -> None:
    bins = recall_by_volume([0.2, 0.99, 1, 2, 2.9, 50], [False, True, False, True, True, True], **FEW)
    assert [(each.low_ml, each.high_ml, each.count, each.found) for each in bins] == [
        (0, 1, 2, 1),
        (1, 3, 3, 2),
        (3, 10, 0, 0),
        (10, 30, 0, 0),
        (30, math.inf, 1, 1),
    ]
    assert [each.recall.estimate if each.recall else None for each in bins] == [0.5, pytest.approx(2 / 3), None, None, 1]
    assert bins[-1].recall is not None
    assert bins[-1].recall.low is None


def test_patients_and_lesions_each_have_their_recall_by_volume() -> None:
    truth = NOTHING.copy()
    truth[:5, :5, :5], truth[7:, 7:, 7:11] = True, True
    prediction = NOTHING.copy()
    prediction[:5, :5, :4] = True
    spacing = (2.0, 2.0, 2.0)
    patients = [
        score_patient(prediction, truth, patient="a", spacing_mm=spacing),
        score_patient(NOTHING, truth, patient="b", spacing_mm=spacing),
    ]
    lesions = lesion_recall_by_volume(patients, edges_ml=(0, 0.9, 2), **FEW)
    # 100 voxels of 8 microlitres are 0.8 ml, 125 are 1 ml.
    assert [(each.count, each.found) for each in lesions] == [(2, 0), (2, 1)]
    whole = patient_recall_by_volume([*patients, scan("healthy", true_ml=0)], edges_ml=(0, 1, 3), **FEW)
    assert [(each.count, each.found) for each in whole] == [(0, 0), (2, 1)]
    assert patient_recall_by_volume(patients, minimum_dice=0.9, edges_ml=(0, 3), **FEW)[0].found == 0
    assert object_scores(prediction, truth).found == 1


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=20))
@settings(deadline=None)
def test_every_tumour_is_in_one_range(tumours: list[tuple[float, bool]]) -> None:
    bins = recall_by_volume([volume for volume, _ in tumours], [found for _, found in tumours], resamples=1)
    assert sum(each.count for each in bins) == len(tumours)
    assert sum(each.found for each in bins) == sum(found for _, found in tumours)


def test_what_cannot_be_summarised_is_refused() -> None:
    with pytest.raises(ValueError, match="no scans"):
        summarise_cohort([])
    with pytest.raises(ValueError, match="one length"):
        recall_by_volume([1.0], [True, False])
    with pytest.raises(ValueError, match="must increase"):
        recall_by_volume([1.0], [True], edges_ml=(3, 1))
    with pytest.raises(ValueError, match=r"between 1 and 3 ml, got 0\.5 to 0\.5"):
        recall_by_volume([0.5], [True], edges_ml=(1, 3))

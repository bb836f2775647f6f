"""Glioma regions: every data set's codes mean the same three regions, and go back to what they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from shared.errors import InputError
from shared.metrics.intervals import bootstrap_interval
from shared.metrics.regions import (
    BRATS,
    BRATS_2015,
    BRATS_2023,
    MSD_BRAIN_TUMOUR,
    REGIONS,
    TumourCodes,
    brats_codes,
    region_scores,
    summarise_regions,
    tumour_labels,
    tumour_regions,
)
from shared.metrics.segmentation import confusion

CODES = [BRATS, BRATS_2023, BRATS_2015, MSD_BRAIN_TUMOUR]
EACH = pytest.mark.parametrize("codes", CODES, ids=lambda codes: codes.name)


def tumour(codes: TumourCodes, seed: int = 0, shape: tuple[int, int, int] = (24, 26, 22)) -> np.ndarray:
    """Oedema around a core that enhances inside."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    field /= field.max()
    labels = np.zeros(shape, np.uint8)
    labels[field > 0.3] = codes.oedema
    labels[field > 0.5] = codes.core[-1]
    labels[field > 0.6] = codes.core[0]
    labels[field > 0.7] = codes.enhancing
    return labels


@pytest.mark.parametrize(
    ("codes", "labels", "whole", "core", "enhancing"),
    [
        (BRATS, [0, 1, 2, 4], [0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]),
        (BRATS_2023, [0, 1, 2, 3], [0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]),
        (BRATS_2015, [0, 1, 2, 3, 4], [0, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1]),
        (MSD_BRAIN_TUMOUR, [0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]),
    ],
    ids=lambda value: value.name if isinstance(value, TumourCodes) else None,
)
def test_each_code_belongs_to_its_regions(codes: TumourCodes, labels, whole, core, enhancing) -> None:
    np.testing.assert_array_equal(tumour_regions(labels, codes), np.array([whole, core, enhancing], bool))
    assert codes.values == tuple(labels)


def test_regions_agree_with_monai() -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("monai.transforms")
    labels = tumour(BRATS)
    core, whole, enhancing = transforms.ConvertToMultiChannelBasedOnBratsClasses()(torch.from_numpy(labels)).numpy()
    np.testing.assert_array_equal(tumour_regions(labels, BRATS), [whole, core, enhancing])


@EACH
def test_labels_come_back_with_the_cases_own_codes(codes: TumourCodes) -> None:
    labels = tumour(codes)
    regions = tumour_regions(labels, codes)
    assert regions.shape == (3, *labels.shape)
    back = tumour_labels(regions, codes)
    assert back.dtype == np.uint8
    # The core has one value since 2017: what does not enhance joins the necrosis.
    np.testing.assert_array_equal(back, np.where(np.isin(labels, codes.core), codes.core[0], labels))


@given(hnp.arrays(bool, (3, 3, 4, 2)), st.sampled_from(CODES))
@settings(deadline=None)
def test_painted_regions_are_nested_and_stay_as_they_are(masks: np.ndarray, codes: TumourCodes) -> None:
    labels = tumour_labels(masks, codes)
    regions = tumour_regions(labels, codes)
    whole, core, enhancing = regions
    assert (whole >= core).all()
    assert (core >= enhancing).all()
    np.testing.assert_array_equal(enhancing, masks[2])
    np.testing.assert_array_equal(core, masks[1] | masks[2])
    np.testing.assert_array_equal(whole, masks.any(axis=0))
    np.testing.assert_array_equal(tumour_labels(regions, codes), labels)


def test_a_decathlon_case_becomes_a_brats_case() -> None:
    decathlon = np.array([[0, 1, 2, 3]])
    assert tumour_labels(tumour_regions(decathlon, MSD_BRAIN_TUMOUR), BRATS).tolist() == [[0, 2, 1, 4]]


def test_the_year_of_a_case_shows_in_its_code_for_enhancing_tumour() -> None:
    assert brats_codes(tumour(BRATS)) is BRATS
    assert brats_codes(tumour(BRATS_2023)) is BRATS_2023
    assert brats_codes(np.array([0, 1, 2])) is BRATS
    with pytest.raises(InputError, match=r"case_7: holds the values 3 and 4.*BraTS 2015"):
        brats_codes(tumour(BRATS_2015), name="case_7")


@EACH
def test_values_without_a_meaning_are_refused_by_name(codes: TumourCodes) -> None:
    with pytest.raises(InputError, match=rf"seg\.nii: holds the values 5, 9, and labels of {codes.name} are {codes.values[0]}, "):
        tumour_regions(np.array([0, 5, 9, 1]), codes, name="seg.nii")
    assert tumour_regions(np.array([0.0, codes.enhancing]), codes)[2].tolist() == [False, True]
    for wrong in (0.5, np.nan, -1.0):
        with pytest.raises(InputError, match="holds the value "):
            tumour_regions(np.array([0.0, wrong]), codes)


def test_regions_that_are_not_three_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="three bool masks"):
        tumour_labels(np.zeros((2, 3, 3, 3), bool), BRATS)
    with pytest.raises(ValueError, match="three bool masks"):
        tumour_labels(np.zeros((3, 3, 3, 3)), BRATS)
    with pytest.raises(ValueError, match=r"\[3, X, Y, Z\]"):
        region_scores(np.zeros((3, 3, 3), bool), np.zeros((3, 3, 3), bool), spacing_mm=(1, 1, 1))


def test_scores_agree_with_monai() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    spacing = (1.0, 0.8, 2.0)
    for seed in range(3):
        prediction, truth = tumour_regions(tumour(BRATS, seed), BRATS), tumour_regions(tumour(BRATS, seed + 1), BRATS)
        prediction |= truth & (np.random.default_rng(seed).random(truth.shape) < 0.7)
        tensors = [torch.from_numpy(masks[None].astype(np.float32)) for masks in (prediction, truth)]
        dice = metrics.compute_dice(*tensors, include_background=True, ignore_empty=False)[0]
        distances = metrics.compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)[0]
        counts = metrics.get_confusion_matrix(*tensors)
        sensitivity = metrics.compute_confusion_matrix_metric("sensitivity", counts)[0]
        specificity = metrics.compute_confusion_matrix_metric("specificity", counts)[0]
        for index, score in enumerate(region_scores(prediction, truth, spacing_mm=spacing)):
            # MONAI computes in single precision.
            assert score.region == REGIONS[index]
            assert score.dice == pytest.approx(dice[index].item(), rel=1e-6)
            assert score.hausdorff_95_mm == score.challenge_hausdorff_95_mm == pytest.approx(distances[index].item(), rel=1e-6)
            assert score.sensitivity == pytest.approx(sensitivity[index].item(), rel=1e-6)
            assert score.specificity == pytest.approx(specificity[index].item(), rel=1e-6)
            assert score.true_ml == pytest.approx(truth[index].sum() * 0.0016)
            assert score.predicted_ml == pytest.approx(prediction[index].sum() * 0.0016)


def test_a_region_that_is_rightly_missing_is_perfect_and_one_missed_or_made_up_is_not() -> None:
    shape, spacing = (240, 240, 155), (1.0, 1.0, 1.0)
    empty, some = np.zeros((3, *shape), bool), np.zeros((3, *shape), bool)
    some[:, 100:110, 100:110, 70:80] = True
    missing, missed, made_up = (region_scores(*pair, spacing_mm=spacing)[2] for pair in ((empty, empty), (empty, some), (some, empty)))
    assert (missing.dice, missing.sensitivity, missing.specificity) == (1, 1, 1)
    assert (missing.hausdorff_95_mm, missing.challenge_hausdorff_95_mm) == (None, 0)
    assert (missed.dice, missed.sensitivity, missed.specificity, missed.hausdorff_95_mm) == (0, 0, 1, None)
    assert (made_up.dice, made_up.sensitivity, made_up.hausdorff_95_mm) == (0, 1, None)
    assert made_up.specificity == pytest.approx(1 - 1000 / math.prod(shape))
    # The challenge's penalty.
    assert missed.challenge_hausdorff_95_mm == made_up.challenge_hausdorff_95_mm == pytest.approx(373.13, abs=0.005)
    everything = np.ones((3, 4, 4, 4), bool)
    assert region_scores(everything, everything, spacing_mm=spacing)[0].specificity == 1


@given(hnp.arrays(bool, (3, 3, 4, 3)), hnp.arrays(bool, (3, 3, 4, 3)))
@settings(deadline=None)
def test_dice_is_that_of_the_counts_and_scores_are_finite(prediction: np.ndarray, truth: np.ndarray) -> None:
    for score, masks in zip(region_scores(prediction, truth, spacing_mm=(1, 1, 2)), zip(prediction, truth, strict=True), strict=True):
        assert score.dice == confusion(*masks).dice
        assert min(score.dice, score.sensitivity, score.specificity) >= 0
        assert max(score.dice, score.sensitivity, score.specificity) <= 1
        assert math.isfinite(score.challenge_hausdorff_95_mm)


def test_means_over_cases_leave_undefined_distances_out_and_have_intervals_over_patients() -> None:
    truths = [tumour_regions(tumour(BRATS, seed), BRATS) for seed in range(6)]
    predictions = [np.roll(truth, 1, axis=1) for truth in truths]
    predictions[0][2] = False
    cases = [region_scores(*pair, spacing_mm=(1, 1, 1)) for pair in zip(predictions, truths, strict=True)]
    patients = ["a", "a", "b", "b", "c", "d"]
    means = summarise_regions(cases, patients=patients, resamples=200)
    assert tuple(mean.region for mean in means) == REGIONS
    dice = [case[2].dice for case in cases]
    assert means[2].dice == bootstrap_interval(dice, groups=patients, resamples=200)
    assert (means[0].hausdorff_95_cases, means[2].hausdorff_95_cases) == (6, 5)
    assert means[2].hausdorff_95_mm is not None
    assert means[2].hausdorff_95_mm.estimate == pytest.approx(np.mean([case[2].hausdorff_95_mm for case in cases[1:]]))
    assert means[2].challenge_hausdorff_95_mm.estimate > means[2].hausdorff_95_mm.estimate
    empty = np.zeros((3, 4, 4, 4), bool)
    assert summarise_regions([region_scores(empty, empty, spacing_mm=(1, 1, 1))])[0].hausdorff_95_mm is None
    with pytest.raises(ValueError, match="no cases"):
        summarise_regions([])

"""Scores of encoders: their ends, their edge cases, and what they promise about truth that is known."""

from __future__ import annotations

import numpy as np
import pytest

from shared.metrics.encoding import (
    generalisation,
    noise_normalised,
    pearson,
    pearson_over_voxels,
    published_noise_normalised,
    r2,
    region_summary,
    two_v_two,
)
from shared.metrics.noise_ceiling import (
    explainable_variance,
    noise_ceiling,
    nsd_signal_to_noise,
    signal_to_noise,
    spearman_brown,
    split_half,
)
from shared.metrics.permutation import block_permutations, false_discovery_rate, permutation_test
from shared.metrics.rdm import category_rdm, compare_rdms, rdm, rdm_ceiling, rdm_test
from shared.metrics.variance import correlation_split, model_variances, ordinary_r2, product_measure, relative_weights, variance_partition


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_perfect_prediction_scores_one_and_a_constant_voxel_zero() -> None:
    truth = generator().normal(size=(20, 4))
    truth[:, 3] = 7.0
    assert pearson(truth, truth).tolist() == pytest.approx([1, 1, 1, 0])
    assert r2(truth, truth).tolist() == pytest.approx([1, 1, 1, 0])
    assert pearson(truth, -truth)[0] == pytest.approx(-1)
    assert r2(truth, truth.mean(axis=0) + 0 * truth)[0] == pytest.approx(0)
    assert pearson(truth, np.stack([truth, -truth])).shape == (2, 4)
    assert pearson_over_voxels(truth, truth).shape == (20,)


def test_2v2_is_one_for_the_right_order_zero_for_the_reversed_and_half_for_noise() -> None:
    truth = generator().normal(size=(60, 30))
    assert two_v_two(truth, truth + 0.1 * generator().normal(size=(60, 30))) == 1
    assert two_v_two(truth[:2], truth[1::-1]) == 0
    noise = two_v_two(truth, np.random.default_rng(1).normal(size=(60, 30)))
    assert noise == pytest.approx(0.5, abs=0.1)  # 60 independent patterns
    with pytest.raises(ValueError, match="at least two"):
        two_v_two(truth[:1], truth[:1])


def test_a_voxel_without_a_ceiling_has_no_score_where_the_published_one_is_perfect() -> None:
    assert noise_normalised([0.5, 0.9, 0.1, -0.3], [0.5, 0.5, 0.0, 0.5]).tolist() == pytest.approx([0.5, 1, np.nan, 0], nan_ok=True)
    assert published_noise_normalised([0.1], [0.0]).tolist() == [1]


def test_ceilings_are_the_share_of_signal_that_was_put_in() -> None:
    random, signal, noise = generator(), 0.8, 1.5
    data = signal * random.normal(size=(1, 4000, 3)) + noise * random.normal(size=(4, 4000, 3))
    for found in (signal_to_noise(data).ratio, nsd_signal_to_noise(data).ratio):
        np.testing.assert_allclose(found, signal / noise, rtol=0.06)  # 4,000 conditions: 3 standard errors
    share = signal**2 / (signal**2 + noise**2 / 4)
    np.testing.assert_allclose(noise_ceiling(signal_to_noise(data).ratio, 4), share, rtol=0.05)
    np.testing.assert_allclose(spearman_brown(split_half(data[::2], data[1::2])), share, rtol=0.08)
    assert noise_ceiling([np.inf, 0.0], 1).tolist() == [1, 0]
    with pytest.raises(ValueError, match="at least two repeats"):
        signal_to_noise(data[:1])


def test_explainable_variance_is_what_repeats_have_in_common() -> None:
    """Of z-scored repeats, the variance of their mean is 1/R + (R - 1)/R times their mean correlation, to which the correction leads."""
    random = generator()
    repeats = random.normal(size=(60, 4)) + random.normal(size=(3, 60, 4)) * [0.1, 0.5, 1, 5]
    pairs = np.mean([pearson(repeats[i], repeats[j]) for i, j in ((0, 1), (0, 2), (1, 2))], axis=0)
    np.testing.assert_allclose(explainable_variance(repeats, corrected=False), 1 / 3 + 2 / 3 * pairs)
    np.testing.assert_allclose(explainable_variance(repeats), pairs)


def test_permutations_find_what_is_predicted_and_hold_their_rate_on_noise() -> None:
    random = generator()
    truth = random.normal(size=(120, 60))
    prediction = random.normal(size=(120, 60))
    prediction[:, :20] += truth[:, :20]
    p = permutation_test(truth, prediction, orders=block_permutations(120, 4, permutations=300), block=4)
    adjusted = false_discovery_rate(p)
    assert (adjusted[:20] < 0.05).all()
    assert (p[20:] < 0.05).mean() < 0.15  # 40 voxels of noise, 0.05 expected
    assert p.min() == pytest.approx(1 / 301)
    assert np.isnan(false_discovery_rate([0.01, np.nan]))[1]
    with pytest.raises(ValueError, match="at least two are needed"):
        block_permutations(7, 4)


def test_parts_of_variance_add_up() -> None:
    random = generator()
    a, b, c = random.normal(size=(3, 500))
    spaces = {"a": a, "b": b + a, "c": c}
    target = a + b + random.normal(size=500)
    variances = model_variances(list(spaces), lambda chosen: ordinary_r2(np.stack([spaces[name] for name in chosen], axis=1), target))
    parts = variance_partition(variances)
    assert sum(parts.values()) == pytest.approx(variances[frozenset("abc")])
    assert parts[frozenset("a")] == pytest.approx(variances[frozenset("abc")] - variances[frozenset("bc")])
    assert abs(parts[frozenset("c")]) < 0.01  # c has no part in the target
    del variances[frozenset("ab")]
    with pytest.raises(ValueError, match=r"the R2 of a \+ b is missing"):
        variance_partition(variances)


def test_shares_of_split_predictions_add_up_to_the_score_of_their_sum() -> None:
    random = generator()
    split = random.normal(size=(3, 200, 5))
    truth = split.sum(axis=0) + random.normal(size=(200, 5))
    truth, split = truth - truth.mean(axis=0), split - split.mean(axis=1, keepdims=True)
    whole = split.sum(axis=0)
    np.testing.assert_allclose(product_measure(truth, split).sum(axis=0), r2(truth, whole))
    np.testing.assert_allclose(relative_weights(truth, split).sum(axis=0), r2(truth, whole))
    assert (relative_weights(truth, split) >= 0).all()
    np.testing.assert_allclose(correlation_split(truth, split).sum(axis=0), pearson(truth, whole))


def test_regions_are_summed_up_without_voxels_that_have_no_score() -> None:
    low, empty = region_summary([0.1, 0.3, np.nan, 0.9], {"V1": [True, True, True, False], "V2": [False, False, True, False]})
    assert (low.name, low.voxels, low.scored) == ("V1", 3, 2)
    assert low.mean == pytest.approx(0.2)
    assert (empty.scored, empty.mean) == (0, None)
    with pytest.raises(ValueError, match="region V1: a mask of"):
        region_summary([0.1], {"V1": [True, False]})


def test_generalisation_is_best_on_the_diagonal() -> None:
    random = generator()
    truth = {name: random.normal(size=(stimuli, 6)) for name, stimuli in (("s1", 40), ("s2", 30))}
    own = {name: values + 0.5 * random.normal(size=values.shape) for name, values in truth.items()}
    strange = {name: random.normal(size=values.shape) for name, values in truth.items()}
    table = generalisation(truth, {"s1": {"s1": own["s1"], "s2": strange["s2"]}, "s2": {"s1": strange["s1"], "s2": own["s2"]}})
    assert table.shape == (2, 2, 6)
    assert table[0, 0].min() > table[0, 1].max()
    assert table[1, 1].min() > table[1, 0].max()
    np.testing.assert_allclose(table[1, 0], pearson(truth["s1"], strange["s1"]))


@pytest.mark.parametrize("similarity", ["spearman", "pearson", "kendall_tau_a"])
def test_the_right_model_of_dissimilarities_is_found(similarity) -> None:
    random = generator()
    labels = np.repeat([0, 1, 2], 8)
    patterns = np.eye(3)[labels] * 3
    subjects = np.stack([rdm(patterns + random.normal(size=(24, 3)), distance="euclidean") for _ in range(4)])
    models = {"categories": category_rdm(labels), "other": category_rdm(random.permutation(labels))}
    found = rdm_test(models, subjects, similarity=similarity, permutations=99)
    assert found["categories"].p == pytest.approx(0.01)
    assert found["other"].p > 0.05
    ceiling = rdm_ceiling(subjects, similarity=similarity)
    assert found["other"].mean < found["categories"].mean <= ceiling.upper + 0.05
    assert ceiling.lower < ceiling.upper
    assert compare_rdms(subjects[0], subjects[0], similarity=similarity) == pytest.approx(1)


def test_rdms_of_different_stimuli_are_refused() -> None:
    with pytest.raises(ValueError, match="must be of the same stimuli"):
        compare_rdms(np.zeros((4, 4)), np.zeros((5, 5)))
    with pytest.raises(ValueError, match="an RDM is square"):
        compare_rdms(np.zeros((4, 5)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="at least two subjects"):
        rdm_ceiling(np.zeros((1, 4, 4)))

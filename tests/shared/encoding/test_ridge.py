"""Ridge: the same penalties and coefficients as scikit-learn, whatever the shape of the problem; bad input is one clear sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from himalaya.ridge import RidgeCV as HimalayaRidgeCV
from sklearn.linear_model import Ridge, RidgeCV

from shared.encoding.choice import choose
from shared.encoding.gcv import fit_ridge_gcv
from shared.encoding.ridge import RidgeSolver, fit_kernel_ridge, fit_ridge
from shared.encoding.splits import Split, contiguous_splits, run_splits
from shared.errors import UserError

ALPHAS = np.logspace(-2, 4, 7)
PURGED = [(np.arange(10, 30), np.arange(8)), (np.arange(15), np.arange(20, 40))]
"""Folds that leave samples between training and validation out."""


def problem(
    n: int, p: int, voxels: int = 7, *, mean: float = 3.0, decades: float = 2.0, dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Features whose spreads differ by some decades, and voxels from well to hardly predicted, all with means."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(n, p)) * np.logspace(0, -decades, p) + mean
    signal = (features - mean) @ generator.normal(size=(p, voxels))
    noise = np.logspace(-1, 1.5, voxels) * generator.normal(size=(n, voxels))
    return features.astype(dtype), (signal + noise + mean).astype(dtype)


def by_refitting(
    features: np.ndarray, responses: np.ndarray, splits: list[Split], intercept: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Penalties, cross-validated scores and coefficients by fitting every penalty on every fold."""
    features, responses = features.astype(np.float64), responses.astype(np.float64)
    judged = np.zeros((len(ALPHAS), responses.shape[1]))
    for train, validation in splits:
        for index, alpha in enumerate(ALPHAS):
            model = Ridge(alpha=alpha, fit_intercept=intercept).fit(features[train], responses[train])
            judged[index] -= ((model.predict(features[validation]) - responses[validation]) ** 2).mean(axis=0) / len(splits)
    best = judged.argmax(axis=0)
    model = Ridge(alpha=ALPHAS[best], fit_intercept=intercept).fit(features, responses)
    return ALPHAS[best], judged.max(axis=0), model.coef_.T


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("splits", ["contiguous", "runs of different length", "with gaps"])
@pytest.mark.parametrize(("n", "p"), [(60, 12), (60, 55), (50, 50), (40, 90)], ids=lambda value: str(value))
def test_penalties_scores_and_coefficients_are_those_of_refitting_everything(n: int, p: int, splits: str, intercept: bool) -> None:
    features, responses = problem(n, p, mean=3.0 * intercept)
    folds = {
        "contiguous": contiguous_splits(n, 5),
        "runs of different length": run_splits(np.repeat([0, 1, 2], [n // 2, n // 4, n - n // 2 - n // 4])),
        "with gaps": PURGED,
    }[splits]
    alphas, scores, coefficients = by_refitting(features, responses, folds, intercept)
    fit = fit_ridge(features, responses, alphas=ALPHAS, splits=folds, intercept=intercept)
    np.testing.assert_array_equal(fit.alphas, alphas)
    np.testing.assert_allclose(fit.scores, scores, rtol=1e-6)  # the tie-break adds up to 1e-9
    # float64, and a condition number of 1e4 squared
    np.testing.assert_allclose(fit.coefficients, coefficients, rtol=0, atol=1e-10 * np.abs(coefficients).max())
    if not intercept:
        assert not fit.intercept.any()


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "p"), [(60, 12), (40, 90)])
def test_residuals_are_those_of_fits_without_the_fold(n: int, p: int, intercept: bool) -> None:
    features, responses = problem(n, p, mean=3.0 * intercept)
    solver = RidgeSolver(features, alphas=ALPHAS, splits=PURGED, intercept=intercept, dtype=torch.float64)
    alphas = solver.fit(responses).alphas
    expected = np.full_like(responses, np.nan)
    for train, validation in PURGED:
        model = Ridge(alpha=alphas, fit_intercept=intercept).fit(features[train], responses[train])
        expected[validation] = responses[validation] - model.predict(features[validation])
    np.testing.assert_allclose(solver.residuals(responses, alphas), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("n", "p"), [(300, 60), (120, 200)])
def test_in_single_precision_coefficients_agree_to_a_millionth(n: int, p: int) -> None:
    features, responses = problem(n, p, mean=0.5, decades=0, dtype=np.float32)
    alphas, _, coefficients = by_refitting(features, responses, contiguous_splits(n, 5), True)
    fit = fit_ridge(features, responses, alphas=ALPHAS)
    assert fit.coefficients.dtype == np.float32
    np.testing.assert_array_equal(fit.alphas, alphas)
    np.testing.assert_allclose(fit.coefficients, coefficients, rtol=0, atol=1e-6 * np.abs(coefficients).max())


@pytest.mark.parametrize(("n", "p"), [(200, 48), (120, 200)])
def test_himalaya_chooses_the_same_penalties_and_agrees_to_a_millionth(n: int, p: int) -> None:
    """Beside himalaya in float64, with which ours agrees to 1e-13. In float32 ours is within 5e-7; himalaya's own is off by 2e-6 there."""
    features, responses = problem(n, p, voxels=100, mean=0, decades=0)

    model = HimalayaRidgeCV(alphas=ALPHAS, cv=5, fit_intercept=False, solver_params={"warn": False}).fit(features, responses)
    exact = fit_ridge(features, responses, alphas=ALPHAS, intercept=False)
    np.testing.assert_allclose(exact.alphas, model.best_alphas_, rtol=1e-6)  # himalaya's come back by way of a logarithm
    np.testing.assert_allclose(exact.coefficients, model.coef_, rtol=0, atol=1e-12)
    single = fit_ridge(features.astype(np.float32), responses.astype(np.float32), alphas=ALPHAS, intercept=False)
    np.testing.assert_array_equal(single.alphas, exact.alphas)
    scale = np.abs(exact.coefficients).max()
    assert np.abs(single.coefficients - exact.coefficients).max() < 1e-6 * scale


def test_leaving_single_samples_out_is_scikit_learns_leave_one_out() -> None:
    features, responses = problem(40, 60)
    fit = fit_ridge(features, responses, alphas=ALPHAS, splits=40)
    reference = RidgeCV(alphas=ALPHAS, alpha_per_target=True).fit(features, responses)
    np.testing.assert_array_equal(fit.alphas, reference.alpha_)
    np.testing.assert_allclose(fit.coefficients.T, reference.coef_, rtol=0, atol=1e-10)


def test_predictions_are_of_new_samples_and_carry_the_mean() -> None:
    features, responses = problem(80, 10)
    fit = fit_ridge(features[:60], responses[:60], alphas=ALPHAS)
    reference = Ridge(alpha=fit.alphas).fit(features[:60], responses[:60])
    np.testing.assert_allclose(fit.predict(features[60:]), reference.predict(features[60:]), rtol=1e-9)
    with pytest.raises(UserError, match=r"features of shape \(20, 9\), but the fit is of 10 features"):
        fit.predict(features[60:, :9])


def test_many_voxels_are_fitted_as_each_would_be_alone() -> None:
    features, responses = problem(60, 12, voxels=2100)  # over two blocks of voxels
    fit = fit_ridge(features, responses, alphas=ALPHAS)
    few = [0, 1023, 1024, 2099]
    alone = fit_ridge(features, responses[:, few], alphas=ALPHAS)
    np.testing.assert_array_equal(fit.alphas[few], alone.alphas)
    np.testing.assert_allclose(fit.coefficients[:, few], alone.coefficients, rtol=0, atol=1e-12)


def test_with_little_memory_penalties_and_scores_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, responses = problem(40, 90)
    plenty = fit_ridge(features, responses, alphas=ALPHAS)
    monkeypatch.setattr("shared.encoding.dual.MULTIPLIED_BYTES", 0)
    little = fit_ridge(features, responses, alphas=ALPHAS)
    np.testing.assert_array_equal(little.alphas, plenty.alphas)
    np.testing.assert_allclose(little.scores, plenty.scores, rtol=1e-10)


def test_tensors_and_arrays_give_the_same_fit() -> None:
    features, responses = problem(60, 12, dtype=np.float32)
    by_arrays = fit_ridge(features, responses, alphas=ALPHAS)
    by_tensors = fit_ridge(torch.from_numpy(features), torch.from_numpy(responses), alphas=ALPHAS)
    np.testing.assert_array_equal(by_arrays.coefficients, by_tensors.coefficients)


def test_a_kernel_gives_the_predictions_of_its_features() -> None:
    features, responses = problem(50, 80)
    by_features = fit_ridge(features[:40], responses[:40], alphas=ALPHAS)
    by_kernel = fit_kernel_ridge(features[:40] @ features[:40].T, responses[:40], alphas=ALPHAS)
    np.testing.assert_array_equal(by_kernel.alphas, by_features.alphas)
    expected = by_features.predict(features[40:])
    np.testing.assert_allclose(by_kernel.predict(features[40:] @ features[:40].T), expected, rtol=0, atol=1e-8)
    assert by_kernel.dual.shape == (40, 7)


def test_scores_may_be_r2_or_correlation_and_the_penalty_one_for_all_or_careful() -> None:
    features, responses = problem(60, 12)
    each = fit_ridge(features, responses, alphas=ALPHAS, score="r2")
    assert each.scores.max() <= 1
    correlation = fit_ridge(features, responses, alphas=ALPHAS, score="pearson")
    assert (np.abs(correlation.scores) <= 1).all()
    assert correlation.scores[0] > 0.9  # the voxel with a tenth of noise
    common = fit_ridge(features, responses, alphas=ALPHAS, score="r2", choice="common")
    assert len(np.unique(common.alphas)) == 1
    careful = fit_ridge(features, responses, alphas=ALPHAS, score="r2", choice="conservative")
    assert (careful.alphas >= each.alphas).all()
    assert (careful.scores <= each.scores).all()


def test_equal_scores_go_to_the_larger_penalty() -> None:
    index, _ = choose(torch.zeros(3, 4, 2), torch.tensor([1.0, 10.0, 100.0, 1000.0]), "each")
    assert index.tolist() == [3, 3]


def test_generalised_cross_validation_follows_its_formula() -> None:
    features, responses = problem(60, 12)
    fit = fit_ridge_gcv(features, responses, alphas=ALPHAS)
    for voxel in range(responses.shape[1]):
        criteria = []
        for alpha in ALPHAS:
            centred = features - features.mean(axis=0)
            hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(12), centred.T) + 1 / 60
            residual = responses[:, voxel] - hat @ responses[:, voxel]
            criteria.append(60 * (residual**2).sum() / (60 - np.trace(hat)) ** 2)
        assert fit.alphas[voxel] == ALPHAS[int(np.argmin(criteria))]
        assert fit.scores[voxel] == pytest.approx(-min(criteria))


def spoiled(**voxels: float) -> np.ndarray:
    responses = problem(60, 12)[1]
    for name, value in voxels.items():
        responses[:, int(name.removeprefix("voxel_"))] = value
    return responses


@pytest.mark.parametrize(
    ("responses", "says"),
    [
        (spoiled(voxel_3=np.nan), r"responses: voxel 3 is not finite \(NaN or infinity\)\. Mask"),
        (spoiled(voxel_1=2.0, voxel_4=0.0), r"responses: 2 voxels \(1, 4\) are constant\. Mask"),
        (spoiled()[:50], r"features: 60 rows, but responses: 50 rows\. There must be one row for each stimulus"),
        (spoiled()[:, 0], r"a table \[stimuli, voxels\] is needed"),
    ],
)
def test_responses_that_cannot_be_fitted_are_refused_in_one_sentence(responses: np.ndarray, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit_ridge(problem(60, 12)[0], responses, alphas=ALPHAS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"splits": [(np.arange(40), np.arange(30, 60))]}, "split 1: a sample comes twice, or is both fitted and judged"),
        ({"splits": [(np.arange(40), np.arange(50, 70))]}, "split 1: needs training and validation samples among 0 to 59"),
        ({"splits": []}, "no splits"),
        ({"splits": 1}, "60 samples cannot be divided into 1 folds"),
        ({"alphas": [0.0, 1.0]}, "alphas must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: dict, says: str) -> None:
    features, responses = problem(60, 12)
    with pytest.raises(UserError, match=says):
        fit_ridge(features, responses, **({"alphas": ALPHAS} | arguments))


def test_features_with_holes_are_refused_by_number() -> None:
    features, _ = problem(60, 12)
    features[5, 2] = np.inf
    with pytest.raises(UserError, match="feature 2 is not finite"):
        RidgeSolver(features, alphas=ALPHAS)

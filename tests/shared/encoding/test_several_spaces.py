"""Several feature spaces: penalties of their own, mixtures of their predictions, and shares that add up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.model_selection import KFold

from shared.encoding.banded import dirichlet_samples, fit_banded_ridge
from shared.encoding.ridge import fit_ridge
from shared.encoding.stacking import stacking_weights
from shared.errors import UserError
from shared.metrics.encoding import r2

ALPHAS = np.logspace(-1, 4, 6)


def spaces(n: int, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(n, size)) + 1 for name, size in zip("ab", sizes, strict=True)}


@pytest.mark.parametrize("sizes", [(8, 12), (50, 60)], ids=["few features", "more features than samples"])
def test_a_space_that_explains_nothing_is_paid_for_by_its_own_penalty(sizes: tuple[int, int]) -> None:
    features = spaces(120, sizes)
    generator = np.random.default_rng(1)
    responses = (features["a"] - 1) @ generator.normal(size=(sizes[0], 5)) / np.sqrt(sizes[0]) + 0.5 * generator.normal(size=(120, 5)) + 3
    train, test = {k: v[:90] for k, v in features.items()}, {k: v[90:] for k, v in features.items()}
    banded = fit_banded_ridge(train, responses[:90], alphas=ALPHAS, shares=20)
    together = fit_ridge(np.concatenate(list(train.values()), axis=1), responses[:90], alphas=ALPHAS)
    plain = together.predict(np.concatenate(list(test.values()), axis=1))
    assert r2(responses[90:], banded.predict(test)).mean() > r2(responses[90:], plain).mean()
    assert (banded.deltas[0] > banded.deltas[1]).all()
    # The parts and the mean of the fitted responses make up the prediction; float64 sums.
    np.testing.assert_allclose(banded.split(test).sum(axis=0) + responses[:90].mean(axis=0), banded.predict(test), rtol=0, atol=1e-8)


@pytest.mark.parametrize("sizes", [(8, 12), (50, 60)], ids=["few features", "more features than samples"])
def test_equal_shares_are_plain_ridge_at_the_number_of_spaces_times_the_penalty(sizes: tuple[int, int]) -> None:
    features = spaces(90, sizes)
    responses = features["a"] @ np.ones((sizes[0], 3)) + np.random.default_rng(1).normal(size=(90, 3)) * [1, 5, 20]
    banded = fit_banded_ridge(features, responses, alphas=ALPHAS, shares=np.array([[0.5, 0.5]]))
    plain = fit_ridge(np.concatenate(list(features.values()), axis=1), responses, alphas=2 * ALPHAS)
    np.testing.assert_allclose(np.concatenate(list(banded.coefficients.values())), plain.coefficients, rtol=0, atol=1e-8)
    np.testing.assert_allclose(banded.intercept, plain.intercept, rtol=0, atol=1e-6)
    np.testing.assert_allclose(banded.deltas, np.log(0.5 / (plain.alphas / 2)) * np.ones((2, 1)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [(8, 12), (50, 60)], ids=["few features", "more features than samples"])
def test_himalaya_finds_the_same(sizes: tuple[int, int]) -> None:
    """In float64, to the rounding of its square roots and logarithms."""
    himalaya = pytest.importorskip("himalaya.ridge", reason="himalaya is not installed")
    features = spaces(90, sizes)
    responses = features["a"] @ np.ones((sizes[0], 3)) + np.random.default_rng(1).normal(size=(90, 3)) * [1, 5, 20]
    points = dirichlet_samples(6, 2)
    ours = fit_banded_ridge(features, responses, alphas=ALPHAS, shares=points)
    deltas, weights, scores, intercept = himalaya.solve_group_ridge_random_search(
        [space.copy() for space in features.values()],
        responses,
        n_iter=points,
        alphas=ALPHAS,
        cv=KFold(5),
        fit_intercept=True,
        return_weights=True,
        progress_bar=False,
        warn=False,
    )
    np.testing.assert_allclose(ours.deltas, deltas, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(list(ours.coefficients.values())), weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.intercept, intercept, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.search, scores, rtol=1e-6)


def test_a_share_of_nothing_is_allowed() -> None:
    features = spaces(60, (4, 5))
    responses = features["a"][:, :2] + 0.1 * np.random.default_rng(1).normal(size=(60, 2))
    fit = fit_banded_ridge(features, responses, alphas=ALPHAS, shares=np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert np.isfinite(fit.predict(features)).all()
    assert fit.search.argmax(axis=0).tolist() == [0, 0]


def test_what_cannot_be_searched_is_refused() -> None:
    features = spaces(30, (3, 3))
    with pytest.raises(UserError, match=r"shares must be points of a simplex, \[samples, 2\]"):
        fit_banded_ridge(features, np.random.default_rng(0).normal(size=(30, 2)), shares=np.array([[0.9, 0.9]]))
    with pytest.raises(UserError, match="b: 20 rows, but responses: 30 rows"):
        fit_banded_ridge({"a": features["a"], "b": features["b"][:20]}, np.random.default_rng(0).normal(size=(30, 2)))


def test_samples_lie_on_the_simplex() -> None:
    samples = dirichlet_samples(21, 3)
    assert samples.shape == (21, 3)
    np.testing.assert_allclose(samples.sum(axis=1), 1)


def test_stacking_weights_are_the_optimum_on_the_simplex() -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(4, 4, 6))
    residuals = np.einsum("ijv,jnv->inv", mixing, generator.normal(size=(4, 200, 6)))
    weights = stacking_weights(residuals)
    for voxel in range(6):
        products = residuals[:, :, voxel] @ residuals[:, :, voxel].T / 200
        found = minimize(
            lambda w, p: w @ p @ w,
            np.full(4, 0.25),
            args=(products,),
            jac=lambda w, p: 2 * p @ w,
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(weights[voxel], found.x, rtol=0, atol=1e-4)  # the other solver's tolerance
        assert weights[voxel] @ products @ weights[voxel] <= found.fun * (1 + 1e-9)


def test_equal_models_are_no_problem_and_a_perfect_one_takes_it_all() -> None:
    errors = np.random.default_rng(0).normal(size=(1, 50, 2))
    np.testing.assert_allclose(stacking_weights(np.concatenate([errors, errors])).sum(axis=1), 1)
    np.testing.assert_allclose(stacking_weights(np.concatenate([errors, 0 * errors])), [[0, 1], [0, 1]], atol=1e-6)
    with pytest.raises(ValueError, match="at most 10"):
        stacking_weights(np.zeros((11, 2, 1)))

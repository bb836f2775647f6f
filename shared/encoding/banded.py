"""Banded ridge: a penalty for each feature space and voxel, so that spaces of different worth do not pay for each other.

The search and its solvers are himalaya's (Dupré la Tour et al., "Feature-space selection with banded ridge regression", NeuroImage 2022).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.encoding.checks import check_features, check_pairs, check_responses
from shared.encoding.ridge import DEFAULT_ALPHAS
from shared.encoding.splits import Split, contiguous_splits
from shared.errors import UserError

__all__ = ["BandedFit", "dirichlet_samples", "fit_banded_ridge"]

_SMALLEST_SHARE = 1e-10
"""In place of a share of 0, by whose root features would be divided."""

_LOCK = threading.Lock()
"""himalaya's choice of backend is one for the whole process."""


@dataclass(frozen=True, kw_only=True)
class BandedFit:
    """A linear map from several feature spaces to responses; the prediction is the sum of the spaces' own."""

    coefficients: Mapping[str, NDArray]
    """Space -> [p_i, v], on the features as given."""
    intercept: NDArray
    """[v]."""
    means: Mapping[str, NDArray]
    """Space -> [p_i], of the fitted samples; what a space predicts is measured from there."""
    deltas: NDArray
    """[k, v]: log(share / alpha) of each space: the larger, the less penalised."""
    scores: NDArray
    """[v], the cross-validated score (minus the mean squared error) of the chosen penalties."""
    search: NDArray
    """[samples, v]: the best score at each of the searched shares."""

    def predict(self, features: Mapping[str, ArrayLike]) -> NDArray:
        """Responses [m, v] to features, space -> [m, p_i]."""
        return sum((np.asarray(features[name]) @ weights for name, weights in self.coefficients.items()), start=self.intercept)

    def split(self, features: Mapping[str, ArrayLike]) -> NDArray:
        """[k, m, v]: what comes from each space; with the responses' mean, their sum is ``predict``."""
        return np.stack([(np.asarray(features[name]) - self.means[name]) @ weights for name, weights in self.coefficients.items()])


def fit_banded_ridge(
    features: Mapping[str, ArrayLike],
    responses: ArrayLike,
    *,
    alphas: Sequence[float] | NDArray = DEFAULT_ALPHAS,
    splits: int | Sequence[Split] = 5,
    shares: int | ArrayLike = 100,
    seed: int = 0,
    intercept: bool = True,
    targets_at_once: int = 1000,
) -> BandedFit:
    """Searches at random for each voxel's penalties of each feature space.

    Solved by the features or by their kernels, whichever is smaller.

    Args:
        features: space -> [n, p_i]; bring the spaces to comparable scales (z-scored) first.
        responses: [n, v].
        alphas, splits: as for ``RidgeSolver``.
        shares: how many points of the simplex to try (see ``dirichlet_samples``; the first is replaced by equal shares), or the points
            themselves, [samples, k].
        seed: of the search.
        intercept: as for ``RidgeSolver``.
        targets_at_once: voxels in memory together.

    Raises:
        UserError: if features or responses cannot be used, or himalaya is not installed.
    """
    names, given, targets = list(features), [np.asarray(space) for space in features.values()], np.asarray(responses)
    for name, space in zip(names, given, strict=True):
        check_features(space, name=name)
        check_pairs(len(space), len(targets), names=(name, "responses"))
    check_responses(targets)
    points = _points(shares, len(given), seed)
    folds = contiguous_splits(len(targets), splits) if isinstance(splits, int) else list(splits)
    dtype = np.float64 if targets.dtype == np.float64 else np.float32
    spaces = [space.astype(dtype, copy=False) for space in given]
    means = [space.mean(axis=0) if intercept else np.zeros(space.shape[1], dtype) for space in spaces]
    solve = _solve_by_kernels if sum(space.shape[1] for space in spaces) > len(targets) else _solve_by_features
    deltas, weights, search, constant = solve(
        spaces,
        targets.astype(dtype, copy=False),
        alphas=np.asarray(alphas, dtype=dtype),
        cv=_Folds(folds),
        points=points.astype(dtype),
        intercept=intercept,
        targets_at_once=targets_at_once,
    )
    return BandedFit(
        coefficients=dict(zip(names, weights, strict=True)),
        intercept=constant,
        means=dict(zip(names, means, strict=True)),
        deltas=deltas,
        scores=search.max(axis=0),
        search=search,
    )


def dirichlet_samples(count: int, spaces: int, *, concentration: Sequence[float] = (0.1, 1.0), seed: int = 0) -> NDArray:
    """[count, spaces]: points of the simplex from symmetric Dirichlet distributions of these concentrations, in turn; himalaya's sequence.

    Low concentrations give corners (few spaces count), 1 covers the simplex evenly, infinity is the centre.
    """
    generator = np.random.RandomState(seed)  # the published sequence
    each = -(-count // len(concentration))
    drawn = [
        np.full((each, spaces), 1 / spaces) if np.isinf(value) else generator.dirichlet([value] * spaces, each) for value in concentration
    ]
    return np.stack(drawn, axis=1).reshape(-1, spaces)[:count]


class _Folds:
    """Splits in the form that scikit-learn's users of splitters expect."""

    def __init__(self, folds: Sequence[Split]) -> None:
        self.folds = folds

    def get_n_splits(self, *_: object) -> int:
        return len(self.folds)

    def split(self, *_: object) -> Sequence[Split]:
        return self.folds


def _points(shares: int | ArrayLike, spaces: int, seed: int) -> NDArray:
    if isinstance(shares, int):
        points = dirichlet_samples(shares, spaces, seed=seed)
        points[0] = 1 / spaces
    else:
        points = np.array(shares, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != spaces or points.min() < 0 or not np.allclose(points.sum(axis=1), 1, atol=1e-5):
            raise UserError(f"shares must be points of a simplex, [samples, {spaces}], each row at least 0 and together 1.")
    return np.maximum(points, _SMALLEST_SHARE)


def _solve_by_features(
    spaces: list[NDArray], targets: NDArray, *, alphas: NDArray, cv: _Folds, points: NDArray, intercept: bool, targets_at_once: int
) -> tuple[NDArray, list[NDArray], NDArray, NDArray]:
    with _himalaya():
        from himalaya.ridge import solve_group_ridge_random_search

        found = solve_group_ridge_random_search(
            [space.copy() for space in spaces],  # it scales them in place
            targets,
            n_iter=points,
            alphas=alphas,
            cv=cv,
            fit_intercept=intercept,
            return_weights=True,
            n_targets_batch=targets_at_once,
            progress_bar=False,
            warn=False,
        )
    borders = np.cumsum([space.shape[1] for space in spaces])[:-1]
    return found[0], np.split(found[1], borders), found[2], found[3] if intercept else np.zeros_like(targets[0])


def _solve_by_kernels(
    spaces: list[NDArray], targets: NDArray, *, alphas: NDArray, cv: _Folds, points: NDArray, intercept: bool, targets_at_once: int
) -> tuple[NDArray, list[NDArray], NDArray, NDArray]:
    centred = [space - space.mean(axis=0) if intercept else space for space in spaces]
    with _himalaya():
        from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search

        found = solve_multiple_kernel_ridge_random_search(
            np.stack([space @ space.T for space in centred]),
            targets,
            n_iter=points,
            alphas=alphas,
            cv=cv,
            fit_intercept=intercept,
            return_weights="dual",
            n_targets_batch=targets_at_once,
            progress_bar=False,
        )
    dual, shares = found[1], np.exp(found[0])
    weights = [space.T @ dual * share for space, share in zip(centred, shares, strict=True)]
    if not intercept:
        return found[0], weights, found[2], np.zeros_like(targets[0])
    means = [space.mean(axis=0) for space in spaces]
    constant = targets.mean(axis=0) - sum(mean @ weight for mean, weight in zip(means, weights, strict=True))
    return found[0], weights, found[2], constant


@contextmanager
def _himalaya() -> Iterator[None]:
    """himalaya with NumPy, to itself."""
    try:
        from himalaya.backend import set_backend
    except ModuleNotFoundError as error:
        raise UserError('Banded ridge needs himalaya: pip install "fovea[brain-encoders]"') from error
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_backend("numpy")
        yield

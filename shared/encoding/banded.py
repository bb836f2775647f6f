"""Banded ridge: a penalty for each feature space and voxel, so that spaces of different worth do not pay for each other.

The search is himalaya's (Dupré la Tour et al., "Feature-space selection with banded ridge regression", NeuroImage 2022), with its results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from shared.encoding.checks import check_features, check_pairs, check_responses
from shared.encoding.ridge import DEFAULT_ALPHAS, fit_ridge
from shared.encoding.splits import Split, contiguous_splits
from shared.errors import UserError

__all__ = ["BandedFit", "dirichlet_samples", "fit_banded_ridge"]

_SMALLEST_SHARE = 1e-10
"""In place of a share of 0, by whose root features would be divided."""

_BETTER = float(np.finfo(np.float32).eps)
"""A voxel moves to other shares only for a score that is higher by more than rounding."""


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
    device: str | torch.device = "cpu",
) -> BandedFit:
    """Searches at random for each voxel's penalties of each feature space.

    Shares of a penalty are roots of the features' scales, so that each of them is plain ridge, in which nothing is computed twice.

    Args:
        features: space -> [n, p_i]; bring the spaces to comparable scales (z-scored) first.
        responses: [n, v].
        alphas, splits: as for ``RidgeSolver``.
        shares: how many points of the simplex to try (see ``dirichlet_samples``; the first is replaced by equal shares), or the points
            themselves, [samples, k].
        seed: of the search.
        intercept, device: as for ``RidgeSolver``.

    Raises:
        UserError: if features or responses cannot be used.
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
    wide = np.concatenate(spaces, axis=1)
    widths = [space.shape[1] for space in spaces]
    weights, constant = np.zeros((wide.shape[1], targets.shape[1]), dtype), np.zeros(targets.shape[1], dtype)
    deltas, search = np.zeros((len(spaces), targets.shape[1])), np.empty((len(points), targets.shape[1]))
    best = np.full(targets.shape[1], -np.inf)
    for number, point in enumerate(points):
        scale = np.repeat(np.sqrt(point), widths).astype(dtype)
        fit = fit_ridge(wide * scale, targets.astype(dtype, copy=False), alphas=alphas, splits=folds, intercept=intercept, device=device)
        search[number] = fit.scores
        better = fit.scores > best + _BETTER
        best[better] = fit.scores[better]
        weights[:, better] = scale[:, None] * fit.coefficients[:, better]
        constant[better] = fit.intercept[better]
        deltas[:, better] = np.log(point)[:, None] - np.log(fit.alphas[better])
    return BandedFit(
        coefficients=dict(zip(names, np.split(weights, np.cumsum(widths)[:-1]), strict=True)),
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


def _points(shares: int | ArrayLike, spaces: int, seed: int) -> NDArray:
    if isinstance(shares, int):
        points = dirichlet_samples(shares, spaces, seed=seed)
        points[0] = 1 / spaces
    else:
        points = np.array(shares, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != spaces or points.min() < 0 or not np.allclose(points.sum(axis=1), 1, atol=1e-5):
            raise UserError(f"shares must be points of a simplex, [samples, {spaces}], each row at least 0 and together 1.")
    return np.maximum(points, _SMALLEST_SHARE)

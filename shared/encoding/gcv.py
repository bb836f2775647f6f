"""Ridge with each voxel's penalty chosen by generalised cross-validation: no folds, but blind to samples that resemble each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.encoding.checks import check_features, check_pairs, check_responses
from shared.encoding.ridge import DEFAULT_ALPHAS, RidgeFit

__all__ = ["fit_ridge_gcv"]


def fit_ridge_gcv(
    features: ArrayLike, responses: ArrayLike, *, alphas: Sequence[float] | NDArray = DEFAULT_ALPHAS, intercept: bool = True
) -> RidgeFit:
    """Ridge of responses [n, v] on features [n, p] at the penalties that minimise n ||Y - HY||^2 / (n - tr H)^2.

    Golub, Heath and Wahba, "Generalized cross-validation as a method for choosing a good ridge parameter", Technometrics 1979. For time
    series, and where stimuli repeat, fit_ridge with splits by run or by stimulus is the honest choice.

    Returns:
        ``scores`` is minus the criterion.

    Raises:
        UserError: as ``RidgeSolver``.
    """
    given, targets = np.asarray(features, dtype=np.float64), np.asarray(responses)
    check_features(given)
    check_pairs(len(given), len(targets))
    check_responses(targets)
    count, grid = len(given), np.asarray(alphas, dtype=np.float64)
    feature_mean = given.mean(axis=0) if intercept else np.zeros(given.shape[1])
    target_mean = targets.mean(axis=0, dtype=np.float64) if intercept else np.zeros(targets.shape[1])
    centred = targets - target_mean
    left, singular, right = np.linalg.svd(given - feature_mean, full_matrices=False)
    rotated = left.T @ centred
    total = (centred**2).sum(axis=0)
    kept = singular**2 / (singular**2 + grid[:, None])  # [alphas, r]
    residual = total - (2 * kept - kept**2) @ rotated**2
    freedom = count - kept.sum(axis=1) - intercept
    criterion = count * residual / freedom[:, None] ** 2
    index = criterion.argmin(axis=0)
    coefficients = right.T @ ((singular / (singular**2 + grid[:, None]))[index].T * rotated)
    dtype = np.float64 if targets.dtype == np.float64 else np.float32
    return RidgeFit(
        coefficients=coefficients.astype(dtype),
        intercept=(target_mean - feature_mean @ coefficients).astype(dtype),
        alphas=grid[index],
        scores=-criterion.min(axis=0),
    )

"""Stacked regressions: predictions of several feature spaces, mixed for each voxel as suits the responses that were not fitted."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MOST_SPACES", "stacking_weights"]

MOST_SPACES = 10
"""All subsets are tried, so that the answer is exact: a thousand small systems a voxel."""


def stacking_weights(residuals: ArrayLike) -> NDArray:
    """[v, k]: for each voxel the weights, at least 0 and together 1, that make the mixed out-of-fold residuals smallest.

    min w' P w with P_ij = mean(e_i e_j) (Breiman, "Stacked regressions", Machine Learning 1996; Lin et al., "Stacked regressions and
    structured variance partitioning for interpretable brain maps", NeuroImage 2024). Solved exactly: the optimum is the best of the
    solutions on each subset of spaces whose weights are all positive.

    Args:
        residuals: [k, n, v], the errors of each feature space's model on samples that it was not fitted to.

    Raises:
        ValueError: if there are more than ten feature spaces.
    """
    errors = np.asarray(residuals, dtype=np.float64)
    spaces, samples, voxels = errors.shape
    if spaces > MOST_SPACES:
        raise ValueError(f"{spaces} feature spaces cannot be stacked exactly: give at most {MOST_SPACES}")
    products = np.einsum("inv,jnv->vij", errors, errors, optimize=True) / samples
    weights, smallest = np.zeros((voxels, spaces)), np.full(voxels, np.inf)
    for size in range(1, spaces + 1):
        for subset in map(list, combinations(range(spaces), size)):
            part = products[:, subset][:, :, subset]
            found = _on_subset(part)
            loss = np.einsum("vi,vij,vj->v", found, part, found)
            better = (found >= 0).all(axis=1) & (loss < smallest)
            smallest[better] = loss[better]
            weights[better] = 0
            weights[np.ix_(better, subset)] = found[better]
    return weights


def _on_subset(products: NDArray) -> NDArray:
    """[v, s]: weights that add up to 1 and minimise w' P w, of any sign: proportional to the inverse of P times ones."""
    scale = np.trace(products, axis1=1, axis2=2)[:, None, None] / products.shape[1]
    # Equal predictions make P singular; this much on its diagonal makes it solvable.
    steady = products + 1e-12 * np.where(scale > 0, scale, 1) * np.eye(products.shape[1])
    raw = np.linalg.solve(steady, np.ones((*products.shape[:2], 1)))[..., 0]
    return raw / raw.sum(axis=1, keepdims=True)

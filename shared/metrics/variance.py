"""Whose variance is it: what each of several feature spaces explains alone, and what they explain together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.metrics.encoding import r2

__all__ = ["correlation_split", "model_variances", "ordinary_r2", "product_measure", "relative_weights", "variance_partition"]

Space = str


def model_variances(spaces: Sequence[Space], score: Callable[[tuple[Space, ...]], ArrayLike]) -> dict[frozenset[Space], NDArray]:
    """The R2 of a model of each combination of feature spaces: 2^k - 1 of them.

    Args:
        spaces: names of k feature spaces.
        score: the R2 [v] (held out, for encoders) of a model of these spaces together.
    """
    return {frozenset(chosen): np.asarray(score(chosen), dtype=np.float64) for chosen in _combinations(spaces)}


def variance_partition(variances: Mapping[frozenset[Space], ArrayLike]) -> dict[frozenset[Space], NDArray]:
    """Commonality analysis: the variance that exactly these spaces share, for each combination of spaces.

    By inclusion and exclusion over the R2 of all combinations (Seibold and McPhee 1979; de Heer et al., "The hierarchical cortical
    organization of human speech processing", J Neurosci 2017). A single space's part is unique to it; all parts add up to the R2 of the
    largest model. A part may be below 0, where spaces suppress each other, or by noise.

    Args:
        variances: as from ``model_variances``.

    Raises:
        ValueError: if a combination is missing.
    """
    spaces = sorted(frozenset(chain.from_iterable(variances)))
    missing = [chosen for chosen in _combinations(spaces) if frozenset(chosen) not in variances]
    if missing:
        raise ValueError(f"the R2 of {' + '.join(missing[0])} is missing: variance partitioning needs every combination")
    everything = frozenset(spaces)
    explained = {frozenset(chosen): np.asarray(value, dtype=np.float64) for chosen, value in variances.items()}
    parts = {}
    for chosen in map(frozenset, _combinations(spaces)):
        outside = everything - chosen
        # What the spaces outside leave unexplained, alternating over subsets of those inside.
        total = np.zeros_like(explained[everything])
        for inside in map(frozenset, chain([()], _combinations(sorted(chosen)))):
            model = outside | inside
            if model:
                total = total + (-1) ** (len(inside) + 1) * explained[model]
        parts[chosen] = total
    return parts


def ordinary_r2(predictors: ArrayLike, target: ArrayLike) -> float:
    """In-sample R2 of ordinary least squares with intercept of ``target`` [m] on ``predictors`` [m, k]: for dissimilarities, not voxels."""
    given, wanted = np.asarray(predictors, dtype=np.float64), np.asarray(target, dtype=np.float64)
    given, wanted = given - given.mean(axis=0), wanted - wanted.mean()
    solution = np.linalg.lstsq(given, wanted, rcond=None)[0]
    return float(1 - ((wanted - given @ solution) ** 2).sum() / (wanted**2).sum())


def product_measure(truth: ArrayLike, split: ArrayLike, *, crossed: bool = True) -> NDArray:
    """[k, v]: each space's share of the R2 of their sum; the shares add up to it, and may be below 0 (Pratt 1987; Dupré la Tour 2022).

    sum(2 y p_i - p_i sum_j p_j) / sum(y^2) over samples.

    Args:
        truth: [n, v], with mean 0 (of the training samples).
        split: [k, n, v], the part of the prediction that comes from each space.
        crossed: without, p_i^2 takes the place of p_i sum_j p_j: what spaces share then counts for none of them.
    """
    true, parts = np.asarray(truth, dtype=np.float64), np.asarray(split, dtype=np.float64)
    other = parts.sum(axis=0) if crossed else parts
    return _ratio((2 * true * parts - parts * other).sum(axis=1), (true**2).sum(axis=0))


def relative_weights(truth: ArrayLike, split: ArrayLike) -> NDArray:
    """[k, v]: each space's share of the R2 of their sum by the nearest orthogonal predictions; the shares add up to it and have its sign.

    Johnson, "A heuristic method for estimating the relative weight of predictor variables in multiple regression", 2000; for split
    predictions Dupré la Tour et al., NeuroImage 2022. Arguments as ``product_measure``.
    """
    true, parts = np.asarray(truth, dtype=np.float64), np.asarray(split, dtype=np.float64)
    whole = parts.sum(axis=0)
    left, singular, right = np.linalg.svd(parts.transpose(2, 0, 1), full_matrices=False)  # [v, k, k], [v, k], [v, k, n]
    loadings = (left * singular[:, None, :]) @ left.transpose(0, 2, 1)  # of each part on the orthogonal predictions left @ right
    explained = np.einsum("vkn,nv->vk", left @ right, whole) ** 2
    belonging = _ratio(loadings**2, (loadings**2).sum(axis=1, keepdims=True))
    weights = np.einsum("vik,vk->iv", belonging, explained)
    return _ratio(weights, weights.sum(axis=0)) * r2(true, whole)


def correlation_split(truth: ArrayLike, split: ArrayLike) -> NDArray:
    """[k, v]: each space's share of the correlation of the sum with the truth: cov(y, p_i) / (sd(y) sd(sum_j p_j)); adds up to it."""
    true, parts = np.asarray(truth, dtype=np.float64), np.asarray(split, dtype=np.float64)
    true, parts = true - true.mean(axis=0), parts - parts.mean(axis=1, keepdims=True)
    whole = parts.sum(axis=0)
    return _ratio((true * parts).sum(axis=1), np.sqrt((true**2).sum(axis=0) * (whole**2).sum(axis=0)))


def _combinations(spaces: Sequence[Space]) -> list[tuple[Space, ...]]:
    return [chosen for size in range(1, len(spaces) + 1) for chosen in combinations(spaces, size)]


def _ratio(values: NDArray, scale: NDArray) -> NDArray:
    return np.where(scale > 0, values / np.where(scale > 0, scale, 1), 0)

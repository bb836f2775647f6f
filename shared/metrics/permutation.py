"""Whether a voxel is predicted at all: permutations of blocks of time, and the false discovery rate over voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from shared.metrics.encoding import pearson

__all__ = ["block_permutations", "false_discovery_rate", "permutation_test"]


def block_permutations(count: int, block: int, *, permutations: int = 1000, seed: int = 0) -> NDArray[np.intp]:
    """[permutations, count // block]: orders of the blocks of ``block`` successive samples, drawn independently.

    Raises:
        ValueError: if there are fewer than two blocks.
    """
    blocks = count // block
    if blocks < 2:
        raise ValueError(f"{count} samples make {blocks} blocks of {block}: at least two are needed to exchange")
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(blocks) for _ in range(permutations)])


def permutation_test(truth: ArrayLike, prediction: ArrayLike, *, orders: NDArray[np.intp], block: int) -> NDArray:
    """[v]: one-sided p of each voxel's correlation, (1 + exceeding permutations) / (1 + permutations).

    Blocks of successive true responses change places (the predictions stay), so that the responses keep their course within a block.
    Phipson and Smyth, "Permutation p-values should never be zero", 2010.

    Args:
        truth: [n, v]; samples beyond the last whole block are left out.
        prediction: [n, v].
        orders: [permutations, n // block], as from ``block_permutations``.
        block: samples in a block: for time series at least as long as the haemodynamic response (10 volumes are usual); 1 for single
            stimuli.
    """
    blocks = orders.shape[1]
    count = blocks * block
    true, predicted = np.asarray(truth, dtype=np.float64)[:count], np.asarray(prediction, dtype=np.float64)[:count]
    observed = pearson(true, predicted)
    # Means and spreads do not change with the order, so a permutation is one product.
    scored = _unit(true).reshape(blocks, block, -1)
    against = _unit(predicted).reshape(blocks, block, -1)
    exceeding = np.zeros(true.shape[1])
    for order in orders:
        exceeding += np.einsum("bsv,bsv->v", scored[order], against) >= observed - 1e-12
    return (1 + exceeding) / (1 + len(orders))


def false_discovery_rate(p_values: ArrayLike, *, any_dependence: bool = False) -> NDArray:
    """[v]: adjusted p values; those below q are discoveries of which a share of at most q is expected to be false.

    Benjamini and Hochberg, "Controlling the false discovery rate", JRSS B 1995. NaN stays NaN and counts for nothing.

    Args:
        any_dependence: holds whatever voxels have to do with each other, at the price of fewer discoveries (Benjamini and Yekutieli,
            Annals of Statistics 2001). Without, they must not depend on each other in opposite directions.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    known = ~np.isnan(given)
    if known.any():
        adjusted[known] = false_discovery_control(given[known], method="by" if any_dependence else "bh")
    return adjusted


def _unit(array: NDArray) -> NDArray:
    centred = array - array.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    return centred / np.where(norm > 0, norm, 1)

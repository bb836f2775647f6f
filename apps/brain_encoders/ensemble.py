"""Several encoders of the same units as one: each unit trusts those that predicted it best on validation images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["combine", "layer_weights"]


def layer_weights(correlation: NDArray[np.floating], *, sharpness: float = 50.0) -> NDArray[np.float64]:
    """The softmax over models of ``sharpness`` times their validation correlation, for each unit (Hosseini Adeli et al., 2025).

    Args:
        correlation: [models, V], on validation images; of several runs of one model, their mean.
        sharpness: 50 in the authors' evaluation, 40 in their wrapper; 0 weighs all models alike.

    Returns:
        [models, V], each column adding up to 1.
    """
    scaled = sharpness * np.nan_to_num(np.asarray(correlation, dtype=np.float64))
    weights = np.exp(scaled - scaled.max(axis=0, keepdims=True))
    return weights / weights.sum(axis=0, keepdims=True)


def combine(predictions: NDArray[np.floating], weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """The weighted sum over models: [N, V].

    The published wrapper adds up the runs of a model where it should average them, and so answers as many times too much as there are runs.

    Args:
        predictions: [models, N, V], or [models, runs, N, V], whose runs are averaged first.
        weights: [models, V], from ``layer_weights``.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    if predictions.ndim == 4:
        predictions = predictions.mean(axis=1)
    return np.einsum("mnv,mv->nv", predictions, weights)

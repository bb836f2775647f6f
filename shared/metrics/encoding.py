"""What an encoder's predictions of responses are worth: per voxel, per sample, against the noise ceiling, per region.

Responses are [n, v]: n stimuli or volumes, v voxels or vertices. Predictions may have leading axes ([..., n, v], say one per model).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "RegionScore",
    "generalisation",
    "negative_mse",
    "noise_normalised",
    "pearson",
    "pearson_over_voxels",
    "published_noise_normalised",
    "r2",
    "region_summary",
    "two_v_two",
]

_FLOOR = 1e-14


def negative_mse(truth: ArrayLike, prediction: ArrayLike) -> NDArray:
    """[..., v]: minus the mean squared error of each voxel."""
    truth, prediction = _float(truth), _float(prediction)
    return -((truth - prediction) ** 2).mean(axis=-2)


def r2(truth: ArrayLike, prediction: ArrayLike) -> NDArray:
    """[..., v]: the share of each voxel's variance that is predicted; below 0 where its mean predicts better. Constant voxel: 0.

    Held-out R2 is about the mean of ``truth`` itself, as in scikit-learn and himalaya.
    """
    truth, prediction = _float(truth), _float(prediction)
    spread = truth.var(axis=-2)
    residual = ((truth - prediction) ** 2).mean(axis=-2)
    return np.where(spread > 0, 1 - residual / np.where(spread > 0, spread, 1), 0)


def pearson(truth: ArrayLike, prediction: ArrayLike) -> NDArray:
    """[..., v]: the correlation of each voxel's true and predicted responses, -1 to 1. Where either is constant: 0."""
    first, second = _centred(truth), _centred(prediction)
    scale = np.sqrt((first**2).sum(axis=-2) * (second**2).sum(axis=-2))
    return np.where(scale > 0, (first * second).sum(axis=-2) / np.where(scale > 0, scale, 1), 0)


def pearson_over_voxels(truth: ArrayLike, prediction: ArrayLike) -> NDArray:
    """[..., n]: for each sample the correlation of the true and predicted patterns.

    Oota et al. (COLING 2022) report the mean of these as "Pearson correlation": not to be compared with a mean over voxels.
    """
    return pearson(np.swapaxes(_float(truth), -1, -2), np.swapaxes(_float(prediction), -1, -2))


def two_v_two(truth: ArrayLike, prediction: ArrayLike) -> float:
    """How often two stimuli can be told apart by their predicted patterns, 0 to 1; chance is 0.5.

    Over all pairs i < j, the share with d(y_i, p_i) + d(y_j, p_j) < d(y_i, p_j) + d(y_j, p_i), where d is the cosine distance (Mitchell et
    al., "Predicting human brain activity associated with the meanings of nouns", Science 2008; cosine as in Toneva et al. and Oota et al.).

    Raises:
        ValueError: if there are fewer than two samples.
    """
    distance = 1 - _unit(truth) @ _unit(prediction).T
    if len(distance) < 2:
        raise ValueError("2V2 compares pairs of samples: at least two are needed")
    matched = np.diagonal(distance)
    first, second = np.triu_indices(len(distance), k=1)
    return float((matched[first] + matched[second] < distance[first, second] + distance[second, first]).mean())


def noise_normalised(correlation: ArrayLike, ceiling: ArrayLike) -> NDArray:
    """[v]: the share of the explainable variance that is predicted, max(r, 0)^2 / ceiling, at most 1. Without a ceiling (0): NaN.

    Args:
        correlation: [v], as from ``pearson``.
        ceiling: [v], the share of variance that is not noise, 0 to 1; see ``shared.metrics.noise_ceiling``. Algonauts 2023 (Gifford et
            al., arXiv 2301.03198) scores so, and takes the median over vertices.
    """
    correlation, ceiling = np.asarray(correlation, dtype=np.float64), np.asarray(ceiling, dtype=np.float64)
    explained = np.maximum(correlation, 0) ** 2
    return np.where(ceiling > 0, np.minimum(explained / np.where(ceiling > 0, ceiling, 1), 1), np.nan)


def published_noise_normalised(correlation: ArrayLike, ceiling: ArrayLike) -> NDArray:
    """[v]: as ``noise_normalised``, but a voxel without a ceiling scores 1 as soon as r > 0, as published: to compare with."""
    correlation, ceiling = np.asarray(correlation, dtype=np.float64), np.asarray(ceiling, dtype=np.float64)
    return np.minimum(np.maximum(correlation, 0) ** 2 / np.where(ceiling == 0, _FLOOR, ceiling), 1)


@dataclass(frozen=True, kw_only=True)
class RegionScore:
    """A region's voxels together. Voxels without a score (NaN) are left out, and counted."""

    name: str
    voxels: int
    scored: int
    mean: float | None
    median: float | None
    low: float | None
    """The 25th percentile."""
    high: float | None
    """The 75th percentile."""


def region_summary(scores: ArrayLike, regions: Mapping[str, ArrayLike]) -> list[RegionScore]:
    """A row per region of interest, in their order.

    Args:
        scores: [v].
        regions: name -> mask [v] (booleans).

    Raises:
        ValueError: if a mask has another length.
    """
    values = np.asarray(scores, dtype=np.float64)
    rows = []
    for name, region in regions.items():
        mask = np.asarray(region).astype(bool)
        if mask.shape != values.shape:
            raise ValueError(f"region {name}: a mask of {mask.shape}, but scores of {values.shape}")
        inside = values[mask]
        inside = inside[~np.isnan(inside)]
        low, median, high = np.percentile(inside, [25, 50, 75]).tolist() if len(inside) else (None, None, None)
        mean = float(inside.mean()) if len(inside) else None
        rows.append(RegionScore(name=name, voxels=int(mask.sum()), scored=len(inside), mean=mean, median=median, low=low, high=high))
    return rows


def generalisation(truth: Mapping[str, ArrayLike], prediction: Mapping[str, Mapping[str, ArrayLike]]) -> NDArray:
    """How well each subject's encoder predicts each subject: [fitted on, tested on, v], the correlation of each voxel.

    Args:
        truth: subject -> responses [n, v] on voxels that all subjects have (those of a template); each subject has stimuli of its own.
        prediction: fitted on -> tested on -> predictions [n, v] of the one's encoder for the other's stimuli.
    """
    return np.array([[pearson(truth[tested], answers[tested]) for tested in truth] for answers in prediction.values()])


def _float(array: ArrayLike) -> NDArray:
    found = np.asarray(array)
    return found if found.dtype == np.float64 else found.astype(np.float64)


def _centred(array: ArrayLike) -> NDArray:
    found = _float(array)
    return found - found.mean(axis=-2, keepdims=True)


def _unit(array: ArrayLike) -> NDArray:
    found = _float(array)
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(norm > 0, norm, 1)

"""Representational similarity: which stimuli a brain, or a model, takes for alike, and whether two of them agree.

Kriegeskorte, Mur and Bandettini, "Representational similarity analysis", Front. Syst. Neurosci. 2008; Nili et al., "A toolbox for
representational similarity analysis", PLoS Comput. Biol. 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, rankdata

__all__ = ["Agreement", "RdmCeiling", "Similarity", "category_rdm", "compare_rdms", "dissimilarities", "rdm", "rdm_ceiling", "rdm_test"]

Similarity = Literal["spearman", "pearson", "kendall_tau_a"]
"""kendall_tau_a for models with ties (categories): Spearman favours those that do not commit themselves (Nili et al. 2014)."""


def rdm(patterns: ArrayLike, *, distance: Literal["correlation", "euclidean", "cosine"] = "correlation") -> NDArray:
    """[n, n]: dissimilarity of the patterns [n, v] of n stimuli."""
    return squareform(pdist(np.asarray(patterns, dtype=np.float64), metric=distance))


def category_rdm(labels: ArrayLike) -> NDArray:
    """[n, n]: 0 within a category, 1 across."""
    given = np.asarray(labels)
    return (given[:, None] != given).astype(np.float64)


def dissimilarities(matrix: ArrayLike) -> NDArray:
    """The n (n - 1) / 2 values above the diagonal of [n, n], row by row; a vector is taken to be that already.

    Raises:
        ValueError: if it is neither.
    """
    given = np.asarray(matrix, dtype=np.float64)
    if given.ndim == 1:
        return given
    if given.ndim != 2 or given.shape[0] != given.shape[1] or len(given) < 3:
        raise ValueError(f"an RDM is square, of at least three stimuli; got {given.shape}")
    return given[np.triu_indices(len(given), k=1)]


def compare_rdms(first: ArrayLike, second: ArrayLike, *, similarity: Similarity = "spearman") -> float:
    """Agreement of two RDMs over all pairs of stimuli, -1 to 1; 0 if one of them is constant.

    Raises:
        ValueError: if they are not of the same number of stimuli.
    """
    one, other = dissimilarities(first), dissimilarities(second)
    if one.shape != other.shape:
        raise ValueError(f"RDMs of {len(one)} and {len(other)} pairs cannot be compared: both must be of the same stimuli")
    return _SIMILARITIES[similarity](one, other)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A model against subjects."""

    mean: float
    """Over subjects."""
    each: tuple[float, ...]
    p: float
    """Of the agreement with the subjects' mean RDM, if the model's stimuli are permuted; one-sided."""


@dataclass(frozen=True, kw_only=True)
class RdmCeiling:
    """Between which values the best possible model's mean agreement lies."""

    lower: float
    """Each subject with the mean of the others."""
    upper: float
    """Each subject with the mean of all."""


def rdm_ceiling(subjects: ArrayLike, *, similarity: Similarity = "spearman") -> RdmCeiling:
    """The noise ceiling of subjects' RDMs [s, n, n]; ranks (for Pearson: z-scores) are averaged, as Nili et al. have it.

    Raises:
        ValueError: if there is one subject only.
    """
    values = np.stack([_standard(dissimilarities(subject), similarity) for subject in np.asarray(subjects)])
    if len(values) < 2:
        raise ValueError("a noise ceiling needs at least two subjects")
    total = values.sum(axis=0)
    compare = _SIMILARITIES[similarity]
    upper = np.mean([compare(subject, total / len(values)) for subject in values])
    lower = np.mean([compare(subject, (total - subject) / (len(values) - 1)) for subject in values])
    return RdmCeiling(lower=float(lower), upper=float(upper))


def rdm_test(
    models: Mapping[str, ArrayLike],
    subjects: ArrayLike,
    *,
    similarity: Similarity = "spearman",
    permutations: int = 1000,
    seed: int = 0,
) -> dict[str, Agreement]:
    """Every model's agreement with the subjects, and how often a model of exchanged stimuli agrees as well.

    Args:
        models: name -> [n, n].
        subjects: [s, n, n].
        permutations: of the stimuli, the same for all models; p is (1 + as good) / (1 + permutations).
    """
    matrices = np.asarray(subjects, dtype=np.float64)
    mean = np.mean([_standard(dissimilarities(subject), similarity) for subject in matrices], axis=0)
    above = np.triu_indices(matrices.shape[1], k=1)
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(matrices.shape[1]) for _ in range(permutations)]
    answers = {}
    for name, model in models.items():
        given = np.asarray(model, dtype=np.float64)
        each = tuple(compare_rdms(given, subject, similarity=similarity) for subject in matrices)
        # Exchanged stimuli have the same ranks in other places: ranked once, an order is a product.
        ranked = given if similarity == "kendall_tau_a" else squareform(_standard(dissimilarities(given), similarity))
        compare = _kendall_tau_a if similarity == "kendall_tau_a" else _pearson
        observed = compare(ranked[above], mean)
        as_good = sum(compare(ranked[np.ix_(order, order)][above], mean) >= observed - 1e-12 for order in orders)
        answers[name] = Agreement(mean=float(np.mean(each)), each=each, p=(1 + as_good) / (1 + permutations))
    return answers


def _standard(values: NDArray, similarity: Similarity) -> NDArray:
    if similarity != "pearson":
        return rankdata(values)
    spread = values.std()
    return (values - values.mean()) / (spread if spread > 0 else 1)


def _pearson(first: NDArray, second: NDArray) -> float:
    one, other = first - first.mean(), second - second.mean()
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / scale) if scale > 0 else 0.0


def _spearman(first: NDArray, second: NDArray) -> float:
    return _pearson(rankdata(first), rankdata(second))


def _kendall_tau_a(first: NDArray, second: NDArray) -> float:
    """Concordant less discordant pairs over all pairs: tau b, as SciPy has it, with ties counted in."""
    pairs = len(first) * (len(first) - 1) / 2
    untied = [1 - sum(count * (count - 1) / 2 for count in np.unique(values, return_counts=True)[1]) / pairs for values in (first, second)]
    if min(untied) <= 0:
        return 0.0
    return float(kendalltau(first, second).statistic * np.sqrt(untied[0] * untied[1]))


_SIMILARITIES: dict[Similarity, Callable[[NDArray, NDArray], float]] = {
    "spearman": _spearman,
    "pearson": _pearson,
    "kendall_tau_a": _kendall_tau_a,
}

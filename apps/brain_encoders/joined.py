"""Several feature spaces on the same folds: each alone, all together, and what of a joint prediction comes from which space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from shared.encoding.banded import BandedFit, fit_banded_ridge
from shared.encoding.ridge import RidgeSolver
from shared.encoding.splits import Split, grouped_splits
from shared.encoding.stacking import stacking_weights
from shared.metrics.variance import product_measure

__all__ = ["BANDED_ALPHAS", "FoldAnswers", "answer_folds"]

INNER_FOLDS = 5
BANDED_ALPHAS = tuple(float(alpha) for alpha in np.logspace(-1, 8, 10))
"""Of banded ridge, whose search is dear: one a decade over what matters for standardised features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldAnswers:
    """Predictions [N, V] of samples that were not fitted."""

    alone: dict[str, NDArray[np.float32]]
    """Of each space."""
    together: dict[frozenset[str], NDArray[np.float32]]
    """Of the features of several spaces under one penalty for each unit."""
    stacked: NDArray[np.float32] | None
    weights: NDArray[np.float64] | None
    """[spaces, V]: of the stacked predictions, mean over folds; at least 0, and together 1."""
    banded: NDArray[np.float32] | None
    shares: NDArray[np.float64] | None
    """[spaces, V]: of the banded model's R2 by the product measure; they add up to its R2 about the means of the fitted samples."""

    def joined(self) -> dict[str, NDArray[np.float32]]:
        """By name, the answers that know all spaces."""
        everything = self.together.get(frozenset(self.alone))
        named = {"concatenated": everything, "stacked": self.stacked, "banded": self.banded}
        return {name: answer for name, answer in named.items() if answer is not None}


def answer_folds(
    features: Mapping[str, NDArray[np.floating]],
    responses: NDArray[np.floating],
    folds: Sequence[Split],
    *,
    groups: NDArray[np.intp],
    alphas: Sequence[float],
    together: Sequence[Sequence[str]] = (),
    stacked: bool = False,
    banded_search: int = 0,
    seed: int = 0,
) -> FoldAnswers:
    """Fits the samples of each fold and predicts those that it leaves out.

    Features are standardised by the fitted samples, models have an intercept, and all that is chosen (penalties, weights) is chosen by
    cross-validation within the fitted samples, in which a group is again in one fold.

    Args:
        features: space -> [N, C].
        responses: [N, V], float64.
        folds: each sample is left out once.
        groups: [N], such as the picture that was shown.
        alphas: penalties to choose from.
        together: of which spaces the features are also fitted as one.
        stacked: mix the spaces' predictions for each unit (Breiman 1996; Lin et al., NeuroImage 2024).
        banded_search: how many mixtures of penalties banded ridge tries (Dupré la Tour et al., NeuroImage 2022); 0: it is left out.
        seed: of that search.
    """
    names, shape = tuple(features), responses.shape
    alone = {name: np.empty(shape, np.float32) for name in names}
    combined = {frozenset(chosen): np.empty(shape, np.float32) for chosen in together}
    mixed = np.empty(shape, np.float32) if stacked else None
    weights = np.zeros((len(names), shape[1]))
    banded = np.empty(shape, np.float32) if banded_search else None
    parts = np.empty((len(names), *shape), np.float32) if banded_search else None
    centred = np.empty(shape) if banded_search else None
    for train, test in track(folds, "folds", transient=True):
        standard = {name: _standardised(values, train) for name, values in features.items()}
        fitted = responses[train]
        inner = grouped_splits(groups[train].tolist(), min(INNER_FOLDS, len(np.unique(groups[train]))))
        residuals = []
        for name in names:
            solver, alone[name][test], chosen = _ridge(standard[name], fitted, train, test, alphas, inner)
            if stacked:
                residuals.append(solver.residuals(fitted, chosen))
        for spaces, answer in combined.items():
            wide = np.concatenate([standard[name] for name in names if name in spaces], axis=1)
            _, answer[test], _ = _ridge(wide, fitted, train, test, alphas, inner)
        if mixed is not None:
            share = stacking_weights(np.stack(residuals)).T
            weights += share / len(folds)
            mixed[test] = sum(part * alone[name][test] for part, name in zip(share, names, strict=True))
        if banded is not None:
            assert parts is not None
            assert centred is not None
            held_out = {name: values[test].astype(np.float32) for name, values in standard.items()}
            fit = _banded(standard, fitted, train, inner, banded_search, seed)
            banded[test], parts[:, test] = fit.predict(held_out), fit.split(held_out)
            centred[test] = responses[test] - fitted.mean(axis=0)
    return FoldAnswers(
        alone=alone,
        together=combined,
        stacked=mixed,
        weights=weights if stacked else None,
        banded=banded,
        shares=None if parts is None or centred is None else product_measure(centred, parts),
    )


def _standardised(features: NDArray[np.floating], train: NDArray[np.intp]) -> NDArray[np.float64]:
    """By the mean and the spread of the fitted samples."""
    spread = features[train].std(axis=0)
    return (features - features[train].mean(axis=0)) / np.where(spread > 0, spread, 1)


def _ridge(
    features: NDArray[np.float64],
    fitted: NDArray[np.floating],
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    alphas: Sequence[float],
    inner: Sequence[Split],
) -> tuple[RidgeSolver, NDArray[np.float64], NDArray[np.float64]]:
    """The solver, what it predicts for the samples left out, and each unit's penalty."""
    solver = RidgeSolver(features[train], alphas=alphas, splits=inner, dtype=torch.float64)
    found = solver.fit(fitted)
    return solver, found.predict(features[test]), found.alphas


def _banded(
    standard: Mapping[str, NDArray[np.float64]],
    fitted: NDArray[np.floating],
    train: NDArray[np.intp],
    inner: Sequence[Split],
    search: int,
    seed: int,
) -> BandedFit:
    """In single precision, which takes half the time."""
    known = {name: values[train].astype(np.float32) for name, values in standard.items()}
    return fit_banded_ridge(known, fitted.astype(np.float32), alphas=BANDED_ALPHAS, splits=inner, shares=search, seed=seed)

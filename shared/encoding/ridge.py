"""Voxelwise ridge regression with a cross-validated penalty for each voxel.

Nothing is computed twice: features are decomposed once, responses are rotated once, penalties are judged without refitting, and only what
was chosen is fitted. Results are those of himalaya's RidgeCV (Dupré la Tour et al., "Feature-space selection with banded ridge
regression", NeuroImage 2022) and of scikit-learn's Ridge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shared.encoding.checks import check_features, check_pairs, check_responses
from shared.encoding.choice import Choice, Score, choose
from shared.encoding.dual import Dual
from shared.encoding.primal import Primal
from shared.encoding.splits import Split, contiguous_splits
from shared.errors import UserError

__all__ = ["DEFAULT_ALPHAS", "KernelRidgeFit", "RidgeFit", "RidgeSolver", "fit_kernel_ridge", "fit_ridge"]

DEFAULT_ALPHAS = tuple(float(alpha) for alpha in np.logspace(-1, 8, 19))
"""Penalties (added to X'X, not scaled by the number of samples), two a decade, wide enough for features of any usual scale."""

TARGETS_AT_ONCE = 1024
"""So many that products of matrices run at full speed, and so few that the working arrays stay small."""


@dataclass(frozen=True, kw_only=True)
class RidgeFit:
    """A linear map from features to responses."""

    coefficients: NDArray
    """[p, v]."""
    intercept: NDArray
    """[v]."""
    alphas: NDArray
    """[v], the chosen penalty of each voxel, float64."""
    scores: NDArray
    """[v], the cross-validated score at that penalty, float64."""

    def predict(self, features: ArrayLike) -> NDArray:
        """Responses [m, v] to features [m, p]."""
        given = np.asarray(features)
        if given.ndim != 2 or given.shape[1] != len(self.coefficients):
            raise UserError(f"features of shape {given.shape}, but the fit is of {len(self.coefficients)} features.")
        return given.astype(self.coefficients.dtype, copy=False) @ self.coefficients + self.intercept


@dataclass(frozen=True, kw_only=True)
class KernelRidgeFit:
    """A map from similarities with the fitted samples to responses: what is stored does not grow with the number of features."""

    dual: NDArray
    """[n, v]."""
    intercept: NDArray
    """[v]."""
    alphas: NDArray
    scores: NDArray
    """As of RidgeFit."""

    def predict(self, kernel: ArrayLike) -> NDArray:
        """Responses [m, v] from the kernel between new and fitted samples [m, n]."""
        return np.asarray(kernel).astype(self.dual.dtype, copy=False) @ self.dual + self.intercept


class RidgeSolver:
    """What depends on the features alone, made once; ``fit`` then takes any number of responses, block by block.

    Args:
        features: [n, p], NumPy array or torch tensor.
        alphas: penalties to choose from, above 0.
        splits: cross-validation: a number of contiguous folds, or pairs of indices (train, validation); see shared.encoding.splits.
        score: by what to choose; r2 and pearson are averages of the folds' own.
        choice: see ``shared.encoding.choice.Choice``.
        intercept: whether features and responses have a mean of their own, which is not penalised.
        dtype: of the computation on responses; decompositions are in float64.
        device: where to compute.

    Raises:
        UserError: if features or splits cannot be used; says why.
    """

    def __init__(
        self,
        features: ArrayLike | Tensor,
        *,
        alphas: Sequence[float] | NDArray = DEFAULT_ALPHAS,
        splits: int | Sequence[Split] = 5,
        score: Score = "negative_mse",
        choice: Choice = "each",
        intercept: bool = True,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.intercept = intercept
        self.features = _tensor(features, dtype, device)
        check_features(self.features.numpy(force=True))
        self.count, self.width = self.features.shape
        self.rule = _Rule(alphas=_alphas(alphas, device), score=score, choice=choice, dtype=dtype)
        folds = _splits(splits, self.count, device)
        self.engine: Primal | Dual
        if self.width < self.count:
            self.engine = Primal(self.features, splits=folds, alphas=self.rule.alphas, intercept=intercept)
        else:
            kernel = _linear_kernel(self.features, centred=intercept)
            self.engine = Dual(kernel, dtype=dtype, splits=folds, alphas=self.rule.alphas, intercept=intercept)

    def fit(self, responses: ArrayLike | Tensor) -> RidgeFit:
        """The fit of responses [n, v].

        Raises:
            UserError: if there are not as many rows as of features, or some voxels are constant or not finite.
        """
        found = _as_tensor(responses)
        check_pairs(self.count, len(found))
        check_responses(found.numpy(force=True))
        finish = self._from_dual if isinstance(self.engine, Dual) else None
        coefficients, intercept, alphas, scores = _fit(self.engine, found, self.rule, rows=self.width, finish=finish)
        return RidgeFit(coefficients=coefficients, intercept=intercept, alphas=alphas, scores=scores)

    def residuals(self, responses: ArrayLike | Tensor, alphas: NDArray) -> NDArray:
        """[n, v]: the errors (true less predicted) on each sample of the fit without its fold, at the penalties that ``fit`` chose.

        Args:
            responses: [n, v], as given to ``fit``.
            alphas: [v], of its answer. A sample that no fold leaves out has no error (NaN).
        """
        found = _as_tensor(responses)
        index = torch.as_tensor(np.abs(self.rule.alphas.numpy(force=True)[:, None] - alphas).argmin(axis=0), device=self.rule.alphas.device)
        errors = np.empty(found.shape, dtype=_numpy_dtype(self.rule.dtype))
        for block in _blocks(found.shape[1]):
            part = _tensor(found[:, block], self.rule.dtype, self.rule.alphas.device)
            errors[:, block] = self.engine.residuals(part, index[block]).numpy(force=True)
        return errors

    def _from_dual(self, dual: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        coefficients = self.features.T @ dual
        return coefficients, mean - self.features.mean(dim=0) @ coefficients if self.intercept else mean


def fit_ridge(
    features: ArrayLike | Tensor,
    responses: ArrayLike | Tensor,
    *,
    alphas: Sequence[float] | NDArray = DEFAULT_ALPHAS,
    splits: int | Sequence[Split] = 5,
    score: Score = "negative_mse",
    choice: Choice = "each",
    intercept: bool = True,
    device: str | torch.device = "cpu",
) -> RidgeFit:
    """Ridge of responses [n, v] on features [n, p]; computed in the responses' precision. Arguments and errors as for ``RidgeSolver``."""
    check_pairs(len(features), len(responses))  # type: ignore[arg-type]
    solver = RidgeSolver(
        features,
        alphas=alphas,
        splits=splits,
        score=score,
        choice=choice,
        intercept=intercept,
        dtype=_precision(responses),
        device=device,
    )
    return solver.fit(responses)


def fit_kernel_ridge(
    kernel: ArrayLike | Tensor,
    responses: ArrayLike | Tensor,
    *,
    alphas: Sequence[float] | NDArray = DEFAULT_ALPHAS,
    splits: int | Sequence[Split] = 5,
    score: Score = "negative_mse",
    choice: Choice = "each",
    intercept: bool = True,
    device: str | torch.device = "cpu",
) -> KernelRidgeFit:
    """Ridge of responses [n, v] by the kernel [n, n] between the samples, symmetric. Other arguments and errors as for ``RidgeSolver``."""
    dtype = _precision(responses)
    given = _tensor(kernel, torch.float64, device)
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise UserError(f"a kernel [samples, samples] is needed; found an array of shape {tuple(given.shape)}.")
    found = _as_tensor(responses)
    check_pairs(len(given), len(found), names=("kernel", "responses"))
    check_responses(found.numpy(force=True))
    grid = _alphas(alphas, device)
    engine = Dual(given, dtype=dtype, splits=_splits(splits, len(given), device), alphas=grid, intercept=intercept)
    mean = given.mean(dim=0).to(dtype)
    dual, constants, alphas_found, scores = _fit(
        engine,
        found,
        _Rule(alphas=grid, score=score, choice=choice, dtype=dtype),
        rows=len(given),
        finish=(lambda part, constant: (part, constant - mean @ part)) if intercept else None,
    )
    return KernelRidgeFit(dual=dual, intercept=constants, alphas=alphas_found, scores=scores)


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How to choose."""

    alphas: Tensor
    score: Score
    choice: Choice
    dtype: torch.dtype


def _fit(
    engine: Primal | Dual,
    responses: Tensor,
    rule: _Rule,
    *,
    rows: int,
    finish: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Weights [rows, v], intercepts, chosen penalties and their scores [v]; ``finish`` makes the first two of the engine's answer."""
    index, scores = _choose(engine, responses, rule)
    weights = np.empty((rows, responses.shape[1]), dtype=_numpy_dtype(rule.dtype))
    constants = np.empty(responses.shape[1], dtype=weights.dtype)
    for block in _blocks(responses.shape[1]):
        part, constant = engine.fit(_tensor(responses[:, block], rule.dtype, rule.alphas.device), index[block])
        part, constant = finish(part, constant) if finish else (part, constant)
        weights[:, block], constants[block] = part.numpy(force=True), constant.numpy(force=True)
    return weights, constants, rule.alphas[index].numpy(force=True), scores.numpy(force=True)


def _choose(engine: Primal | Dual, responses: Tensor, rule: _Rule) -> tuple[Tensor, Tensor]:
    device = rule.alphas.device
    judged = (engine.scores(_tensor(responses[:, block], rule.dtype, device), rule.score) for block in _blocks(responses.shape[1]))
    if rule.choice == "common":
        return choose(torch.cat(list(judged), dim=2), rule.alphas, rule.choice)
    chosen = [choose(scores, rule.alphas, rule.choice) for scores in judged]
    return torch.cat([index for index, _ in chosen]), torch.cat([score for _, score in chosen])


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + TARGETS_AT_ONCE, count)) for start in range(0, count, TARGETS_AT_ONCE)]


def _linear_kernel(features: Tensor, *, centred: bool) -> Tensor:
    exact = features.double()
    if centred:
        exact = exact - exact.mean(dim=0)  # for precision; the kernel is centred anyway
    return exact @ exact.T


def _alphas(alphas: Sequence[float] | NDArray, device: str | torch.device) -> Tensor:
    grid = torch.as_tensor(np.atleast_1d(np.asarray(alphas, dtype=np.float64)), device=device)
    if grid.ndim != 1 or not len(grid) or not bool((torch.isfinite(grid) & (grid > 0)).all()):
        raise UserError(f"alphas must be above 0 and finite, and at least one; got {grid.tolist()}.")
    return grid


def _splits(splits: int | Sequence[Split], count: int, device: str | torch.device) -> list[tuple[Tensor, Tensor]]:
    folds = contiguous_splits(count, splits) if isinstance(splits, int) else splits
    if not folds:
        raise UserError("no splits: give at least one pair of training and validation samples.")
    for number, (train, validation) in enumerate(folds, start=1):
        both = np.concatenate([train, validation])
        if not len(train) or not len(validation) or both.min() < 0 or both.max() >= count:
            raise UserError(f"split {number}: needs training and validation samples among 0 to {count - 1}.")
        if len(np.unique(both)) != len(both):
            raise UserError(f"split {number}: a sample comes twice, or is both fitted and judged. Give each one place.")
    return [
        (torch.as_tensor(np.asarray(train), device=device), torch.as_tensor(np.asarray(validation), device=device))
        for train, validation in folds
    ]


def _precision(responses: ArrayLike | Tensor) -> torch.dtype:
    return torch.float64 if _as_tensor(responses).dtype == torch.float64 else torch.float32


def _as_tensor(array: ArrayLike | Tensor) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(np.asarray(array))


def _tensor(array: ArrayLike | Tensor, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    return _as_tensor(array).to(device=device, dtype=dtype)


def _numpy_dtype(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32

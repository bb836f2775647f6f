"""Ridge with fewer features than samples: one eigendecomposition of the features' covariance for each fold, and one for the last fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.encoding.choice import Score, score_penalties

__all__ = ["Primal"]

_RANK = torch.finfo(torch.float64).eps
"""Directions whose variance is below this times the number of features, relative to the largest, are rounding and are left out."""


@dataclass(frozen=True, kw_only=True)
class _Rotation:
    """X = U diag(s) V' of the centred features of some samples, in the precision of the responses."""

    samples: Tensor
    mean: Tensor
    left: Tensor
    """U' [r, n]."""
    right: Tensor
    """V [p, r]."""
    singular: Tensor
    """s [r], float64."""

    def filters(self, alphas: Tensor) -> Tensor:
        """s / (s^2 + alpha) [a, r] for alphas [a], in the precision of the responses: what ridge makes of 1 / s."""
        return (self.singular / (self.singular.square() + alphas[:, None])).to(self.left.dtype)


class Primal:
    """Decomposes once, then scores and fits any number of targets.

    With X = U S V' (Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", 3.4.1), the coefficients at penalty a are
    V diag(s / (s^2 + a)) U'Y. So Y is rotated once for each fold, and a penalty costs one product with the validation features, which
    are rotated and scaled beforehand: they are few, the targets many. Several penalties share a product where they are small.

    The decomposition is that of X'X in float64, which loses nothing to a float32 decomposition of X.

    Args:
        features: [n, p].
        splits: indices of training and validation samples, on the features' device.
        alphas: [a], float64.
        intercept: whether to centre features and responses by the means of the samples that are fitted.
    """

    def __init__(self, features: Tensor, *, splits: Sequence[tuple[Tensor, Tensor]], alphas: Tensor, intercept: bool) -> None:
        self.alphas, self.intercept = alphas, intercept
        everything = torch.arange(len(features), device=features.device)
        self.whole = _rotate(features, everything, intercept)
        self.folds: list[tuple[_Rotation, Tensor, Tensor]] = []
        for train, validation in splits:
            rotation = _rotate(features, train, intercept)
            turned = (features[validation] - rotation.mean) @ rotation.right
            self.folds.append((rotation, validation, turned))

    def scores(self, responses: Tensor, score: Score) -> Tensor:
        """[folds, alphas, v] of responses [n, v]."""
        return torch.stack([self._scores(*fold, responses, score) for fold in self.folds])

    def _scores(self, rotation: _Rotation, validation: Tensor, turned: Tensor, responses: Tensor, score: Score) -> Tensor:
        fitted, held_out = self._sides(rotation, validation, responses)
        rotated, filters = rotation.left @ fitted, -rotation.filters(self.alphas)

        def errors(part: slice) -> Tensor:
            missed = (turned * filters[part, None]).flatten(0, 1) @ rotated
            return missed.view(-1, *held_out.shape).add_(held_out)

        return score_penalties(errors, len(self.alphas), held_out, score)

    def fit(self, responses: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients [p, v] and intercept [v] of responses [n, v] at the penalties of these indices [v]."""
        mean = responses.mean(dim=0) if self.intercept else torch.zeros_like(responses[0])
        rotated = self.whole.left @ (responses - mean)
        rotated *= self.whole.filters(self.alphas).T[:, index]
        coefficients = self.whole.right @ rotated
        return coefficients, mean - self.whole.mean @ coefficients

    def residuals(self, responses: Tensor, index: Tensor) -> Tensor:
        """[n, v]: errors (true less predicted) of each fold's validation samples at these penalties; NaN for samples of no fold."""
        found = torch.full_like(responses, torch.nan)
        for rotation, validation, turned in self.folds:
            fitted, held_out = self._sides(rotation, validation, responses)
            rotated = (rotation.left @ fitted) * rotation.filters(self.alphas).T[:, index]
            found[validation] = torch.addmm(held_out, turned, rotated, alpha=-1)
        return found

    def _sides(self, rotation: _Rotation, validation: Tensor, responses: Tensor) -> tuple[Tensor, Tensor]:
        """Responses of fitted and of held-out samples, about the mean of those that are fitted."""
        fitted, held_out = responses.index_select(0, rotation.samples), responses.index_select(0, validation)
        if self.intercept:
            mean = fitted.mean(dim=0)
            fitted -= mean
            held_out -= mean
        return fitted, held_out


def _rotate(features: Tensor, samples: Tensor, intercept: bool) -> _Rotation:
    chosen = features[samples].double()
    mean = chosen.mean(dim=0) if intercept else torch.zeros_like(chosen[0])
    chosen -= mean
    squares, right = torch.linalg.eigh(chosen.T @ chosen)
    kept = squares > squares[-1] * len(squares) * _RANK
    singular, right = squares[kept].sqrt(), right[:, kept]
    left = ((chosen @ right) / singular).T.contiguous()
    dtype = features.dtype
    return _Rotation(samples=samples, mean=mean.to(dtype), left=left.to(dtype), right=right.to(dtype), singular=singular)

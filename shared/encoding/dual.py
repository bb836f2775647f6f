"""Ridge with more features than samples, or with any kernel: one eigendecomposition for all folds and the last fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.encoding.choice import Score, score_penalties

__all__ = ["Dual"]

MULTIPLIED_BYTES = 2**30
"""Of all folds together: up to here, what turns rotated targets into errors is multiplied out once, which saves a sixth of the judging."""


@dataclass(frozen=True, kw_only=True)
class _Spectrum:
    """K = U diag(e) U' of the centred kernel of some samples."""

    samples: Tensor
    vectors: Tensor
    """U [n, r] in the precision of the responses; with an intercept without the constant vector, to which nothing is fitted."""
    values: Tensor
    """e [r], float64."""


@dataclass(frozen=True, kw_only=True)
class _Fold:
    spectrum: int
    rows: Tensor
    """Where the validation samples are among the spectrum's samples."""
    validation: Tensor
    factors: Tensor
    """[alphas, m, m]: the inverses of the validation block of (K + alpha I)^-1; multiplied out, [alphas, m, r], with the scaled rows."""
    multiplied: bool


class Dual:
    """Decomposes once, then scores and fits any number of targets.

    With M = (K + a I)^-1 of training and validation samples together, the errors on a left-out block k are (M_kk)^-1 (M Y)_k: those of a
    fit without the block, by the inverse of a partitioned matrix (for single samples: Allen's PRESS, Technometrics 1974; for blocks: An,
    Liu and Venkatesh, "Fast cross-validation algorithms for least squares support vector machine and kernel ridge regression", Pattern
    Recognition 2007). So one decomposition of K serves all folds, and Y is rotated once. M_kk's inverse is the covariance of the block
    given the other samples, plus a: the method is as well conditioned as a fit of its own for each fold.

    With an intercept, M is that of the centred kernel without the constant direction, which solves the same system with one more
    unknown; each fold then has an intercept of its own.

    Args:
        kernel: [n, n], symmetric, float64.
        dtype: of the responses.
        splits, alphas, intercept: as for ``Primal``.
    """

    def __init__(
        self, kernel: Tensor, *, dtype: torch.dtype, splits: Sequence[tuple[Tensor, Tensor]], alphas: Tensor, intercept: bool
    ) -> None:
        self.alphas, self.intercept = alphas, intercept
        everything = torch.arange(len(kernel), device=kernel.device)
        self.spectra = [_decompose(kernel, everything, intercept, dtype)]
        self.folds: list[_Fold] = []
        for train, validation in splits:
            samples = torch.cat([train, validation]).sort().values
            place = next((i for i, known in enumerate(self.spectra) if torch.equal(known.samples, samples)), len(self.spectra))
            if place == len(self.spectra):
                self.spectra.append(_decompose(kernel, samples, intercept, dtype))
            rows = torch.searchsorted(samples, validation)
            spectrum = self.spectra[place]
            inverses = _inverses(spectrum, rows, alphas)
            fits = len(alphas) * len(kernel) * spectrum.vectors.nbytes // len(spectrum.vectors) <= MULTIPLIED_BYTES
            factors = inverses @ _scaled(spectrum, rows, alphas) if fits else inverses
            self.folds.append(_Fold(spectrum=place, rows=rows, validation=validation, factors=factors, multiplied=fits))

    def scores(self, responses: Tensor, score: Score) -> Tensor:
        """[folds, alphas, v] of responses [n, v]."""
        rotated = [self._rotate(spectrum, responses) for spectrum in self.spectra]
        return torch.stack([self._scores(fold, rotated[fold.spectrum], responses, score) for fold in self.folds])

    def _scores(self, fold: _Fold, rotated: Tensor, responses: Tensor, score: Score) -> Tensor:
        held_out = responses.index_select(0, fold.validation)
        return score_penalties(lambda part: self._errors(fold, part, rotated), len(self.alphas), held_out, score)

    def _errors(self, fold: _Fold, part: slice, rotated: Tensor) -> Tensor:
        """[a, m, v]: true less predicted, of a fold's validation samples at some of the penalties, from rotated targets [r, v]."""
        factors = fold.factors[part] if fold.multiplied else _scaled(self.spectra[fold.spectrum], fold.rows, self.alphas[part])
        found = (factors.flatten(0, 1) @ rotated).view(len(factors), len(fold.validation), -1)
        return found if fold.multiplied else fold.factors[part] @ found

    def fit(self, responses: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Dual coefficients [n, v], which sum to 0 with an intercept, and the means [v] of responses [n, v]."""
        whole = self.spectra[0]
        rotated = self._rotate(whole, responses)
        rotated /= (whole.values[:, None] + self.alphas).to(rotated.dtype)[:, index]
        mean = responses.mean(dim=0) if self.intercept else torch.zeros_like(responses[0])
        return whole.vectors @ rotated, mean

    def residuals(self, responses: Tensor, index: Tensor) -> Tensor:
        """[n, v]: errors (true less predicted) of each fold's validation samples at these penalties; NaN for samples of no fold."""
        found = torch.full_like(responses, torch.nan)
        rotated = [self._rotate(spectrum, responses) for spectrum in self.spectra]
        for fold in self.folds:
            turned = rotated[fold.spectrum]
            errors = responses.new_empty((len(fold.validation), responses.shape[1]))
            for used in index.unique().tolist():
                targets = index == used
                errors[:, targets] = self._errors(fold, slice(used, used + 1), turned[:, targets])[0]
            found[fold.validation] = errors
        return found

    def _rotate(self, spectrum: _Spectrum, responses: Tensor) -> Tensor:
        chosen = responses if len(spectrum.samples) == len(responses) else responses.index_select(0, spectrum.samples)
        return spectrum.vectors.T @ (chosen - chosen.mean(dim=0) if self.intercept else chosen)


def _decompose(kernel: Tensor, samples: Tensor, intercept: bool, dtype: torch.dtype) -> _Spectrum:
    chosen = kernel[samples[:, None], samples] if len(samples) < len(kernel) else kernel
    if intercept:
        mean = chosen.mean(dim=0)
        chosen = chosen - mean - mean[:, None] + mean.mean()
        # Far above all others, so that the constant vector comes last by itself, even among other null directions.
        chosen += (2 * chosen.diagonal().sum() + 1) / len(chosen)
    values, vectors = torch.linalg.eigh(chosen)
    if intercept:
        values, vectors = values[:-1], vectors[:, :-1]
    return _Spectrum(samples=samples, vectors=vectors.to(dtype), values=values.clamp(min=0))


def _scaled(spectrum: _Spectrum, rows: Tensor, alphas: Tensor) -> Tensor:
    """[a, m, r]: rows of U diag(1 / (e + alpha))."""
    return spectrum.vectors[rows] / (spectrum.values + alphas[:, None, None]).to(spectrum.vectors.dtype)


def _inverses(spectrum: _Spectrum, rows: Tensor, alphas: Tensor) -> Tensor:
    vectors = spectrum.vectors[rows].double()
    blocks = vectors.new_empty((len(alphas), len(rows), len(rows)), dtype=spectrum.vectors.dtype)
    for index, alpha in enumerate(alphas):
        half = vectors / (spectrum.values + alpha).sqrt()
        blocks[index] = torch.cholesky_inverse(torch.linalg.cholesky(half @ half.T))
    return blocks

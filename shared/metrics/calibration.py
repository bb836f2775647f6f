"""Do probabilities mean what they say: reliability curves, expected calibration error, and the temperature that mends it.

Both summaries add up: make one per image, add them, and millions of pixels cost a few kilobytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

__all__ = ["LogitHistogram", "Reliability", "fit_temperature", "logit_histogram", "reliability"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

LOGIT_LIMIT = 40.0
LOGIT_BINS = 4000
"""Of width 0.02; each keeps the mean of its logits, so that what is lost is of second order in the width."""
TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Pixels counted in equally wide bins of the predicted probability of foreground, [B] each."""

    pixels: Counts
    probability_sum: Floats
    positives: Counts

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            pixels=self.pixels + other.pixels,
            probability_sum=self.probability_sum + other.probability_sum,
            positives=self.positives + other.positives,
        )

    @property
    def edges(self) -> Floats:
        """[B + 1], from 0 to 1."""
        return np.linspace(0.0, 1.0, self.pixels.size + 1)

    @property
    def predicted(self) -> Floats:
        """[B], the mean predicted probability of each bin; NaN where it is empty."""
        return self._per_pixel(self.probability_sum)

    @property
    def observed(self) -> Floats:
        """[B], the share of foreground among the pixels of each bin; NaN where it is empty."""
        return self._per_pixel(self.positives)

    @property
    def expected_calibration_error(self) -> float:
        """Mean over pixels of |observed - predicted| of their bin, 0 to 1; 0 without pixels.

        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, for the probability of foreground rather than that
        of the likelier class. Easy background dominates it: compare models by it on the same frames only.
        """
        return float(np.abs(self.positives - self.probability_sum).sum() / max(int(self.pixels.sum()), 1))

    def _per_pixel(self, total: NDArray) -> Floats:
        return np.divide(total, self.pixels, out=np.full(self.pixels.size, np.nan), where=self.pixels > 0)


@dataclass(frozen=True, kw_only=True)
class LogitHistogram:
    """Logits of background (row 0) and foreground (row 1) pixels in fine bins, [2, N] each: what a temperature is fitted to."""

    pixels: Counts
    logit_sum: Floats

    def __add__(self, other: LogitHistogram) -> LogitHistogram:
        return LogitHistogram(pixels=self.pixels + other.pixels, logit_sum=self.logit_sum + other.logit_sum)

    def negative_log_likelihood(self, temperature: float = 1.0) -> float:
        """Mean over pixels of -log of the probability of the true class, in nats, when logits are divided by ``temperature``."""
        filled = self.pixels > 0
        wrong_side = np.stack([self.logit_sum[0], -self.logit_sum[1]])[filled] / self.pixels[filled]
        return float(np.average(np.logaddexp(0.0, wrong_side / temperature), weights=self.pixels[filled]))

    def temperature(self) -> float:
        """The temperature of the largest likelihood, 0.05 to 20: probability = sigmoid(logit / temperature) (Guo et al. 2017, section 4.2).

        1 where the pixels cannot tell: there are none, all are of one class, or the likelihood still grows at either limit, as with
        classes that some threshold separates perfectly, or logits that say nothing.
        """
        if not self.pixels.sum(axis=1).all():
            return 1.0
        limits = tuple(np.log(TEMPERATURES))
        best = optimize.minimize_scalar(
            lambda log_temperature: self.negative_log_likelihood(float(np.exp(log_temperature))),
            bounds=limits,
            method="bounded",
            options={"xatol": 1e-6},
        )
        at_limit = min(best.x - limits[0], limits[1] - best.x) < 1e-3
        if at_limit or best.fun >= self.negative_log_likelihood():
            return 1.0
        return float(np.exp(best.x))


def reliability(probability: ArrayLike, truth: ArrayLike, *, bins: int = 15) -> Reliability:
    """Counts one image (or any number of pixels) for a reliability curve.

    Args:
        probability: any shape, predicted probability of foreground, 0 to 1.
        truth: bool, the same shape.
        bins: number of equally wide bins; each includes its lower edge, the last also 1.

    Raises:
        ValueError: if the shapes differ, ``truth`` is not bool, or a probability is not within 0 and 1.
    """
    values, positive = _checked(probability, truth)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("probability must lie between 0 and 1: pass logits through a sigmoid first")
    index = np.minimum((values * bins).astype(np.intp), bins - 1)
    return Reliability(
        pixels=np.bincount(index, minlength=bins),
        probability_sum=np.bincount(index, weights=values, minlength=bins).astype(np.float64),
        positives=np.bincount(index[positive], minlength=bins),
    )


def logit_histogram(logits: ArrayLike, truth: ArrayLike) -> LogitHistogram:
    """Counts one image (or any number of pixels) for a temperature.

    Args:
        logits: any shape; beyond 40 in size they count as 40.
        truth: bool, the same shape.

    Raises:
        ValueError: if the shapes differ, ``truth`` is not bool, or a logit is NaN.
    """
    values, positive = _checked(logits, truth)
    if np.isnan(values).any():
        raise ValueError("logits hold NaN")
    values = np.clip(values, -LOGIT_LIMIT, LOGIT_LIMIT)
    index = np.minimum(((values + LOGIT_LIMIT) * (LOGIT_BINS / (2 * LOGIT_LIMIT))).astype(np.intp), LOGIT_BINS - 1)
    index += LOGIT_BINS * positive
    shape = (2, LOGIT_BINS)
    return LogitHistogram(
        pixels=np.bincount(index, minlength=2 * LOGIT_BINS).reshape(shape),
        logit_sum=np.bincount(index, weights=values, minlength=2 * LOGIT_BINS).reshape(shape).astype(np.float64),
    )


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """``LogitHistogram.temperature`` of these pixels. Arguments and errors as ``logit_histogram``."""
    return logit_histogram(logits, truth).temperature()


def _checked(values: ArrayLike, truth: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    values, truth = np.asarray(values), np.asarray(truth)
    if values.shape != truth.shape:
        raise ValueError(f"predictions and truth must have one shape, got {values.shape} and {truth.shape}")
    if truth.dtype != np.bool_:
        raise ValueError(f"truth must be bool, got {truth.dtype}: compare it with a threshold first")
    return values.ravel().astype(np.float64), truth.ravel()

"""How well responses could be predicted at best, from repeats of the same stimuli: [R, n, v], R repeats of n conditions in v voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.metrics.encoding import pearson

__all__ = [
    "SignalToNoise",
    "explainable_variance",
    "noise_ceiling",
    "nsd_signal_to_noise",
    "signal_to_noise",
    "spearman_brown",
    "split_half",
]


@dataclass(frozen=True, kw_only=True)
class SignalToNoise:
    """Per voxel [v], in the squared units of the responses."""

    noise_variance: NDArray
    """Of a single trial around its condition's mean."""
    signal_variance: NDArray
    """Of the conditions' true means."""

    @property
    def ratio(self) -> NDArray:
        """ncsnr: the signal's standard deviation over the noise's; infinite where there is no noise, 0 where nothing varies."""
        noise, signal = np.sqrt(self.noise_variance), np.sqrt(self.signal_variance)
        return np.where(noise > 0, signal / np.where(noise > 0, noise, 1), np.where(signal > 0, np.inf, 0))


def signal_to_noise(repeats: ArrayLike) -> SignalToNoise:
    """Noise from the repeats of each condition; signal as the variance of the means less what noise adds to it, at least 0.

    Prince et al., "Improving the accuracy of single-trial fMRI response estimates using GLMsingle", eLife 2022 (noise ceiling).

    Raises:
        ValueError: if there is one repeat only, or one condition.
    """
    data = _repeats(repeats)
    noise = data.var(axis=0, ddof=1).mean(axis=0)
    means = data.mean(axis=0).var(axis=0, ddof=1)
    return SignalToNoise(noise_variance=noise, signal_variance=np.maximum(means - noise / len(data), 0))


def nsd_signal_to_noise(repeats: ArrayLike) -> SignalToNoise:
    """As the Natural Scenes Dataset has it: all trials are z-scored together, so that the signal is 1 less the noise, at least 0.

    Allen et al., "A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence", Nature Neuroscience 2022.
    """
    data = _repeats(repeats)
    spread = data.std(axis=(0, 1), ddof=1)
    noise = data.var(axis=0, ddof=1).mean(axis=0) / np.where(spread > 0, spread, 1) ** 2
    return SignalToNoise(noise_variance=noise, signal_variance=np.where(spread > 0, np.maximum(1 - noise, 0), 0))


def noise_ceiling(ratio: ArrayLike, trials: int | Mapping[int, int]) -> NDArray:
    """The share of variance, 0 to 1, that a perfect model of the signal explains in responses averaged over trials.

    ncsnr^2 / (ncsnr^2 + 1/k) (Allen et al. 2022, Methods).

    Args:
        ratio: [v], ncsnr.
        trials: k, on how many trials each response is the average; or, where conditions differ, how many conditions have k trials:
            {1: 200, 2: 300, 3: 500}. Then 1/k is its mean over conditions.

    Raises:
        ValueError: if a number is not positive.
    """
    counts = {trials: 1} if isinstance(trials, int) else dict(trials)
    if not counts or min(counts) < 1 or min(counts.values()) < 0 or not sum(counts.values()):
        raise ValueError(f"numbers of trials must be at least 1, of at least one condition; got {counts}")
    noise = sum(count / k for k, count in counts.items()) / sum(counts.values())
    squared = np.asarray(ratio, dtype=np.float64) ** 2
    return np.where(np.isinf(squared), 1.0, squared / np.where(np.isinf(squared), 1, squared + noise))


def explainable_variance(repeats: ArrayLike, *, corrected: bool = True) -> NDArray:
    """[v]: the share of a repeat's variance that is common to all repeats (Sahani and Linden, NIPS 2002; Hsu et al., Network 2004).

    Each repeat is z-scored over its n samples.

    Args:
        corrected: less what noise leaves in the mean of R repeats: EV - (1 - EV) / (R - 1).
    """
    data = _repeats(repeats)
    spread = data.std(axis=1, keepdims=True)
    scored = (data - data.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    within = scored.var(axis=1, ddof=1).mean(axis=0)
    share = scored.mean(axis=0).var(axis=0, ddof=1) / np.where(within > 0, within, 1)
    return share - (1 - share) / (len(data) - 1) if corrected else share


def split_half(first: ArrayLike, second: ArrayLike) -> NDArray:
    """[v]: correlation of two halves of the trials, [R/2, n, v] each, both averaged over their repeats."""
    return pearson(np.asarray(first).mean(axis=0), np.asarray(second).mean(axis=0))


def spearman_brown(half: ArrayLike) -> NDArray:
    """Reliability of all trials together from that of half of them: 2r / (1 + r) (Spearman 1910; Brown 1910)."""
    reliability = np.asarray(half, dtype=np.float64)
    return 2 * reliability / (1 + reliability)


def _repeats(repeats: ArrayLike) -> NDArray:
    data = np.asarray(repeats, dtype=np.float64)
    if data.ndim != 3 or data.shape[0] < 2 or data.shape[1] < 2:
        raise ValueError(f"noise is judged from at least two repeats of at least two conditions, [R, n, v]; got {data.shape}")
    return data

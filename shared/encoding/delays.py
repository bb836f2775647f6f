"""Responses come seconds after what caused them: features delayed by some volumes, run by run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.encoding.runs import run_slices
from shared.errors import UserError

__all__ = ["delay"]


def delay(features: ArrayLike, delays: Sequence[int], runs: ArrayLike | None = None) -> NDArray:
    """Finite impulse response features: a copy of all features for each delay, so that ridge finds the response's course in time.

    Huth et al., "Natural speech reveals the semantic maps that tile human cerebral cortex", Nature 2016; delays of 1 to 4 volumes at a
    repetition time of 2 s are usual.

    Args:
        features: [n, p], one row per volume.
        delays: in volumes; positive: the response comes after the stimulus.
        runs: [n], the run of each volume; None if all are of one. What would come from another run is 0.

    Returns:
        [n, len(delays) * p], delay by delay: column d * p + j is feature j, ``delays[d]`` volumes earlier.

    Raises:
        UserError: if there is no delay.
    """
    given = np.asarray(features)
    if given.ndim != 2 or not len(delays):
        raise UserError(f"delays: at least one, and features [volumes, features], are needed; got {list(delays)} and {given.shape}.")
    delayed = np.zeros((len(delays), *given.shape), dtype=given.dtype)
    for run in run_slices(runs, len(given)):
        series = given[run]
        for block, steps in zip(delayed, delays, strict=True):
            shifted = block[run]
            if steps >= 0:
                shifted[steps:] = series[: max(len(series) - steps, 0)]
            else:
                shifted[:steps] = series[-steps:]
    return np.moveaxis(delayed, 0, 1).reshape(len(given), -1)

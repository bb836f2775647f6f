"""Time series that come in runs: nothing may leak over the border between two of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import UserError

__all__ = ["check_runs", "run_labels", "run_slices", "zscore_runs"]


def run_labels(lengths: Sequence[int]) -> NDArray[np.intp]:
    """The run of each sample, [n]: run 0 ``lengths[0]`` times, then run 1, and so on."""
    return np.repeat(np.arange(len(lengths)), lengths)


def run_slices(runs: ArrayLike | None, count: int) -> list[slice]:
    """Where each run lies among ``count`` samples, in order of appearance; all of them if there are no ``runs``.

    Raises:
        UserError: if ``runs`` has another length, or a run comes back after another has begun: samples must be in the order in which they
            were measured.
    """
    if runs is None:
        return [slice(0, count)]
    labels = np.asarray(runs)
    if labels.shape != (count,):
        raise UserError(f"runs must name the run of each of {count} samples; found an array of shape {labels.shape}.")
    starts = np.concatenate([[0], np.flatnonzero(labels[1:] != labels[:-1]) + 1, [len(labels)]])
    found = labels[starts[:-1]].tolist()
    if len(set(found)) != len(found):
        again = next(label for index, label in enumerate(found) if label in found[:index])
        raise UserError(f"run {again!r} is interrupted by another run. Put the samples of each run together, in the order of measurement.")
    return [slice(start, stop) for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


def zscore_runs(series: ArrayLike, runs: ArrayLike | None = None) -> NDArray:
    """[n, v] with mean 0 and population standard deviation 1 within each run, computed in float64; what is constant in a run becomes 0."""
    given = np.asarray(series)
    scored = np.empty(given.shape, dtype=np.result_type(given, np.float32))
    for run in run_slices(runs, len(given)):
        part = given[run].astype(np.float64)
        part -= part.mean(axis=0)
        spread = part.std(axis=0)
        scored[run] = part / np.where(spread > 0, spread, 1)
    return scored


def check_runs(features: Sequence[ArrayLike], responses: Sequence[ArrayLike], names: Sequence[str] | None = None) -> NDArray[np.intp]:
    """``run_labels`` of runs whose features and responses are given run by run, if they belong together.

    Raises:
        UserError: if there are more runs of one than of the other, or one run's features and responses differ in length.
    """
    if len(features) != len(responses):
        raise UserError(f"{len(features)} runs of features, but {len(responses)} runs of responses. Give one of each for every run.")
    for index, (stimulus, response) in enumerate(zip(features, responses, strict=True)):
        if len(np.asarray(stimulus)) != len(np.asarray(response)):
            name = names[index] if names else f"run {index + 1}"
            raise UserError(
                f"{name}: features of {len(np.asarray(stimulus))} volumes, but {len(np.asarray(response))} volumes of responses. "
                "Cut both to the same volumes."
            )
    return run_labels([len(np.asarray(response)) for response in responses])

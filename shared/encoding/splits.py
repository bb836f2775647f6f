"""Which samples are fitted and which judge: by runs, by repeated stimuli, in blocks; and a guard against leaks between them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.encoding.runs import run_slices
from shared.errors import UserError

__all__ = ["Split", "check_leakage", "contiguous_splits", "grouped_splits", "run_splits"]

Split = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Indices of the samples to fit, and of those to judge by."""


def contiguous_splits(count: int, folds: int) -> list[Split]:
    """``folds`` successive blocks, each left out once, without shuffling; the first ones are larger by one if need be.

    Raises:
        UserError: if there are fewer samples than folds, or fewer than two folds.
    """
    if not 2 <= folds <= count:
        raise UserError(f"{count} samples cannot be divided into {folds} folds. Choose from 2 to {count} folds.")
    return _complements(np.array_split(np.arange(count), folds), count)


def run_splits(runs: ArrayLike) -> list[Split]:
    """Leaves each run out once: neighbouring volumes resemble each other, so they belong to one side.

    Args:
        runs: [n], the run of each sample.
    """
    count = len(np.asarray(runs))
    slices = run_slices(runs, count)
    if len(slices) < 2:
        raise UserError("one run alone cannot be left out. Divide it by contiguous_splits, or bring a second run.")
    return _complements([np.arange(count)[run] for run in slices], count)


def grouped_splits(groups: Sequence[Hashable], folds: int, *, seed: int = 0) -> list[Split]:
    """All samples of a group (the trials of one image, the images of one scene) in the same fold; folds about equally large.

    Groups are shuffled by ``seed``, then the largest first each go to the fold that is smallest so far.

    Raises:
        UserError: if there are fewer groups than folds.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if not 2 <= folds <= len(members):
        raise UserError(f"{len(members)} groups cannot be divided into {folds} folds. Choose from 2 to {len(members)} folds.")
    order = np.random.default_rng(seed).permutation(len(members))
    blocks = [list(members.values())[index] for index in order]
    parts: list[list[int]] = [[] for _ in range(folds)]
    for block in sorted(blocks, key=len, reverse=True):
        min(parts, key=len).extend(block)
    return _complements([np.sort(part) for part in parts], len(groups))


def check_leakage(train: Sequence[Hashable], test: Sequence[Hashable], *, allow_repeats: bool = False) -> int:
    """How many of the test samples show a stimulus that is also fitted, if that is allowed.

    Args:
        train: the stimulus of each sample that is fitted.
        test: the stimulus of each sample that judges.
        allow_repeats: for published protocols that do not mind; their scores are not those of new stimuli.

    Raises:
        UserError: if a stimulus is on both sides, unless asked for.
    """
    fitted = set(train)
    repeated = [stimulus for stimulus in test if stimulus in fitted]
    if repeated and not allow_repeats:
        raise UserError(
            f"{len(repeated)} of {len(test)} test samples show a stimulus that is also fitted ({repeated[0]!r}, for one): their scores "
            "would not be those of new stimuli. Split by stimulus (grouped_splits), or allow repeats to reproduce a protocol that has them."
        )
    return len(repeated)


def _complements(parts: Sequence[NDArray[np.intp]], count: int) -> list[Split]:
    everything = np.arange(count)
    return [(np.setdiff1d(everything, part), np.asarray(part)) for part in parts]

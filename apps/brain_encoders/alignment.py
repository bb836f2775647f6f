"""What was seen, heard or read when: vectors of events and words brought to the volumes of a scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import UserError

__all__ = ["align_to_volumes", "lanczos", "one_hot"]


def align_to_volumes(
    vectors: ArrayLike, onsets_s: ArrayLike, durations_s: ArrayLike, *, repetition_time_s: float, volumes: int
) -> NDArray[np.float64]:
    """For each volume the sum of the events' vectors, each times the share of the volume's time that the event lasted.

    Args:
        vectors: [events, p].
        onsets_s, durations_s: [events]; of an event of no duration, a moment, the volume that it falls into gets the whole.
        repetition_time_s: volume i is taken from i times this on.
        volumes: T.

    Returns:
        [T, p]. What happened after the last volume is left out.

    Raises:
        UserError: if times are not numbers, or no event falls into the scan.
    """
    given = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
    onsets, durations = np.asarray(onsets_s, dtype=np.float64), np.asarray(durations_s, dtype=np.float64)
    if not len(given) == len(onsets) == len(durations):
        raise UserError(f"{len(given)} vectors, {len(onsets)} onsets and {len(durations)} durations: give one of each for every event.")
    if not np.isfinite(onsets).all() or not np.isfinite(durations).all():
        raise UserError("some onsets or durations are not numbers. Mend the events table.")
    starts = np.arange(volumes) * repetition_time_s
    overlap = np.minimum(starts[:, None] + repetition_time_s, onsets + durations) - np.maximum(starts[:, None], onsets)
    moment = (durations <= 0) & (starts[:, None] <= onsets) & (onsets < starts[:, None] + repetition_time_s)
    weight = np.where(moment, 1.0, np.clip(overlap, 0, None) / repetition_time_s)
    if not weight.any():
        raise UserError(
            f"no event falls into the {volumes} volumes of {repetition_time_s:g} s. Are onsets in seconds from the start of the run?"
        )
    return weight @ given


def lanczos(vectors: ArrayLike, times_s: ArrayLike, volume_times_s: ArrayLike, *, window: int = 3) -> NDArray[np.float64]:
    """Word vectors as a signal in time, resampled to the volumes: [T, p].

    Huth et al., "Natural speech reveals the semantic maps that tile human cerebral cortex", Nature 2016: a Lanczos filter of three lobes
    whose cut-off is the volumes' Nyquist frequency.

    Args:
        vectors: [words, p].
        times_s: [words], the middle of each word.
        volume_times_s: [T], at equal steps.
        window: lobes.
    """
    given, times, volumes = (np.asarray(each, dtype=np.float64) for each in (vectors, times_s, volume_times_s))
    cutoff = 1 / np.diff(volumes).mean()
    distance = (volumes[:, None] - times) * cutoff
    weight = np.where(abs(distance) <= window, np.sinc(distance) * np.sinc(distance / window), 0)
    return weight @ given


def one_hot(names: Sequence[str]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """[events, categories] with a one for each event's category, and the categories in alphabetical order."""
    categories = tuple(sorted(set(names)))
    return np.array([[name == category for category in categories] for name in names], dtype=np.float64), categories

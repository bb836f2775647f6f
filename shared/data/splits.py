"""Divides samples into parts (train, validation, test) by patient, the same way every time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from shared.errors import UserError

__all__ = ["split"]


def split(keys: Sequence[str], *, fractions: Mapping[str, float], seed: int, groups: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Divides ``keys`` so that all keys of one group land in one part.

    Each group is put at a point of [0, 1) by a hash of the seed and its name, and the parts are successive intervals of the lengths
    ``fractions``. So where a group lands depends on nothing else: not on the order of the keys, and not on which other keys there are.
    Data added later never moves a frame from training to testing. The price is that sizes are as drawn: of n groups, a part of fraction
    f gets n*f, give or take about sqrt(n*f*(1-f)).

    The one exception: a part that would stay empty gets, from a part with more than one group, the group nearest to its interval.

    Args:
        keys: file stems, study numbers, or whatever names a sample; unique.
        fractions: part -> share of the groups, each above 0, together 1. Their order counts.
        seed: another seed, another division.
        groups: for each key the patient, examination or video that it comes from; None if every key stands for itself.

    Returns:
        part -> its keys, in the order of ``keys``.

    Raises:
        ValueError: if the fractions are not as said, keys repeat, or ``groups`` has another length than ``keys``.
        UserError: if there are fewer groups than parts.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(f"fractions must be above 0 and add up to 1, got {dict(fractions)}")
    if len(set(keys)) != len(keys):
        repeated = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise ValueError(f"keys must be unique, {repeated!r} comes twice")
    if groups is not None and len(groups) != len(keys):
        raise ValueError(f"groups must have one entry for each key: {len(groups)} groups, {len(keys)} keys")
    group_of = dict(zip(keys, keys if groups is None else groups, strict=True))
    positions = {group: _position(group, seed) for group in sorted(set(group_of.values()))}
    if len(positions) < len(fractions):
        what = "samples" if groups is None else "groups (patients)"
        raise UserError(
            f"{len(positions)} {what} cannot be divided into {len(fractions)} parts ({', '.join(fractions)}): more data is needed."
        )
    part_of = _assign(positions, fractions)
    return {part: [key for key in keys if part_of[group_of[key]] == part] for part in fractions}


def _assign(positions: dict[str, float], fractions: Mapping[str, float]) -> dict[str, str]:
    intervals: dict[str, tuple[float, float]] = {}
    start = 0.0
    for part, fraction in fractions.items():
        intervals[part] = (start, start + fraction)
        start += fraction
    last = list(fractions)[-1]
    part_of = {
        group: next((part for part, (_, end) in intervals.items() if position < end), last)  # rounding may leave the last end below 1
        for group, position in positions.items()
    }
    for part, (low, high) in intervals.items():
        if part not in part_of.values():
            sizes = list(part_of.values())
            spare = [group for group in part_of if sizes.count(part_of[group]) > 1]
            part_of[min(spare, key=lambda group: max(low - positions[group], positions[group] - high))] = part
    return part_of


def _position(group: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

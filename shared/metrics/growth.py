"""What became of a patient's lesions between two scans: larger, smaller, new, gone, grown together.

The scans may have different grids; what lies where is compared in the world of their affines. If the patient lay differently, one must be
registered to the other first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from shared.errors import UserError
from shared.metrics.lesions import LesionMap, voxel_volume_ml

__all__ = ["Change", "Fate", "Growth", "LesionChange", "growth"]

Fate = Literal["same", "new", "gone", "merged", "split", "rearranged", "out of view"]
"""Rearranged: several lesions share their place with several. Out of view: the other scan does not reach there, so nothing can be said."""

_DAYS_PER_YEAR = 365.25


@dataclass(frozen=True, kw_only=True)
class Change:
    """Two volumes, and the time between them if it is known."""

    before_ml: float
    after_ml: float
    days: int | None = None

    @property
    def change_ml(self) -> float:
        """Negative where it shrank."""
        return self.after_ml - self.before_ml

    @property
    def change_percent(self) -> float | None:
        """Of the volume before; None where there was none."""
        return 100 * self.change_ml / self.before_ml if self.before_ml else None

    @property
    def ml_per_year(self) -> float | None:
        """Absolute growth rate, as if it had been constant."""
        return self.change_ml / self.days * _DAYS_PER_YEAR if self.days else None

    @property
    def doubling_days(self) -> float | None:
        """Time in which the volume doubles, growing exponentially: days * log 2 / log(after / before). None unless it grew."""
        if not self.days or not 0 < self.before_ml < self.after_ml:
            return None
        return self.days * math.log(2) / math.log(self.after_ml / self.before_ml)


@dataclass(frozen=True, kw_only=True)
class LesionChange:
    """Lesions of the first scan and what is in their place in the second."""

    fate: Fate
    before: tuple[int, ...]
    """Their numbers in the first map."""
    after: tuple[int, ...]
    """Their numbers in the second map."""
    volume: Change
    """Of all of them together. Of what is out of view, the volume that was not seen is given as 0."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Two scans of one patient."""

    total: Change
    """Of all lesions but those out of the other scan's view."""
    lesions: tuple[LesionChange, ...]
    """Each lesion of either scan is in exactly one; largest first, by the larger of the two volumes."""


def growth(
    before: LesionMap, after: LesionMap, *, dates: tuple[date, date] | None = None, minimum_overlap: float = 0.1, minimum_view: float = 0.5
) -> Growth:
    """Follows each lesion from one scan to the next.

    Voxels of the finer grid are looked up in the coarser one, nearest voxel. All lesions that are linked by overlaps change together: two
    that have grown into one are "merged", with the sum of their volumes before.

    Args:
        before, after: from ``find_lesions``, each on its own grid.
        dates: of the two scans; without, there is no doubling time.
        minimum_overlap: two lesions are the same if they share at least this part of the smaller one's volume.
        minimum_view: a lesion that has no other in its place, and less than this part within the other scan, is out of view instead of new
            or gone.

    Raises:
        UserError: if the second date is not after the first, or the scans have no place in common.
    """
    days = _days(dates)
    _check_common_place(before, after)
    seen_before, seen_after = _part_seen(before, after), _part_seen(after, before)
    groups = _groups(_overlaps(before, after), before, after, minimum_overlap)
    changes = []
    for old, new in groups:
        out = not (old and new) and (seen_before[old] if old else seen_after[new]).max() < minimum_view
        changes.append(
            LesionChange(
                fate="out of view" if out else _fate(len(old), len(new)),
                before=tuple(index + 1 for index in old),
                after=tuple(index + 1 for index in new),
                volume=Change(before_ml=_sum(before, old), after_ml=_sum(after, new), days=days),
            )
        )
    changes.sort(key=lambda change: -max(change.volume.before_ml, change.volume.after_ml))
    compared = [change.volume for change in changes if change.fate != "out of view"]
    total = Change(
        before_ml=math.fsum(volume.before_ml for volume in compared), after_ml=math.fsum(volume.after_ml for volume in compared), days=days
    )
    return Growth(total=total, lesions=tuple(changes))


def _fate(before: int, after: int) -> Fate:
    match before, after:
        case 1, 1:
            return "same"
        case 0, _:
            return "new"
        case _, 0:
            return "gone"
        case _, 1:
            return "merged"
        case 1, _:
            return "split"
    return "rearranged"


def _groups(
    shared_ml: NDArray[np.float64], before: LesionMap, after: LesionMap, minimum_overlap: float
) -> list[tuple[list[int], list[int]]]:
    """Indices of the lesions of both scans that are linked by overlaps."""
    olds, news = len(before.lesions), len(after.lesions)
    if not olds + news:
        return []
    smaller = np.minimum.outer([lesion.volume_ml for lesion in before.lesions], [lesion.volume_ml for lesion in after.lesions])
    old, new = np.nonzero((shared_ml > 0) & (shared_ml >= minimum_overlap * smaller))
    links = coo_array((np.ones(len(old)), (old, olds + new)), shape=(olds + news, olds + news))
    count, group = connected_components(links, directed=False)
    members = [np.flatnonzero(group == number).tolist() for number in range(count)]
    return [([index for index in found if index < olds], [index - olds for index in found if index >= olds]) for found in members]


def _overlaps(before: LesionMap, after: LesionMap) -> NDArray[np.float64]:
    """Shared volume in ml of each lesion before with each after."""
    coarse, fine = (before, after) if voxel_volume_ml(after.affine) <= voxel_volume_ml(before.affine) else (after, before)
    numbers, indices, inside = _looked_up(fine, coarse)
    there = coarse.numbers[tuple(indices[inside].T)]
    counts = np.zeros((len(coarse.lesions) + 1, len(fine.lesions) + 1))
    np.add.at(counts, (there, numbers[inside]), voxel_volume_ml(fine.affine))
    return counts[1:, 1:] if fine is after else counts[1:, 1:].T


def _part_seen(lesions: LesionMap, other: LesionMap) -> NDArray[np.float64]:
    """Which part of each lesion lies within the other scan."""
    numbers, _, inside = _looked_up(lesions, other)
    within = np.bincount(numbers[inside], minlength=len(lesions.lesions) + 1)[1:]
    return within / np.array([lesion.voxels for lesion in lesions.lesions]) if lesions.lesions else np.zeros(0)


def _looked_up(lesions: LesionMap, other: LesionMap) -> tuple[NDArray[np.int32], NDArray[np.intp], NDArray[np.bool_]]:
    """For each voxel in a lesion: the lesion's number, the nearest voxel [N, 3] of the other scan, and whether that exists."""
    here = np.argwhere(lesions.numbers)
    matrix = np.linalg.solve(other.affine, lesions.affine)
    there = np.floor(here @ matrix[:3, :3].T + matrix[:3, 3] + 0.5).astype(np.intp)
    inside = ((there >= 0) & (there < other.numbers.shape)).all(axis=1)
    return lesions.numbers[tuple(here.T)], there, inside


def _sum(lesions: LesionMap, indices: list[int]) -> float:
    return math.fsum(lesions.lesions[index].volume_ml for index in indices)


def _days(dates: tuple[date, date] | None) -> int | None:
    if dates is None:
        return None
    first, second = dates
    if second <= first:
        raise UserError(f"the second scan's date, {second}, is not after the first's, {first}. Give the scans in order of time.")
    return (second - first).days


def _check_common_place(before: LesionMap, after: LesionMap) -> None:
    """Refuses scans of which all of one lies beyond one face of the other."""
    for one, other in ((before, after), (after, before)):
        corners = np.array(np.meshgrid(*([-0.5, size - 0.5] for size in other.numbers.shape))).reshape(3, -1).T
        world = corners @ other.affine[:3, :3].T + other.affine[:3, 3]
        there = np.linalg.solve(one.affine[:3, :3], (world - one.affine[:3, 3]).T).T
        if (there.max(axis=0) < -0.5).any() or (there.min(axis=0) > np.array(one.numbers.shape) - 0.5).any():
            raise UserError(
                "the two scans have no place in common: by their affines one lies beside the other. Register one to the other, and check "
                "that both are of the same patient and region."
            )

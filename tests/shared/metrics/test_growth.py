"""Growth: lesions are followed from scan to scan, whatever the grids, and nothing is called new that was out of view."""

from __future__ import annotations

import math
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import UserError
from shared.metrics.growth import Change, growth
from shared.metrics.lesions import LesionMap, find_lesions
from tests.shared.metrics.solids import OBLIQUE, ball, grid

SHAPE = (60, 60, 60)
GRID = grid((1, 1, 1), SHAPE)
OTHER_SHAPE = (80, 70, 40)
OTHER = grid((0.8, 0.9, 2.0), OTHER_SHAPE, rotation=OBLIQUE, centre=(2, -1, 3))
YEAR = (date(2023, 3, 1), date(2024, 3, 1))


def scan(*balls: tuple[float, tuple[float, float, float]], affine: np.ndarray = GRID, shape: tuple[int, int, int] = SHAPE) -> LesionMap:
    """A scan with balls of these radii and centres."""
    mask = np.zeros(shape, bool)
    for radius, centre in balls:
        mask |= ball(affine, shape, radius, centre)
    return find_lesions(mask, affine)


def test_a_lesion_that_grew_is_found_again_on_another_grid() -> None:
    before = scan((8, (3, 4, 5)), (4, (-12, -12, -10)))
    after = scan((10, (3, 4, 5)), (4, (-12, -12, -10)), affine=OTHER, shape=OTHER_SHAPE)
    found = growth(before, after, dates=YEAR)
    large, small = found.lesions
    assert [(change.fate, change.before, change.after) for change in found.lesions] == [("same", (1,), (1,)), ("same", (2,), (2,))]
    # Some 2000 voxels of each ball on either grid: 1 % of discretisation each.
    assert large.volume.change_ml == pytest.approx(4 / 3 * np.pi * (1000 - 512) / 1000, rel=0.05)
    assert large.volume.change_percent == pytest.approx(100 * (1000 / 512 - 1), abs=4)
    assert large.volume.days == 366
    assert large.volume.doubling_days == pytest.approx(366 * math.log(2) / math.log(1000 / 512), rel=0.03)
    assert large.volume.ml_per_year == pytest.approx(large.volume.change_ml * 365.25 / 366)
    # Some 190 voxels of 1.44 mm3: what the surface's voxels leave no longer cancels.
    assert small.volume.change_percent == pytest.approx(0, abs=10)
    assert found.total.before_ml == pytest.approx(before.volume_ml)
    assert found.total.after_ml == pytest.approx(after.volume_ml)


def test_volumes_and_times_by_hand() -> None:
    change = Change(before_ml=2, after_ml=8, days=200)
    assert (change.change_ml, change.change_percent, change.doubling_days) == (6, 300, 100)
    assert change.ml_per_year == pytest.approx(6 * 365.25 / 200)
    shrunk = Change(before_ml=8, after_ml=2, days=200)
    assert (shrunk.change_percent, shrunk.doubling_days) == (-75, None)
    assert Change(before_ml=0, after_ml=2, days=200).change_percent is None
    assert Change(before_ml=0, after_ml=2, days=200).doubling_days is None
    undated = Change(before_ml=2, after_ml=8)
    assert (undated.doubling_days, undated.ml_per_year) == (None, None)


def test_new_and_gone_lesions_are_told_from_those_that_stayed() -> None:
    found = growth(scan((6, (0, 0, 0)), (5, (-15, 0, 0))), scan((6, (1, 0, 0)), (4, (15, 0, 0))))
    assert [(change.fate, change.before, change.after) for change in found.lesions] == [
        ("same", (1,), (1,)),
        ("gone", (2,), ()),
        ("new", (), (2,)),
    ]
    assert found.lesions[1].volume.change_percent == -100
    assert found.lesions[2].volume.change_percent is None


def test_lesions_that_grow_together_or_fall_apart_keep_their_common_volume() -> None:
    two, one = scan((6, (-8, 0, 0)), (5, (8, 0, 0))), scan((9, (-8, 0, 0)), (9, (8, 0, 0)))
    assert len(one.lesions) == 1
    (merged,) = growth(two, one).lesions
    assert (merged.fate, merged.before, merged.after) == ("merged", (1, 2), (1,))
    assert merged.volume.before_ml == pytest.approx(two.volume_ml)
    (split,) = growth(one, two).lesions
    assert (split.fate, split.before, split.after) == ("split", (1,), (1, 2))
    across = scan((6, (0, -8, 0)), (6, (0, 8, 0)))
    beside = scan((6, (-3, -8, 0)), (6, (-3, 8, 0)), (3, (3, -8, 0)), (3, (3, 8, 0)))
    assert {change.fate for change in growth(across, beside).lesions} == {"same"}
    lying, upright = (find_lesions(stripes(axis), np.eye(4)) for axis in (0, 1))
    assert [change.fate for change in growth(lying, upright).lesions] == ["rearranged"]


def stripes(axis: int) -> np.ndarray:
    mask = np.zeros((9, 9, 1), bool)
    for start in (1, 6):
        mask.swapaxes(0, axis)[start : start + 2] = True
    return mask


def test_lesions_that_barely_touch_are_not_the_same() -> None:
    before, after = scan((6, (0, 0, 0))), scan((6, (10.5, 0, 0)))
    assert [change.fate for change in growth(before, after).lesions] == ["gone", "new"]
    assert [change.fate for change in growth(before, after, minimum_overlap=0.001).lesions] == ["same"]


def test_what_the_other_scan_does_not_show_is_neither_new_nor_gone_nor_counted() -> None:
    lower = scan((6, (0, 0, 0)), affine=grid((1, 1, 1), (60, 60, 30)), shape=(60, 60, 30))
    whole = scan((7, (0, 0, 0)), (5, (0, 0, 22)), (4, (20, 0, 5)))
    found = growth(lower, whole)
    assert [(change.fate, change.after) for change in found.lesions] == [("same", (1,)), ("out of view", (2,)), ("new", (3,))]
    assert found.total.after_ml == pytest.approx(whole.volume_ml - whole.lesions[1].volume_ml)
    assert [change.fate for change in growth(whole, lower).lesions] == ["same", "out of view", "gone"]


@given(st.lists(st.tuples(st.floats(1.5, 8), st.tuples(*[st.floats(-15, 15)] * 3)), max_size=4), st.data())
@settings(deadline=None, max_examples=30)
def test_every_lesion_is_in_one_change_and_time_can_be_turned_round(balls, data) -> None:
    moved = data.draw(st.lists(st.tuples(st.floats(1.5, 8), st.tuples(*[st.floats(-15, 15)] * 3)), max_size=4))
    small = (36, 36, 36)
    before = scan(*balls, affine=grid((1, 1, 1), small), shape=small)
    after = scan(*moved, affine=grid((0.9, 1.2, 1.4), small, rotation=OBLIQUE), shape=small)
    forth, back = growth(before, after), growth(after, before)
    assert sorted(number for change in forth.lesions for number in change.before) == list(range(1, len(before.lesions) + 1))
    assert sorted(number for change in forth.lesions for number in change.after) == list(range(1, len(after.lesions) + 1))
    assert forth.total.change_ml == pytest.approx(-back.total.change_ml)
    turned = {"new": "gone", "gone": "new", "merged": "split", "split": "merged"}
    assert {(turned.get(change.fate, change.fate), change.after, change.before) for change in forth.lesions} == {
        (change.fate, change.before, change.after) for change in back.lesions
    }


def test_scans_without_lesions_have_no_changes() -> None:
    found = growth(scan(), scan(), dates=YEAR)
    assert found.lesions == ()
    assert (found.total.change_ml, found.total.change_percent) == (0, None)
    assert [change.fate for change in growth(scan(), scan((5, (0, 0, 0)))).lesions] == ["new"]


def test_scans_that_cannot_be_compared_are_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"2023-03-01, is not after the first's, 2024-03-01\. Give the scans in order"):
        growth(scan(), scan(), dates=YEAR[::-1])
    elsewhere = find_lesions(np.ones((5, 5, 5), bool), grid((1, 1, 1), (5, 5, 5), centre=(100, 0, 0)))
    with pytest.raises(UserError, match=r"no place in common.*Register"):
        growth(scan((5, (0, 0, 0))), elsewhere)

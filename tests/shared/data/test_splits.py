"""A division by patient is the same every time, and never puts one patient on both sides."""

import itertools
import random

import pytest

from shared.data.splits import split
from shared.errors import UserError

KEYS = [f"frame_{i:04d}" for i in range(1000)]
FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
EARLIER = ["frame_0004", "frame_0006", "frame_0028", "frame_0040"]


def test_every_key_lands_in_exactly_one_part() -> None:
    parts = split(KEYS, fractions=FRACTIONS, seed=0)
    assert list(parts) == list(FRACTIONS)
    assert sorted(itertools.chain(*parts.values())) == KEYS


def test_sizes_are_near_the_fractions() -> None:
    parts = split(KEYS, fractions=FRACTIONS, seed=0)
    # 1000 draws: standard deviation 9.5 for a tenth; five of them.
    assert abs(len(parts["validation"]) - 100) < 48
    assert abs(len(parts["test"]) - 100) < 48


def test_order_does_not_matter_and_the_seed_does() -> None:
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    once = split(KEYS, fractions=FRACTIONS, seed=0)
    assert {part: sorted(keys) for part, keys in split(shuffled, fractions=FRACTIONS, seed=0).items()} == once
    assert split(KEYS, fractions=FRACTIONS, seed=1) != once


def test_the_division_is_the_one_of_earlier_versions() -> None:
    # Written down once: a change would move frames between training and testing of data that people already use.
    assert split(KEYS, fractions=FRACTIONS, seed=0)["validation"][:4] == EARLIER


def test_files_added_later_move_nothing() -> None:
    small = split(KEYS[::2], fractions=FRACTIONS, seed=0)
    large = split(KEYS, fractions=FRACTIONS, seed=0)
    for part, keys in small.items():
        assert set(keys) <= set(large[part])


def test_a_patient_is_never_on_both_sides() -> None:
    patients = [f"patient_{i % 37}" for i in range(len(KEYS))]
    parts = split(KEYS, fractions=FRACTIONS, seed=3, groups=patients)
    of = dict(zip(KEYS, patients, strict=True))
    sides = {part: {of[key] for key in keys} for part, keys in parts.items()}
    assert all(sides.values())
    assert not any(a & b for a, b in itertools.combinations(sides.values(), 2))


@pytest.mark.parametrize("seed", range(50))
def test_no_part_is_empty_even_with_few_patients(seed: int) -> None:
    parts = split(["a", "b", "c", "d"], fractions={"train": 0.9, "validation": 0.05, "test": 0.05}, seed=seed)
    assert all(parts.values())
    assert sum(map(len, parts.values())) == 4


def test_too_few_patients_are_named() -> None:
    with pytest.raises(UserError, match=r"1 groups \(patients\) cannot be divided into 3 parts \(train, validation, test\)"):
        split(["a", "b", "c"], fractions=FRACTIONS, seed=0, groups=["p", "p", "p"])


@pytest.mark.parametrize(
    ("keys", "fractions", "groups", "message"),
    [
        (["a", "b"], {"train": 0.5, "test": 0.4}, None, "add up to 1"),
        (["a", "b"], {"train": 1.0, "test": 0.0}, None, "above 0"),
        (["a", "a"], {"train": 0.5, "test": 0.5}, None, "'a' comes twice"),
        (["a", "b"], {"train": 0.5, "test": 0.5}, ["p"], "1 groups, 2 keys"),
    ],
)
def test_wrong_arguments_are_refused(keys: list[str], fractions: dict[str, float], groups: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(keys, fractions=fractions, seed=0, groups=groups)

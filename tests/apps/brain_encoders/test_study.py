"""Studies: what is read, and one clear message for each thing that can be wrong with them."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.brain_encoders.data import divide, read_study
from apps.brain_encoders.space import TableSpace
from apps.brain_encoders.study import Study, checked, read_own
from shared.errors import UserError
from shared.phantoms.brain import BrainPhantom


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "study"))


def rewrite(folder: Path, change) -> None:
    with open(folder / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with open(folder / "trials.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_study_is_read_as_it_was_written(study: Study, phantom: BrainPhantom) -> None:
    assert np.array_equal(study.responses, phantom.responses)
    assert np.array_equal(study.test, phantom.test)
    assert study.captions[0] == phantom.stimuli[0].caption
    assert study.space.hemispheres == (phantom.left, study.units - phantom.left)
    assert checked(study) is study


def test_responses_to_repeats_are_averaged_and_the_repeats_are_there(study: Study) -> None:
    test = study.part(test=True)
    repeats = study.presentations(test)
    assert repeats.shape == (3, 8, study.units)
    assert np.allclose(study.mean_responses(test), repeats.mean(axis=0), atol=1e-6)
    assert study.presentations(study.part(test=False)) is None


def test_training_and_validation_are_different_images(study: Study) -> None:
    parts = divide(study, validation=0.2, seed=0)
    assert not set(parts.train) & set(parts.validation)
    assert len(parts.train) + len(parts.validation) == 40
    assert np.array_equal(parts.train_responses[0], study.mean_responses(np.array([study.images.index(parts.train[0])]))[0])


@pytest.mark.parametrize(("value", "said"), [(np.nan, "not numbers"), (1.0, "constant")])
def test_dead_units_are_refused_or_dropped(study: Study, value: float, said: str) -> None:
    responses = np.array(study.responses)
    responses[:, [3, 700]] = value
    broken = replace(study, responses=responses)
    with pytest.raises(UserError, match=rf"2 of 1,065 units have responses that are 2 {said}.*bad_units drop"):
        checked(broken)
    kept = checked(broken, bad_units="drop")
    assert kept.units == 1063
    assert kept.space.hemispheres == (study.space.hemispheres[0] - 1, study.space.hemispheres[1] - 1)
    assert all(mask.shape == (1063,) for mask in kept.regions.values())
    assert len(kept.space.names()) == 1063


def test_responses_that_are_no_table_of_numbers_are_refused(study: Study) -> None:
    for responses in (study.responses[:, 0], np.full(study.responses.shape, "1")):
        with pytest.raises(UserError, match="responses must be a table of numbers"):
            checked(replace(study, responses=responses))


def test_the_same_picture_in_train_and_test_under_another_name_is_refused(copy: Path) -> None:
    shutil.copy(copy / "images/00000.png", copy / "images/00045.png")
    with pytest.raises(UserError, match=r"3 of 24 test samples show a stimulus that is also fitted|1 of 8 test samples.*allow_repeats"):
        checked(read_own(copy))
    checked(read_own(copy), allow_repeats=True)


def test_an_image_on_both_sides_is_refused(copy: Path) -> None:
    rewrite(copy, lambda rows: rows[-1].update(split="train"))
    with pytest.raises(UserError, match=r"trials.csv: images/00047.png is in train and in test"):
        read_own(copy)


def test_more_presentations_than_responses_are_refused(copy: Path) -> None:
    rewrite(copy, lambda rows: rows.pop())
    with pytest.raises(UserError, match="63 presentations, but responses with 64 rows"):
        checked(read_own(copy))


def test_responses_of_another_mask_are_refused(study: Study) -> None:
    with pytest.raises(UserError, match=r"1,065 units, but mask or vertices are 2"):
        checked(replace(study, space=TableSpace(units=("a", "b"))))


def test_a_missing_image_and_a_damaged_array_are_named(copy: Path) -> None:
    (copy / "images/00007.png").unlink()
    with pytest.raises(UserError, match=r"00007.png: no such file, and 1 of 48"):
        read_own(copy)
    shutil.copy(copy / "images/00006.png", copy / "images/00007.png")
    (copy / "responses.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"responses.npy: cannot be read as an array"):
        read_own(copy)


def test_a_folder_of_no_known_layout_says_which_are_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no study.*trials.csv.*Algonauts.*BOLD5000.*Pereira"):
        read_study(tmp_path)

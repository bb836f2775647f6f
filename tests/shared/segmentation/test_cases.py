"""Labelled volumes are found in both layouts, what is left out is said, patients stay together, and a pair that does not fit is refused."""

from pathlib import Path

import numpy as np
import pytest

from shared.errors import InputError, UserError
from shared.segmentation.cases import describe, divide, labelled_volumes, read_labelled
from shared.segmentation.config import TaskConfig, VolumeDataConfig
from shared.segmentation.labels import Labels
from tests.shared.segmentation.bright import AFFINE, BRATS_TASK, block, scan, write_case, write_volume

TASK = TaskConfig()
TRUTH = block((2, 2, 2), (5, 5, 5))


def decathlon(root: Path, names: str) -> Path:
    for name in names:
        write_volume(root / "imagesTr" / f"{name}.nii.gz", scan(TRUTH).values)
        write_volume(root / "labelsTr" / f"{name}.nii.gz", TRUTH.astype(np.uint8))
    return root


def test_images_and_labels_in_two_folders_are_paired_by_name(tmp_path, capsys):
    decathlon(tmp_path, "bac")
    (tmp_path / "labelsTr" / "c.nii.gz").rename(tmp_path / "labelsTr" / "d.nii.gz")
    (tmp_path / "imagesTr" / "._a.nii.gz").write_bytes(b"what macOS leaves")
    found = labelled_volumes(tmp_path, TASK)
    assert [one.name for one in found] == ["a", "b"]
    said = capsys.readouterr().out
    assert "imagesTr/c.nii.gz: labelsTr has no file of this name" in said
    assert "labelsTr/d.nii.gz: imagesTr has no file of this name" in said
    assert "._a" not in said
    image, truth = read_labelled(found[0], Labels(TASK))
    assert image.values.shape == (1, *TRUTH.shape)
    assert truth.values.dtype == np.uint8
    np.testing.assert_array_equal(truth.values, TRUTH)


def test_a_folder_for_each_case_is_read_with_its_sequences_in_the_models_order(tmp_path, capsys):
    for name, sequences in {"p1": ("flair", "t1ce"), "p2": ("t1ce",), "p3": ("flair", "t1ce")}.items():
        for sequence in sequences:
            value = {"flair": 1, "t1ce": 2}[sequence]
            write_volume(tmp_path / name / f"{name}_{sequence}.nii.gz", scan(TRUTH).values * value)
        if name != "p3":
            write_volume(tmp_path / name / f"{name}_seg.nii.gz", TRUTH.astype(np.uint8))
    found = labelled_volumes(tmp_path, BRATS_TASK)
    assert [one.name for one in found] == ["p1"]
    said = capsys.readouterr().out
    assert "p2: flair is missing" in said
    assert "p3: holds no label map" in said
    image, _ = read_labelled(found[0], Labels(BRATS_TASK))
    np.testing.assert_allclose(image.values[1], 2 * image.values[0], rtol=1e-6)


@pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / "x").mkdir(parents=True)], ids=["missing", "empty"])
def test_a_folder_without_any_says_what_was_expected(make, tmp_path):
    make(tmp_path / "data")
    with pytest.raises(UserError, match=r"data: (no such folder|holds no labelled volumes. Expected imagesTr)"):
        labelled_volumes(tmp_path / "data", TASK)


def test_a_label_map_of_another_grid_or_with_a_strange_value_is_named(tmp_path):
    decathlon(tmp_path, "abc")
    write_volume(tmp_path / "labelsTr" / "a.nii.gz", TRUTH.astype(np.uint8), AFFINE @ np.diag([2, 1, 1, 1]))
    write_volume(tmp_path / "labelsTr" / "b.nii.gz", 3 * TRUTH.astype(np.uint8))
    write_volume(tmp_path / "labelsTr" / "c.nii.gz", 0.5 * TRUTH.astype(np.float32))
    one, two, three = labelled_volumes(tmp_path, TASK)
    for bad, says in ((one, "a.nii.gz"), (two, r"b.nii.gz: holds the value 3"), (three, "c.nii.gz")):
        with pytest.raises(InputError, match=says):
            read_labelled(bad, Labels(TASK))


def test_scans_of_one_patient_stay_on_one_side(tmp_path):
    for patient in range(6):
        for visit in range(2):
            write_case(tmp_path, f"p{patient}v{visit}", TRUTH)
    volumes = labelled_volumes(tmp_path, TASK)
    config = VolumeDataConfig(validation=0.34, group_pattern=r"^(p\d+)")
    training, validation = divide(volumes, config, seed=0)
    assert (len(training), len(validation)) == (8, 4)
    sides = [{one.name[:2] for one in side} for side in (training, validation)]
    assert not sides[0] & sides[1]
    assert divide(volumes, config, seed=0) == (training, validation)
    folds = [divide(volumes, VolumeDataConfig(fold=fold, folds=3, group_pattern=r"^(p\d+)"), seed=0)[1] for fold in range(3)]
    assert sorted(one.name for fold in folds for one in fold) == [one.name for one in volumes]

    for changes, says in (
        ({"fold": 5}, "counted from 0"),
        ({"validation": 1.0}, "data.validation"),
        ({"group_pattern": "(x"}, "not a regular expression"),
        ({"group_pattern": "p"}, "finds no group"),
    ):
        with pytest.raises(UserError, match=says):
            divide(volumes, VolumeDataConfig(**changes), seed=0)


def test_the_checksum_of_a_data_set_is_that_of_its_contents(tmp_path):
    decathlon(tmp_path / "here", "ab")
    first = describe(tmp_path / "here", labelled_volumes(tmp_path / "here", TASK))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = describe(tmp_path / "there", labelled_volumes(tmp_path / "there", TASK))
    assert (first["data"], moved["data"]) == ("here", "there")
    assert first["data_sha256"] == moved["data_sha256"]
    write_volume(tmp_path / "there" / "labelsTr" / "a.nii.gz", np.zeros(TRUTH.shape, np.uint8))
    assert describe(tmp_path / "there", labelled_volumes(tmp_path / "there", TASK))["data_sha256"] != first["data_sha256"]

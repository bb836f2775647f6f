"""Labels, folds and bags: what a person gets wrong is one clear message, and no patient is in two parts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from apps.acmil.bags import Bag, BagFile, Tiles, list_bags, write_bag
from apps.acmil.config import DataConfig
from apps.acmil.data import LabelledSlide, TrainingBags, ValidationBags, labelled_slides, read_labels, usable_bags
from apps.acmil.folds import class_weights, divide, patient_folds, read_splits
from shared.errors import UserError


def table(folder: Path, *lines: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def slides(count: int, *, per_patient: int = 2, classes: int = 2, split: str = "") -> list[LabelledSlide]:
    return [
        LabelledSlide(
            name=f"s{number}",
            label=number // per_patient % classes,
            label_name=f"class {number // per_patient % classes}",
            patient=f"p{number // per_patient}",
            split=split,
            source=BagFile(slide=f"s{number}", path=Path("none.h5")),
        )
        for number in range(count)
    ]


def bag(folder: Path, name: str, *, rows: int = 5, width: int = 4, encoder: str = "one") -> Path:
    tiles = Tiles(coordinates=np.zeros((rows, 2), dtype=np.int64), slide=name, tile_px_level0=256)
    write_bag(folder / f"{name}.h5", Bag.of(tiles, np.ones((rows, width), dtype=np.float32), encoder=encoder))
    return folder / f"{name}.h5"


def test_tables_as_people_have_them_are_read(tmp_path: Path) -> None:
    clam = table(tmp_path, "case_id,slide_id,label", "p1,007.svs,tumor", "p1,8.5.tif,normal")
    assert [(row.slide, row.label, row.patient) for row in read_labels(clam)] == [("007", "tumor", "p1"), ("8.5", "normal", "p1")]
    plain = table(tmp_path, "\ufeffSlide;x".replace(";x", ",Label,Split"), "folder/a.h5,1,train", name="two.csv")
    (row,) = read_labels(plain)
    assert (row.slide, row.label, row.patient, row.split) == ("a", "1", "a", "train")
    tabs = table(tmp_path, "slide\tclass", "a\tb", name="three.tsv")
    assert read_labels(tabs)[0].label == "b"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["name,label", "a,1"], "has no column slide or slide_id; it has name, label"),
        (["slide,diagnosis", "a,1"], "has no column label"),
        (["slide,label"], "has no column slide"),
        (["slide,label", "a,"], "line 2 has no label"),
        (["slide,label", "a,1", "a,2"], "slide a is labelled '1' and, in line 3, '2'"),
    ],
)
def test_a_table_that_cannot_be_used_says_where_it_is_wrong(lines: list[str], says: str, tmp_path: Path) -> None:
    path = table(tmp_path, *lines)
    with pytest.raises(UserError) as error:
        read_labels(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


def test_labels_for_slides_that_do_not_exist_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag(tmp_path, "a")
    bag(tmp_path, "unlabelled")
    rows = read_labels(table(tmp_path, "slide,label", "a,1", "ghost,0"))
    found, classes = labelled_slides(rows, list_bags(tmp_path), table=tmp_path / "labels.csv")
    assert [slide.name for slide in found] == ["a"]
    assert classes == ("1",)
    out = capsys.readouterr().out
    assert "1 of 2 slides" in out
    assert "ghost" in out
    assert "unlabelled" in out


def test_labels_of_which_no_slide_exists_are_an_error(tmp_path: Path) -> None:
    bag(tmp_path, "a")
    rows = read_labels(table(tmp_path, "slide,label", "ghost,0"))
    with pytest.raises(UserError, match=r"not one of its 1 slides is here, such as 'ghost'; there are a\."):
        labelled_slides(rows, list_bags(tmp_path), table=tmp_path / "labels.csv")


def test_a_label_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    bag(tmp_path, "a")
    rows = read_labels(table(tmp_path, "slide,label", "a,maybe"))
    with pytest.raises(UserError, match=r"slide a is labelled 'maybe', and the classes are no, yes"):
        labelled_slides(rows, list_bags(tmp_path), classes=("no", "yes"), table=tmp_path / "labels.csv")


def test_classes_that_are_numbers_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    for name in "abc":
        bag(tmp_path, name)
    rows = read_labels(table(tmp_path, "slide,label", "a,10", "b,2", "c,0"))
    assert labelled_slides(rows, list_bags(tmp_path), table=tmp_path / "labels.csv")[1] == ("0", "2", "10")


@pytest.mark.parametrize(("width", "encoder"), [(6, "one"), (4, "two")])
def test_a_feature_file_of_another_encoder_is_refused_before_the_training(width: int, encoder: str, tmp_path: Path) -> None:
    bag(tmp_path, "a")
    bag(tmp_path, "b", width=width, encoder=encoder)
    rows = read_labels(table(tmp_path, "slide,label", "a,1", "b,0"))
    found, _ = labelled_slides(rows, list_bags(tmp_path), table=tmp_path / "labels.csv")
    with pytest.raises(UserError, match=r"b\.h5: features of another encoder: . wide, of '.*', and 4 wide, of 'one'"):
        usable_bags(found)


def test_an_empty_bag_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.zeros((0, 4), dtype=np.float32)
    rows = read_labels(table(tmp_path, "slide,label", "a,1"))
    found, _ = labelled_slides(rows, list_bags(tmp_path), table=tmp_path / "labels.csv")
    with pytest.raises(UserError, match=r"a\.h5: the bag of a is empty: no tissue"):
        usable_bags(found)


def test_folds_keep_patients_together_and_spread_the_classes() -> None:
    found = slides(60, per_patient=3)
    labels, patients = [slide.label for slide in found], [slide.patient for slide in found]
    folds = patient_folds(labels, patients, folds=5, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(60))
    for fold in folds:
        outside = {patients[index] for index in range(60) if index not in fold}
        assert {patients[index] for index in fold} & outside == set()
        assert Counter(labels[index] for index in fold) == {0: 6, 1: 6}
    again = patient_folds(labels, patients, folds=5, seed=0)
    assert all((one == two).all() for one, two in zip(folds, again, strict=True))


def test_each_fold_is_held_out_once_and_no_patient_is_in_two_parts() -> None:
    found, held = slides(40), []
    for fold in range(4):
        parts = divide(found, DataConfig(folds=4, fold=fold), seed=7)
        groups = [{slide.patient for slide in part} for part in (parts.train, parts.validation, parts.test)]
        assert groups[0] & groups[1] == groups[0] & groups[2] == groups[1] & groups[2] == set()
        assert len(parts.train) + len(parts.validation) + len(parts.test) == 40
        held += [slide.name for slide in parts.test]
    assert sorted(held) == sorted(slide.name for slide in found)


def test_a_patient_in_two_parts_of_a_given_division_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "split_1.json"
    path.write_text('{"train_names": ["s0", "s2", "s4"], "val_names": ["s1"]}')
    with pytest.raises(UserError, match=r"split_1.json: patient p0 is in train and in validation \(slide s1\)"):
        divide(slides(6), DataConfig(splits=path), seed=0)


def test_divisions_of_clam_in_both_forms_and_of_acmil_are_read(tmp_path: Path) -> None:
    named = table(tmp_path, ",train,val,test", "0,s0,s4,s6", "1,s1,,", "2,s2,,", name="splits_0.csv")
    flags = table(
        tmp_path, ",train,val,test", "s0,True,False,False", "s4,False,True,False", "s6,False,False,True", name="splits_0_bool.csv"
    )
    (tmp_path / "split_1.json").write_text('{"train_names": ["s0"], "val_names": ["s4"], "test_names": ["s6"]}')
    assert read_splits(named) == {"train": ["s0", "s1", "s2"], "validation": ["s4"], "test": ["s6"]}
    assert read_splits(flags) == read_splits(tmp_path / "split_1.json") == {"train": ["s0"], "validation": ["s4"], "test": ["s6"]}
    parts = divide(slides(8), DataConfig(splits=named), seed=0)
    assert [slide.name for slide in parts.train] == ["s0", "s1", "s2"]
    assert [slide.name for slide in parts.test] == ["s6"]


def test_a_division_that_names_unknown_slides_is_an_error(tmp_path: Path) -> None:
    path = table(tmp_path, "train,val", "s0,ghost", name="splits_0.csv")
    with pytest.raises(UserError, match=r"names slides without a label or a bag, 1 in all, the first 'ghost'"):
        divide(slides(4), DataConfig(splits=path), seed=0)


def test_the_column_split_is_kept_and_a_missing_validation_part_comes_from_the_training_part() -> None:
    found = [replace(slide, split="test" if number >= 20 else "train") for number, slide in enumerate(slides(28))]
    parts = divide(found, DataConfig(), seed=0)
    assert [slide.name for slide in parts.test] == [f"s{number}" for number in range(20, 28)]
    assert len(parts.validation) == 4
    with pytest.raises(UserError, match="the column split says 'later'"):
        divide([replace(found[0], split="later")], DataConfig(), seed=0)


def test_slides_of_one_class_only_cannot_be_trained_on() -> None:
    with pytest.raises(UserError, match=r"slides for training are 'class 0'. Slides of at least two classes are needed"):
        divide(slides(20, classes=1), DataConfig(), seed=0)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (DataConfig(folds=1), "at least 2 folds"),
        (DataConfig(folds=3, fold=3), "one of 0 to folds - 1"),
        (DataConfig(folds=9), "5 patients cannot be divided into 9 folds"),
        (DataConfig(validation=0.0), "above 0 and at most 0.5"),
    ],
)
def test_a_division_that_cannot_be_made_says_why(config: DataConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        divide(slides(10), config, seed=0)


def test_balanced_training_draws_each_class_as_often_however_rare_it_is(labelled: Path) -> None:
    sources = {source.slide: source for source in list_bags(labelled / "bags")}
    many = [replace(slide, source=sources[f"bag_{number:04d}"], label=int(number == 1)) for number, slide in enumerate(slides(20))]
    drawn = TrainingBags(many, balance=True)
    labels = [int(drawn[0, seed]["label"]) for seed in range(200)]
    assert 70 < sum(labels) < 130, "half of 200, give or take four standard deviations"
    plain = TrainingBags(many, balance=False)
    assert [int(plain[index, 0]["label"]) for index in range(20)] == [slide.label for slide in many]
    np.testing.assert_allclose(class_weights([0, 0, 0, 1]), [4 / 3, 4 / 3, 4 / 3, 4])


def test_a_large_bag_is_trained_on_in_part_and_validated_on_whole(labelled: Path) -> None:
    source = list_bags(labelled / "bags")[0]
    one = replace(slides(1)[0], source=source)
    part = TrainingBags([one], balance=False, max_instances=10)
    whole = ValidationBags([one])[0]["bag"]
    assert part[0, 1]["bag"].shape == (10, whole.shape[1])
    assert (part[0, 1]["bag"] == part[0, 1]["bag"]).all()
    assert (part[0, 1]["bag"] != part[0, 2]["bag"]).any()
    assert len(whole) > 10

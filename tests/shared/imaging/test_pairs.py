"""Images and masks are paired by stem, and whatever is left out is named."""

import pytest

from shared.errors import UserError
from shared.imaging import find_pairs
from tests.shared.imaging.test_sources import make


def test_pairs_by_stem_and_never_by_order(tmp_path):
    make(tmp_path, "images/10.jpg", "images/2.png", "images/9.jpg", "masks/2.png", "masks/10.png", "masks/9.jpg")
    found = find_pairs(tmp_path)
    assert [(pair.stem, pair.image.name, pair.mask.name) for pair in found.pairs] == [
        ("10", "10.jpg", "10.png"),
        ("2", "2.png", "2.png"),
        ("9", "9.jpg", "9.jpg"),
    ]
    assert not found.dropped


def test_what_is_dropped_is_listed_with_the_reason(tmp_path):
    make(
        tmp_path,
        "images/a.png",
        "images/b.png",
        "images/c.png",
        "images/c.jpg",
        "masks/a.png",
        "masks/c.png",
        "masks/d.png",
        "images/Thumbs.db",
    )
    found = find_pairs(tmp_path)
    assert [pair.stem for pair in found.pairs] == ["a"]
    assert {item.path.relative_to(tmp_path).as_posix(): item.reason for item in found.dropped} == {
        "images/b.png": "no file in masks has the stem b",
        "images/c.jpg": "2 files in images share the stem c: c.jpg, c.png",
        "images/c.png": "2 files in images share the stem c: c.jpg, c.png",
        "masks/c.png": "2 files in images share the stem c: c.jpg, c.png",
        "masks/d.png": "no file in images has the stem d",
    }


def test_patients_in_sub_folders_are_kept_apart(tmp_path):
    make(tmp_path, "frames/p1/1.jpg", "frames/p2/1.jpg", "truth/p1/1.png", "truth/p2/1.png")
    found = find_pairs(tmp_path, images="frames", masks="truth")
    assert [(pair.stem, pair.mask.parent.name) for pair in found.pairs] == [("p1/1", "p1"), ("p2/1", "p2")]


def test_missing_and_empty_folders_and_names_that_never_match(tmp_path):
    with pytest.raises(UserError, match=r"images: there is no such folder. Labelled data are expected"):
        find_pairs(tmp_path)
    make(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="masks: this folder has no images"):
        find_pairs(tmp_path)
    make(tmp_path, "masks/a_mask.png")
    with pytest.raises(UserError, match=r"no image has a mask of the same stem \(first image a.png, first mask a_mask.png\)"):
        find_pairs(tmp_path)

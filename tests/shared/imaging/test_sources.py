"""Files, folders and patterns become a list of inputs whose results never overwrite one another's."""

import os
import tempfile
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.imaging import IMAGE_SUFFIXES, find_inputs


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def stems(*paths: Path | str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> dict[str, str]:
    """Stem -> file name with its last folder."""
    found = find_inputs(paths, suffixes=suffixes)
    assert len({file.stem.casefold() for file in found}) == len(found)
    assert not [file.stem for file in found if Path(file.stem).is_absolute() or ".." in Path(file.stem).parts]
    return {file.stem: f"{file.path.parent.name}/{file.path.name}" for file in found}


def test_a_folder_is_searched_with_its_sub_folders_in_a_fixed_order(tmp_path):
    make(tmp_path, "b.png", "a.JPG", "sub/c.tiff", "sub/deep/d.webp", "notes.txt", ".hidden.png", ".git/e.png", "video.mp4")
    assert list(stems(tmp_path)) == ["a", "b", "sub/c", "sub/deep/d"]


def test_a_file_is_taken_whatever_its_suffix(tmp_path):
    make(tmp_path, "frame.xyz", "frame", ".hidden.png")
    assert list(stems(tmp_path / "frame.xyz", tmp_path / "frame", tmp_path / ".hidden.png")) == ["frame.xyz", "frame", ".hidden"]


def test_the_same_file_given_twice_is_read_once(tmp_path):
    make(tmp_path, "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert len(stems(tmp_path, tmp_path / "a.png", f"{tmp_path}/*.png", tmp_path / ".." / tmp_path.name / "a.png")) == 1


def test_equal_names_differ_by_suffix_only_where_needed(tmp_path):
    make(tmp_path, "1.png", "1.jpg", "2.png", "sub/1.png")
    assert stems(tmp_path) == {
        "1_jpg": f"{tmp_path.name}/1.jpg",
        "1_png": f"{tmp_path.name}/1.png",
        "2": f"{tmp_path.name}/2.png",
        "sub/1": "sub/1.png",
    }


def test_equal_names_of_two_folders_differ_by_folder(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    assert stems(tmp_path / "a", tmp_path / "b") == {"a/1": "a/1.png", "b/1": "b/1.png", "2": "b/2.png"}
    assert stems(tmp_path / "a/1.png", tmp_path / "b/1.png") == {"a/1": "a/1.png", "b/1": "b/1.png"}


def test_names_that_still_collide_differ_by_both_and_take_nobody_elses(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png", "b/1.jpg", "c/a/1_png.png")
    assert set(stems(tmp_path / "a", tmp_path / "b")) == {"a/1_png", "b/1_png", "b/1_jpg"}
    assert len(stems(tmp_path / "a", tmp_path / "b", tmp_path / "c")) == 4
    make(tmp_path, "x/1.png", "x/1.jpg", "x/1_jpg.png")
    assert stems(tmp_path / "x")["1_jpg"] == "x/1_jpg.png"


@pytest.mark.skipif(os.name == "nt", reason="the file system has no two such files")
def test_upper_and_lower_case_do_not_tell_results_apart(tmp_path):
    make(tmp_path, "A.png", "a.jpg")
    if len(list(tmp_path.iterdir())) == 2:
        assert set(stems(tmp_path)) == {"A_png", "a_jpg"}


def test_the_answer_does_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    make(tmp_path, "a/1.png", "b/1.png")
    monkeypatch.chdir(tmp_path / "a")
    assert list(stems("../b/1.png", "1.png")) == ["b/1", "a/1"]


def test_patterns(tmp_path):
    make(tmp_path, "p1/images/1.png", "p2/images/1.png", "p2/images/2.jpg", "p2/masks/1.png", "p2/notes.txt")
    assert list(stems(f"{tmp_path}/*/images/*.png")) == ["p1/images/1", "p2/images/1"]
    assert list(stems(f"{tmp_path}/p?/images")) == ["p1/images/1", "p2/images/1", "p2/images/2"]
    assert len(stems(f"{tmp_path}/**/*")) == 4
    assert list(stems(f"{tmp_path}/p2/*/../images/2.*")) == ["images/2"]


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    make(tmp_path, "scan[1].png", "scan1.png")
    assert list(stems(tmp_path / "scan[1].png")) == ["scan[1]"]


def test_suffixes_with_two_dots_are_one_suffix(tmp_path):
    make(tmp_path, "brain.nii.gz", "table.csv.gz", "flat.nii")
    assert list(stems(tmp_path, suffixes=frozenset({".nii", ".nii.gz"}))) == ["brain", "flat"]


def test_linked_folders_are_searched_once(tmp_path):
    make(tmp_path, "data/1.png", "elsewhere/2.png")
    (tmp_path / "data/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    assert list(stems(tmp_path / "data")) == ["1", "more/2"]


def test_nothing_to_read_says_what_was_looked_for(tmp_path):
    make(tmp_path, "texts/notes.txt", "texts/table.csv")
    (tmp_path / "empty").mkdir()
    for given, message in {
        tmp_path / "missing/deep": rf"missing/deep: there is no such file or folder \({tmp_path} exists, the rest does not\)",
        tmp_path / "empty": r"empty: this folder has no files at all \(.bmp, .gif, .* were looked for\)",
        tmp_path / "texts": r"this folder has 2 files, but none of the right kind .*found: notes.txt, table.csv",
        f"{tmp_path}/*.png": r"\*.png: nothing matches this pattern",
        f"{tmp_path}/texts/*": r"texts/\*: matches 2 files, but none of the right kind",
    }.items():
        with pytest.raises(UserError, match=message):
            find_inputs([given], suffixes=IMAGE_SUFFIXES)
    with pytest.raises(UserError, match="no input was given"):
        find_inputs([], suffixes=IMAGE_SUFFIXES)


def test_a_folder_that_may_not_be_read_is_said_so():
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, whose parents are closed to other users
        folder = Path(name)
        make(folder, "open/1.png", "open/locked/2.png")
        folder.chmod(0o755)
        (folder / "open/locked").chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(UserError, match=r"locked: this folder cannot be read \(Permission denied\)"):
                find_inputs([folder / "open"], suffixes=IMAGE_SUFFIXES)
        finally:
            os.seteuid(user)
            (folder / "open/locked").chmod(0o755)

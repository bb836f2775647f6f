"""Inputs of the promises may be folders: the service gets those zipped."""

import io
import zipfile
from pathlib import Path

from tests.contract.contract import APPS
from tests.contract.inputs import copy, ending, upload, write

FOLDER = {"IM1": b"one", "below/IM2": b"two"}


def test_a_folder_is_written_copied_and_sent_as_an_archive(tmp_path: Path) -> None:
    write(tmp_path / "T1", FOLDER)
    copy(tmp_path / "T1", tmp_path / "again")
    name, content = upload(tmp_path / "again")
    assert name == "again.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {member: archive.read(member) for member in archive.namelist() if not member.endswith("/")} == FOLDER


def test_a_file_stays_a_file_and_keeps_both_its_dots(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", b"one")
    copy(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert upload(tmp_path / "b.nii.gz") == ("b.nii.gz", b"one")
    assert [ending(name) for name in ("a.nii.gz", "a.png", "T1")] == [".nii.gz", ".png", ""]


def test_every_app_is_held_to_the_promises() -> None:
    assert {f"test_{app}.py" for app in APPS} <= {path.name for path in Path(__file__).parent.iterdir()}

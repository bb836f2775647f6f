"""A file is whole or absent, whatever happens while it is written."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.files import atomic_folder, atomic_path, write_bytes, write_json, write_text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_and_its_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "Größe")
    assert (tmp_path / "a" / "b" / "c.txt").read_text(encoding="utf-8") == "Größe"
    assert names(tmp_path / "a" / "b") == {"c.txt"}


def test_the_temporary_file_has_the_same_ending_because_writers_go_by_it(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "mask.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with suppress(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_numbers_that_are_not_json_are_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"dice": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "dice": 0.5\n}\n'


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=r"a/b.txt: cannot be written \((Not a directory|File exists)\)"):
        write_bytes(tmp_path / "a" / "b.txt", b"")
    with pytest.raises(UserError, match="cannot be written"), atomic_folder(tmp_path / "a" / "b"):
        pass


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    script = f"""
import resource, signal
from shared.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_bytes({str(path)!r}, bytes(100_000))
"""
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, timeout=60)
    assert answer.stderr.strip().splitlines()[-1].startswith(f"shared.errors.UserError: {path}: cannot be written (File too large). Free")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a.bin"}


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_folder(folder) as temporary:
            (temporary / content).write_text(content)
    assert names(folder) == {"new"}
    assert names(tmp_path) == {"model"}


def test_a_folder_whose_making_fails_leaves_the_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("old")
    with suppress(KeyboardInterrupt), atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="model: cannot be written"), atomic_folder(folder) as temporary:
        (temporary / "missing" / "weights").write_text("cannot be")
    assert (folder / "weights").read_text() == "old"
    assert names(tmp_path) == {"model"}

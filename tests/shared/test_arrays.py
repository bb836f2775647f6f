"""NumPy's files, whole and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.arrays import load_npy, load_npz
from shared.errors import InputError


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    table = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "table.npy", table)
    np.savez(tmp_path / "tables.npz", first=table, second=table[0])
    np.testing.assert_array_equal(load_npy(tmp_path / "table.npy"), table)
    lazy = load_npy(tmp_path / "table.npy", lazily=True)
    assert isinstance(lazy, np.memmap)
    np.testing.assert_array_equal(lazy, table)
    found = load_npz(tmp_path / "tables.npz")
    assert list(found) == ["first", "second"]
    np.testing.assert_array_equal(found["second"], table[0])


def damaged(path: Path, kind: str) -> Path:
    """A file that is none of NumPy's, in one of the ways in which that happens."""
    if kind == "missing":
        return path
    if kind == "objects":
        np.save(path.with_suffix(".npy"), np.array([{}], dtype=object), allow_pickle=True)
        return path.with_suffix(".npy").rename(path)
    np.savez_compressed(path.with_suffix(".npz"), a=np.random.default_rng(0).normal(size=1000))
    content = path.with_suffix(".npz").read_bytes()
    spoilt = {"text": b"words\n", "empty": b"", "cut off": content[:3000], "changed": content[:500] + b"\0" * 20 + content[520:]}
    path.write_bytes(spoilt[kind])
    return path


@pytest.mark.parametrize("read", [load_npy, load_npz])
@pytest.mark.parametrize("kind", ["missing", "objects", "text", "empty", "cut off", "changed"])
def test_what_cannot_be_read_is_said_in_one_line_and_nothing_is_advised_that_executes_it(tmp_path: Path, kind: str, read) -> None:
    path = damaged(tmp_path / "file.dat", kind)
    with pytest.raises(InputError, match=r"file\.dat: cannot be read as a table \(.+\)\. Write it again\.$") as caught:
        read(path, what="a table", advice="Write it again.")
    assert "allow_pickle" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_array_and_several_are_not_taken_for_each_other(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    with pytest.raises(InputError, match=r"one\.npy: .*it is a single array"):
        load_npz(tmp_path / "one.npy")
    with pytest.raises(InputError, match=r"several\.npz: .*it is an \.npz of several"):
        load_npy(tmp_path / "several.npz")

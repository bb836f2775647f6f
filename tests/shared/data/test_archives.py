"""An archive from a stranger writes only what it should, only where it should."""

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from shared.data.archives import ArchiveError, extract
from shared.errors import UserError
from tests.shared.data.conftest import pair_files, zip_of


def _tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _refused(archive: Path, message: str) -> None:
    """Refused with ``message``, and nothing outside the target was written."""
    target = archive.parent / "target"
    target.mkdir()
    before = sorted(archive.parent.iterdir())
    with pytest.raises(ArchiveError, match=message) as caught:
        extract(archive, target)
    assert archive.name in str(caught.value)
    assert sorted(archive.parent.iterdir()) == before
    assert not any(path.is_symlink() for path in target.rglob("*"))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_zip_and_tar_archives_unpack_whole(tmp_path: Path, kind: str) -> None:
    files = pair_files(3)
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        archive.write_bytes(zip_of(files | {"__MACOSX/Polyps/._frame_0.png": b"x", "Polyps/.DS_Store": b"x"}))
    else:
        _tar(archive, [(tarfile.TarInfo(name), content) for name, content in files.items()], "w:" + kind.partition(".")[2])
    target = tmp_path / "target"
    target.mkdir()
    extract(archive, target)
    assert {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of({name: b"evil"}))
    _refused(archive, "written outside the folder")


def test_a_path_that_leaves_the_folder_is_refused_in_tar_too(tmp_path: Path) -> None:
    _refused(_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("../evil.txt"), b"evil")]), "written outside the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("images")
    info.type, info.linkname = kind, "../.."
    _refused(_tar(tmp_path / "a.tar", [(info, b"")], "w:"), "is a link or a device")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    info = zipfile.ZipInfo("images")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as bag:
        bag.writestr(info, "/etc")
    _refused(archive, "is a link or a device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.png", "A.png"])
def test_a_member_that_would_overwrite_another_is_refused(tmp_path: Path, second: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as bag:
        bag.writestr("a.png", b"one")
        bag.writestr(second, b"two")
    _refused(archive, "one would overwrite the other")


def test_a_zip_bomb_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bag, bag.open("zeros", "w", force_zip64=True) as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    _refused(archive, "out of all proportion")
    assert not any((tmp_path / "target").iterdir())


def test_a_tar_bomb_is_refused_before_the_disk_fills(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 300 << 20
        with open("/dev/zero", "rb") as zeros:
            tar.addfile(info, zeros)
    _refused(archive, "out of all proportion")
    assert not any((tmp_path / "target").iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Please log in</html>", "is a web page"),
        (b"Rar!\x1a\x07\x01\x00rest", "Unpack it .* and pass the folder with --archive"),
        (b"7z\xbc\xaf\x27\x1crest", "Unpack it .* and pass the folder with --archive"),
        (b"", "neither a zip nor a tar"),
        (b"hello " * 300, "neither a zip nor a tar"),
        (zip_of(pair_files())[:5000], "its end is missing"),
    ],
)
def test_what_is_no_whole_archive_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(content)
    _refused(archive, message)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_flipped_bytes_are_noticed(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        archive.write_bytes(zip_of({"noise": os.urandom(50_000)}))
    else:
        _tar(archive, [(tarfile.TarInfo("noise"), os.urandom(50_000))])
    content = bytearray(archive.read_bytes())
    content[25_000:25_016] = bytes(16)
    archive.write_bytes(content)
    _refused(archive, "is damaged")


def test_a_tar_cut_short_is_noticed(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo(name), content) for name, content in pair_files().items()])
    archive.write_bytes(archive.read_bytes()[:-3000])
    _refused(archive, "is damaged")


def test_a_password_is_named_as_the_reason(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    content = bytearray(zip_of({"a": b"a"}))
    content[6] |= 1  # "encrypted", in the member's header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    archive.write_bytes(content)
    _refused(archive, "protected by a password")


def test_too_little_space_is_said_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of(pair_files()))
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage)
    with pytest.raises(UserError, match=r"unpacking a.zip needs about .* MB, and 0 MB are free"):
        extract(archive, tmp_path)


class _Usage:
    free = 10

"""Fetching ends with a whole, checked data set in one layout, or with nothing and one clear message; a cut-off download goes on."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.data.checksums import verify
from shared.data.download import Retry
from shared.data.fetch import fetch
from shared.errors import UserError
from tests.shared.data.conftest import Page, Site, pair_files, zip_of

QUICK = Retry(attempts=3, backoff_s=0.001, timeout_s=5)
MakeManifest = Callable[..., str]


@pytest.fixture
def archive() -> bytes:
    return zip_of(pair_files())


@pytest.fixture
def served(site: Site, archive: bytes, make_manifest: MakeManifest) -> str:
    """A manifest whose archive is on the site at /polyps.zip."""
    site.pages["/polyps.zip"] = Page(archive)
    return make_manifest(archive={"url": f"{site.url}/polyps.zip"})


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _expected() -> dict[str, bytes]:
    return {name.removeprefix("Polyps/"): content for name, content in pair_files().items()}


def _check_whole(root: Path) -> None:
    tree = _tree(root / "polyps")
    del tree["provenance.json"], tree["sha256sums.txt"]
    assert tree == _expected()
    assert verify("polyps", root).ok
    assert not (root / ".downloads" / "polyps").exists()


def _check_nothing(root: Path) -> None:
    """No data set, and nothing that looks like one."""
    assert not (root / "polyps").exists()
    assert not list(root.glob(".polyps.*"))
    assert not (root / "polyps.lock.json").exists()


def test_a_data_set_is_fetched_checked_and_described(site: Site, served: str, archive: bytes, tmp_path: Path) -> None:
    folder = fetch(served, root=tmp_path / "data", retry=QUICK)
    assert folder == tmp_path / "data" / "polyps"
    _check_whole(tmp_path / "data")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["archives"] == [
        {
            "file": "polyps.zip",
            "origin": f"{site.url}/polyps.zip",
            "sha256": hashlib.sha256(archive).hexdigest(),
            "bytes": len(archive),
            "checked": "trusted on first use",
        }
    ]
    assert provenance["terms"] == "Free for all."
    assert provenance["manifest_sha256"] == hashlib.sha256(Path(served).read_bytes()).hexdigest()
    assert provenance["pairs"] == 4


def test_the_listing_is_one_that_sha256sum_reads(served: str, tmp_path: Path) -> None:
    folder = fetch(served, root=tmp_path, retry=QUICK)
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "sha256sums.txt"], cwd=folder, check=True)


def test_a_data_set_that_is_there_is_not_fetched_again(site: Site, served: str, tmp_path: Path) -> None:
    fetch(served, root=tmp_path, retry=QUICK)
    fetch(served, root=tmp_path, retry=QUICK)
    assert len(site.requests) == 1


def test_a_folder_that_fetch_did_not_make_is_left_alone(served: str, tmp_path: Path) -> None:
    (tmp_path / "polyps").mkdir()
    (tmp_path / "polyps" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is in the way"):
        fetch(served, root=tmp_path, retry=QUICK)
    assert _tree(tmp_path / "polyps") == {"mine.txt": b"mine"}


def test_a_dropped_line_is_taken_up_where_it_broke(site: Site, served: str, tmp_path: Path) -> None:
    site.pages["/polyps.zip"].faults = ["drop 10000", "drop 5000"]
    fetch(served, root=tmp_path, retry=QUICK)
    assert [asked for _, asked in site.requests] == [None, "bytes=10000-", "bytes=15000-"]
    _check_whole(tmp_path)


def test_passing_errors_are_waited_out(site: Site, served: str, tmp_path: Path) -> None:
    site.pages["/polyps.zip"].faults = ["503", "429"]
    fetch(served, root=tmp_path, retry=QUICK)
    _check_whole(tmp_path)


def test_a_server_that_stays_down_is_given_up_and_the_part_is_kept(site: Site, served: str, tmp_path: Path) -> None:
    site.pages["/polyps.zip"].faults = ["drop 10000", "503", "503", "503"]
    with pytest.raises(UserError, match=r"gave up after 3 attempts .* 503 .* 10,000 bytes are kept"):
        fetch(served, root=tmp_path, retry=QUICK)
    _check_nothing(tmp_path)
    fetch(served, root=tmp_path, retry=QUICK)
    assert site.requests[-1][1] == "bytes=10000-"
    _check_whole(tmp_path)


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(site: Site, served: str, archive: bytes, tmp_path: Path) -> None:
    site.pages["/polyps.zip"] = Page(bytes(len(archive)), etag='"old"', faults=["drop 10000", "503", "503", "503"])
    with pytest.raises(UserError, match="gave up"):
        fetch(served, root=tmp_path, retry=QUICK)
    site.pages["/polyps.zip"] = Page(archive, etag='"new"')
    fetch(served, root=tmp_path, retry=QUICK)
    _check_whole(tmp_path)


def test_a_server_that_names_no_version_is_asked_for_the_whole_file_again(site: Site, served: str, archive: bytes, tmp_path: Path) -> None:
    site.pages["/polyps.zip"] = Page(archive, etag=None, faults=["drop 10000"])
    fetch(served, root=tmp_path, retry=QUICK)
    assert [asked for _, asked in site.requests] == [None, None]
    _check_whole(tmp_path)


RUN = "import sys; from pathlib import Path; from shared.data.fetch import fetch; fetch(sys.argv[1], root=Path(sys.argv[2]))"


def test_a_killed_download_goes_on_where_it_was(site: Site, served: str, archive: bytes, tmp_path: Path) -> None:
    site.pages["/polyps.zip"].faults = ["slow"]
    process = subprocess.Popen([sys.executable, "-c", RUN, served, str(tmp_path)], stderr=subprocess.DEVNULL)
    part = tmp_path / ".downloads" / "polyps" / "polyps.zip.part"
    try:
        assert site.sent_slowly.wait(60)
        while process.poll() is None and (not part.exists() or part.stat().st_size < len(archive) // 2):
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    _check_nothing(tmp_path)
    fetch(served, root=tmp_path, retry=QUICK)
    assert site.requests[-1][1] == f"bytes={len(archive) // 2}-"
    _check_whole(tmp_path)


def test_killed_after_the_last_byte_nothing_is_downloaded_twice(site: Site, served: str, archive: bytes, tmp_path: Path) -> None:
    site.pages["/polyps.zip"].faults = ["drop 10000", "503", "503", "503"]
    with pytest.raises(UserError):
        fetch(served, root=tmp_path, retry=QUICK)
    (tmp_path / ".downloads" / "polyps" / "polyps.zip.part").write_bytes(archive)
    fetch(served, root=tmp_path, retry=QUICK)
    assert site.requests[-1][1] == f"bytes={len(archive)}-"  # answered with 416: there is no more
    _check_whole(tmp_path)


def test_what_a_killed_unpacking_left_is_cleared_away(served: str, tmp_path: Path) -> None:
    left = tmp_path / ".polyps.0123abcd"
    left.mkdir()
    (left / "half.png").write_bytes(b"half")
    fetch(served, root=tmp_path, retry=QUICK)
    assert not left.exists()


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_disk_that_fills_up_ends_in_one_message_and_the_download_goes_on_later(site: Site, served: str, tmp_path: Path) -> None:
    # A limit on file sizes stops the writing half-way, as a full disk does.
    done = subprocess.run([sys.executable, "-c", FULL_DISK + RUN, served, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "UserError" in done.stderr
    assert "polyps.zip.part: cannot be written (File too large). Free some space" in " ".join(done.stderr.split())
    _check_nothing(tmp_path)
    fetch(served, root=tmp_path, retry=QUICK)
    assert site.requests[-1][1] == "bytes=20000-"
    _check_whole(tmp_path)


def test_too_little_space_is_said_before_the_download(
    site: Site, make_manifest: MakeManifest, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/polyps.zip"] = Page(archive)
    manifest = make_manifest(size_mb=50, archive={"url": f"{site.url}/polyps.zip"})
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage)
    with pytest.raises(UserError, match=r"polyps needs about 100 MB, and 30 MB are free"):
        fetch(manifest, root=tmp_path, retry=QUICK)
    assert site.requests == []


class _Usage:
    free = 30_000_000


def test_a_wrong_checksum_is_refused_and_not_kept(site: Site, make_manifest: MakeManifest, archive: bytes, tmp_path: Path) -> None:
    site.pages["/polyps.zip"] = Page(archive)
    manifest = make_manifest(archive={"url": f"{site.url}/polyps.zip", "sha256": "0" * 64})
    with pytest.raises(UserError, match=r"SHA-256 [0-9a-f]{64}, the manifest expects 0000"):
        fetch(manifest, root=tmp_path, retry=QUICK)
    _check_nothing(tmp_path)
    assert not list((tmp_path / ".downloads" / "polyps").iterdir())


def test_the_right_checksum_is_said_to_be_the_manifests(site: Site, make_manifest: MakeManifest, archive: bytes, tmp_path: Path) -> None:
    site.pages["/polyps.zip"] = Page(archive)
    known = {"url": f"{site.url}/polyps.zip", "sha256": hashlib.sha256(archive).hexdigest(), "bytes": len(archive)}
    folder = fetch(make_manifest(archive=known), root=tmp_path, retry=QUICK)
    assert json.loads((folder / "provenance.json").read_text())["archives"][0]["checked"] == "as in the manifest"


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(
    site: Site, make_manifest: MakeManifest, archive: bytes, tmp_path: Path
) -> None:
    site.pages["/polyps.zip"] = Page(archive)
    with pytest.raises(UserError, match=f"offers {len(archive):,} bytes, the manifest expects 7"):
        fetch(make_manifest(archive={"url": f"{site.url}/polyps.zip", "bytes": 7}), root=tmp_path, retry=QUICK)
    _check_nothing(tmp_path)


def test_the_first_fetch_is_trusted_and_the_next_must_match_it(site: Site, served: str, tmp_path: Path) -> None:
    folder = fetch(served, root=tmp_path, retry=QUICK)
    shutil.rmtree(folder)
    again = fetch(served, root=tmp_path, retry=QUICK)
    assert json.loads((again / "provenance.json").read_text())["archives"][0]["checked"] == "same as at the first fetch"
    shutil.rmtree(folder)
    site.pages["/polyps.zip"] = Page(zip_of(pair_files() | {"Polyps/README": b"new"}), etag='"new"')
    with pytest.raises(UserError, match=r"but the first fetch had .* delete polyps.lock.json"):
        fetch(served, root=tmp_path, retry=QUICK)
    assert not folder.exists()
    (tmp_path / "polyps.lock.json").unlink()
    fetch(served, root=tmp_path, retry=QUICK)
    _check_whole(tmp_path)


def test_a_missing_file_says_so_at_once_and_what_to_do(site: Site, make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest(archive={"url": f"{site.url}/moved.zip"})
    with pytest.raises(UserError, match=r"moved.zip: not there .*404.*start at https://example.org/polyps.*--archive FILE"):
        fetch(manifest, root=tmp_path, retry=QUICK)
    assert len(site.requests) == 1
    _check_nothing(tmp_path)


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_server_that_wants_a_login_says_so(site: Site, served: str, tmp_path: Path, status: str) -> None:
    site.pages["/polyps.zip"].faults = [status]
    with pytest.raises(UserError, match=f"refuses access .{status}"):
        fetch(served, root=tmp_path, retry=QUICK)


def test_a_server_that_is_not_there_is_named(site: Site, make_manifest: MakeManifest, tmp_path: Path) -> None:
    site.server_close()
    with pytest.raises(UserError, match=r"refuses connections.*--mirror"):
        fetch(make_manifest(archive={"url": f"{site.url}/polyps.zip"}), root=tmp_path, retry=QUICK)


def test_a_mirror_serves_the_file_under_its_own_name(site: Site, make_manifest: MakeManifest, archive: bytes, tmp_path: Path) -> None:
    site.pages["/mirror/polyps.zip"] = Page(archive)
    folder = fetch(make_manifest(), root=tmp_path, mirror=f"{site.url}/mirror/", retry=QUICK)
    assert json.loads((folder / "provenance.json").read_text())["archives"][0]["origin"] == f"{site.url}/mirror/polyps.zip"
    _check_whole(tmp_path)


@pytest.mark.parametrize("mirror", ["ftp://example.org", "/mnt/mirror"])
def test_a_mirror_that_is_no_web_address_is_refused(make_manifest: MakeManifest, tmp_path: Path, mirror: str) -> None:
    with pytest.raises(UserError, match="--mirror must start with http"):
        fetch(make_manifest(), root=tmp_path, mirror=mirror)


BY_HAND = {"how": "manual", "url": "https://example.org/form", "note": "Fill in the form, then press Download."}


def test_a_set_behind_a_form_tells_a_person_what_to_do(make_manifest: MakeManifest, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch(make_manifest(archive=BY_HAND), root=tmp_path)
    for part in ("https://example.org/form", "Fill in the form", "Free for all.", "data fetch polyps --archive"):
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "folder", "inner folder"])
def test_what_a_person_downloaded_is_taken_and_left_as_it_is(
    make_manifest: MakeManifest, archive: bytes, tmp_path: Path, kind: str
) -> None:
    given = tmp_path / f"my download.{kind}"
    if kind == "zip":
        given.write_bytes(archive)
    elif kind == "tar.gz":
        with tarfile.open(given, "w:gz") as tar:
            for name, content in pair_files().items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        for name, content in pair_files().items():
            (given / name).parent.mkdir(parents=True, exist_ok=True)
            (given / name).write_bytes(content)
        given = given / "Polyps" if kind == "inner folder" else given
    before = _tree(given) if given.is_dir() else given.read_bytes()
    fetch(make_manifest(archive=BY_HAND), root=tmp_path / "data", archive=given)
    _check_whole(tmp_path / "data")
    assert (_tree(given) if given.is_dir() else given.read_bytes()) == before


@pytest.mark.parametrize("content", [b"<html>log in</html>", b"", zip_of({"../evil.txt": b"x"}), zip_of(pair_files())[:9000]])
def test_a_useless_file_leaves_nothing_and_is_not_deleted(make_manifest: MakeManifest, tmp_path: Path, content: bytes) -> None:
    given = tmp_path / "given.zip"
    given.write_bytes(content)
    with pytest.raises(UserError, match=r"given.zip: "):
        fetch(make_manifest(), root=tmp_path / "data", archive=given)
    _check_nothing(tmp_path / "data")
    assert given.exists()
    assert not (tmp_path / "evil.txt").exists()


def test_a_damaged_download_is_not_taken_up_again(site: Site, served: str, archive: bytes, tmp_path: Path) -> None:
    site.pages["/polyps.zip"] = Page(archive[:9000])
    with pytest.raises(UserError, match="its end is missing"):
        fetch(served, root=tmp_path, retry=QUICK)
    _check_nothing(tmp_path)
    site.pages["/polyps.zip"] = Page(archive, etag='"mended"')
    fetch(served, root=tmp_path, retry=QUICK)
    _check_whole(tmp_path)


def test_an_archive_that_is_not_there_is_named(make_manifest: MakeManifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.zip: there is no such file"):
        fetch(make_manifest(), root=tmp_path, archive=tmp_path / "gone.zip")


def test_another_release_is_refused_with_both_counts(make_manifest: MakeManifest, tmp_path: Path) -> None:
    given = tmp_path / "given.zip"
    given.write_bytes(zip_of(pair_files(3)))
    with pytest.raises(UserError, match="polyps: 3 image-mask pairs, the manifest expects 4"):
        fetch(make_manifest(), root=tmp_path / "data", archive=given)
    _check_nothing(tmp_path / "data")


def test_the_wrong_archive_shows_what_it_holds_and_what_was_wanted(make_manifest: MakeManifest, tmp_path: Path) -> None:
    given = tmp_path / "given.zip"
    given.write_bytes(zip_of({"cats/1.jpg": b"cat"}))
    with pytest.raises(UserError, match=r"no pairs among 1 files .*cats/1.jpg.*Expected \*\*/Polyps/images/\{stem\}"):
        fetch(make_manifest(), root=tmp_path / "data", archive=given)


def test_frames_without_a_mask_are_left_out_and_listed(make_manifest: MakeManifest, tmp_path: Path) -> None:
    given = tmp_path / "given.zip"
    given.write_bytes(zip_of(pair_files() | {"Polyps/images/odd.png": b"x", "Polyps/masks/Thumbs.db": b"x"}))
    folder = fetch(make_manifest(), root=tmp_path / "data", archive=given)
    _check_whole(tmp_path / "data")
    assert [Path(name).name for name in json.loads((folder / "provenance.json").read_text())["unpaired"]] == ["odd.png"]


def test_two_files_with_one_key_are_refused(make_manifest: MakeManifest, tmp_path: Path) -> None:
    given = tmp_path / "given.zip"
    given.write_bytes(zip_of(pair_files() | {"Polyps/images/frame_0.jpg": b"x"}))
    with pytest.raises(UserError, match="would both be called 'frame_0'"):
        fetch(make_manifest(), root=tmp_path / "data", archive=given)


def test_each_layout_of_the_shipped_manifests_is_brought_into_images_and_masks(tmp_path: Path) -> None:
    """The owners' ETIS archive (mask of 12.tif is p12.tif) and PraNet's TestDataset (five folders), made up at full count."""
    etis = {f"ETIS-LaribPolypDB/{i}.tif": b"i%d" % i for i in range(1, 197)} | {f"Ground Truth/p{i}.tif": b"m%d" % i for i in range(1, 197)}
    given = tmp_path / "etis.zip"
    given.write_bytes(zip_of(etis))
    folder = fetch("etis-laribpolypdb", root=tmp_path / "data", archive=given)
    assert (folder / "images" / "12.tif").read_bytes() == b"i12"
    assert (folder / "masks" / "12.tif").read_bytes() == b"m12"

    sizes = {"CVC-300": 60, "CVC-ClinicDB": 62, "CVC-ColonDB": 380, "ETIS-LaribPolypDB": 196, "Kvasir": 100}
    kinds = ("images", "masks")
    test = {f"TestDataset/{name}/{kind}/{i}.png": kind.encode() for name, count in sizes.items() for kind in kinds for i in range(count)}
    given = tmp_path / "TestDataset.zip"
    given.write_bytes(zip_of(test))
    folder = fetch("pranet-test", root=tmp_path / "data", archive=given)
    assert {name: len(list((folder / name / "masks").iterdir())) for name in sizes} == sizes
    for name, count in {"cvc-300": 60, "cvc-colondb": 380}.items():
        assert len(list((fetch(name, root=tmp_path / "data", archive=given) / "images").iterdir())) == count


def test_two_fetches_at_once_do_not_write_over_each_other(site: Site, served: str, tmp_path: Path) -> None:
    site.pages["/polyps.zip"].faults = ["slow"]
    process = subprocess.Popen([sys.executable, "-c", RUN, served, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        assert site.sent_slowly.wait(60)
        with pytest.raises(UserError, match="another process is fetching it"):
            fetch(served, root=tmp_path, retry=QUICK)
    finally:
        process.kill()
        process.wait()

"""Sets of volumes: the Decathlon's two folders and BraTS's folder for each examination, as publishers pack them."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.data.fetch import fetch
from shared.data.manifest import list_manifests, load
from shared.errors import UserError
from shared.imaging.volumes import find_cases
from tests.shared.data.conftest import Page, Site, zip_of

MSD = [{"images": "**/imagesTr/{stem}.nii.gz", "masks": "**/labelsTr/{stem}.nii.gz"}]
BRATS = [{"images": "**/{stem}_{sequence}.nii.gz", "masks": "**/{stem}_seg.nii.gz", "sequences": ["t1", "t1ce", "t2", "flair"]}]


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.nii*"))


def test_the_decathlons_archive_is_fetched_without_what_macos_left_in_it(
    site: Site, make_manifest: Callable[..., str], tmp_path: Path
) -> None:
    files = {f"Task04/{side}/{mark}h_00{n}.nii.gz": b"x" * n for side in ("imagesTr", "labelsTr") for n in (1, 2) for mark in ("", "._")}
    files |= {"Task04/dataset.json": b"{}", "Task04/imagesTs/h_003.nii.gz": b"test"}
    site.pages["/Task04.tar"] = Page(tar_of(files))
    archive = {"file": "Task04.tar", "url": f"{site.url}/Task04.tar"}
    folder = fetch(make_manifest(name="h", count=2, layouts=MSD, archive=archive), root=tmp_path / "data")
    assert below(folder) == ["images/h_001.nii.gz", "images/h_002.nii.gz", "masks/h_001.nii.gz", "masks/h_002.nii.gz"]


def test_an_unpacked_folder_with_macos_files_is_taken_too(make_manifest: Callable[..., str], tmp_path: Path) -> None:
    for side in ("imagesTr", "labelsTr"):
        for name in ("h_001.nii.gz", "._h_001.nii.gz"):
            (tmp_path / "Task04" / side).mkdir(parents=True, exist_ok=True)
            (tmp_path / "Task04" / side / name).write_bytes(b"x")
    folder = fetch(make_manifest(name="h", count=1, layouts=MSD), root=tmp_path / "data", archive=tmp_path / "Task04")
    assert below(folder) == ["images/h_001.nii.gz", "masks/h_001.nii.gz"]


def test_an_examination_keeps_its_files_in_a_folder_that_the_apps_read(
    site: Site, make_manifest: Callable[..., str], tmp_path: Path
) -> None:
    words = ("t1", "t1ce", "t2", "flair", "seg")
    files = {f"Training/HGG/{case}/{case}_{word}.nii.gz": word.encode() for case in ("B_1", "B_2") for word in words}
    files["Training/LGG/B_3/B_3_t1.nii.gz"] = b"alone"
    files["Training/LGG/B_3/B_3_seg.nii.gz"] = b"incomplete"
    site.pages["/b.zip"] = Page(zip_of(files))
    archive = {"file": "b.zip", "url": f"{site.url}/b.zip"}
    folder = fetch(make_manifest(name="b", count=2, layouts=BRATS, archive=archive), root=tmp_path / "data")
    assert below(folder) == sorted(f"{case}/{case}_{word}.nii.gz" for case in ("B_1", "B_2") for word in words)
    assert (folder / "B_2" / "B_2_t1ce.nii.gz").read_bytes() == b"t1ce"
    assert [(case.path.name, case.missing) for case in find_cases([folder])] == [("B_1", ()), ("B_2", ())]


def test_too_few_examinations_are_another_release(make_manifest: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for word in ("t1", "t1ce", "t2", "flair", "seg"):
        (tmp_path / "b" / f"B_1_{word}.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="1 image-mask pairs, the manifest expects 2"):
        fetch(make_manifest(name="b", count=2, layouts=BRATS), root=tmp_path / "data", archive=tmp_path / "b")


@pytest.mark.parametrize(
    "layout",
    [
        {"images": "{stem}_{sequence}.nii", "masks": "{stem}_seg.nii"},
        {"images": "{stem}.nii", "masks": "{stem}_seg.nii", "sequences": ["t1"]},
        {"images": "{stem}_{sequence}.nii", "masks": "{stem}_{sequence}.nii", "sequences": ["t1"]},
    ],
)
def test_sequences_and_their_place_in_the_pattern_go_together(make_manifest: Callable[..., str], layout: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"layouts\[0\].*\{sequence\}"):
        load(make_manifest(layouts=[layout]))


def test_the_sets_of_volumes_are_there() -> None:
    counts = {manifest.name: manifest.count for manifest in list_manifests("agunet")}
    assert counts == {
        "brats-2018": 285,
        "brats-2020": 369,
        "brats-2021": 1251,
        "brats-2023-glioma": 1251,
        "brats-2023-meningioma": 1000,
        "msd-brain-tumour": 484,
        "msd-heart": 20,
        "msd-hippocampus": 260,
    }
    assert {manifest.name for manifest in list_manifests("reversible_unet")} == set(counts) - {"brats-2023-meningioma"}

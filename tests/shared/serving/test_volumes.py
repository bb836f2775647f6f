"""The service around a model of volumes: NIfTI and zipped DICOM go in, or the files of one examination; masks come out as files."""

import base64
import gzip
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared.imaging.volumes import read_labels
from shared.serving.names import disposition, result_name, stem_of
from shared.serving.uploads import pixels
from tests.shared.imaging.volumes.made import dicom_files, enhanced_dicom, itk_bytes, nifti_bytes, orientations, zipped
from tests.shared.inference.volumes import BrightCasePredictor, BrightVolumePrediction, BrightVolumePredictor
from tests.shared.serving.conftest import CONFIG, Running, running

AFFINE = dict(orientations())["LPS"]
VALUES = np.arange(120, 240, dtype=np.int16).reshape(4, 5, 6) - 60
NIFTI = nifti_bytes(VALUES, AFFINE)
SERIES = {f"IM{number:04d}": content for number, content in enumerate(dicom_files(VALUES, AFFINE))}
VOLUMES = {
    "a.nii": NIFTI,
    "a.nii.gz": gzip.compress(NIFTI),
    "a.mha": itk_bytes(VALUES, AFFINE, ".mha"),
    "a.nrrd": itk_bytes(VALUES, AFFINE, ".nrrd"),
    "a.zip": zipped(SERIES),
    "a.dcm": enhanced_dicom(VALUES - np.arange(6, dtype=np.int16), AFFINE),
}
CASE = {f"p7_{modality}.nii.gz": gzip.compress(NIFTI) for modality in ("t1", "t1ce", "t2", "flair")}


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(replace(CONFIG, max_pixels=10), BrightVolumePredictor(), media_types=BrightVolumePrediction.media_types) as server:
        yield server


@pytest.fixture(scope="module")
def case_service() -> Iterator[Running]:
    with running(CONFIG, BrightCasePredictor(), media_types=BrightVolumePrediction.media_types) as server:
        yield server


def mask(tmp_path: Path, name: str, content: bytes) -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    found = read_labels(tmp_path / name)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
    return found.values


@pytest.mark.parametrize("name", VOLUMES)
def test_every_kind_of_volume_is_answered_whatever_the_limit_of_pictures_is(service: Running, tmp_path: Path, name: str) -> None:
    answer = service.post((name, VOLUMES[name]), params={"include": ["result", "preview"]})
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert result["summary"] == {"found": True, "volume_ml": round((VALUES > 100).sum() * 0.5 * 1.25 * 3 / 1000, 4)}
    file = result["files"]["result"]
    assert (file["name"], file["media_type"]) == ("a_result.nii.gz", "application/gzip")
    np.testing.assert_array_equal(mask(tmp_path, file["name"], base64.b64decode(file["base64"])), VALUES > 100)
    assert result["files"]["preview"]["name"] == "a_overlay.png"


def test_no_volume_is_taken_for_a_picture() -> None:
    assert {name: pixels(content) for name, content in VOLUMES.items()} == dict.fromkeys(VOLUMES)


@pytest.mark.parametrize(("accept", "name"), [("application/gzip", "a_result.nii.gz"), ("application/x-nrrd", "a_result.nrrd")])
def test_the_mask_alone_comes_in_the_wanted_format_with_its_name(service: Running, tmp_path: Path, accept: str, name: str) -> None:
    answer = service.post(("a.nii.gz", VOLUMES["a.nii.gz"]), headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == accept
    assert f'filename="{name}"' in answer.headers["Content-Disposition"]
    np.testing.assert_array_equal(mask(tmp_path, name, answer.content), VALUES > 100)


def test_the_files_of_an_examination_sent_together_are_one_input(case_service: Running) -> None:
    packed = case_service.post(("p7.zip", zipped(CASE)))
    together = case_service.post(*CASE.items(), params={"together": True})
    assert packed.status_code == together.status_code == 200, together.text
    assert together.json() == packed.json()
    (result,) = together.json()["results"]
    assert result["file"] == "p7.zip"
    alone = case_service.post(*CASE.items(), params={"together": True}, headers={"Accept": "application/gzip"})
    assert 'filename="p7_result.nii.gz"' in alone.headers["Content-Disposition"]


def test_the_slices_of_a_series_sent_together_are_one_input_even_under_one_name(service: Running) -> None:
    alone = service.post(("a.nii", NIFTI)).json()["results"][0]["summary"]
    for names in (list(SERIES), ["IM"] * len(SERIES)):
        answer = service.post(*zip(names, SERIES.values(), strict=True), params={"together": True})
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0]["summary"] == alone


def test_a_missing_sequence_is_named(case_service: Running) -> None:
    content = {name: CASE[name] for name in ("p7_t1.nii.gz", "p7_t2.nii.gz")}
    answer = case_service.post(*content.items(), params={"together": True})
    assert answer.status_code == 422
    (failure,) = answer.json()["failures"]
    assert failure["detail"].startswith("p7.zip: t1ce, flair are missing")


def test_one_file_sent_together_is_that_file(service: Running) -> None:
    assert service.post(("a.nii", NIFTI), params={"together": True}).json() == service.post(("a.nii", NIFTI)).json()


def test_damaged_volumes_are_refused_beside_good_ones(service: Running) -> None:
    answer = service.post(("cut.nii.gz", VOLUMES["a.nii.gz"][:200]), ("a.nii.gz", VOLUMES["a.nii.gz"]), ("empty.zip", zipped({})))
    assert [result["file"] for result in answer.json()["results"]] == ["a.nii.gz"]
    assert [(failure["file"], failure["status"]) for failure in answer.json()["failures"]] == [("cut.nii.gz", 422), ("empty.zip", 422)]


@pytest.mark.parametrize(
    ("upload", "stem"),
    [("a.nii.gz", "a"), ("A.NII.GZ", "A"), ("1.2.840", "1.2"), ("C:\\scans\\b.nii", "b"), ("../c.zip", "c"), (".nii", ".nii"), ("d", "d")],
)
def test_results_are_named_after_the_upload(upload: str, stem: str) -> None:
    assert stem_of(upload, BrightVolumePredictor.suffixes) == stem


def test_packed_nifti_is_called_so_whatever_its_media_type() -> None:
    assert result_name("a", "", "result", "application/x-nifti", gzip.compress(b"")) == "a_result.nii.gz"
    assert result_name("a", "", "result", "application/x-nifti", NIFTI) == "a_result.nii"
    assert result_name("a", "frame_000002", "result", "application/dicom", b"") == "a_frame_000002_result.dcm"


def test_a_name_of_any_letters_fits_into_a_header() -> None:
    header = disposition('Müller "x"\n_result.nii.gz')
    assert header.isascii()
    assert header.isprintable()
    assert 'filename="M_ller _x__' in header
    assert "filename*=UTF-8''M%C3%BCller%20%22x%22%0A_result.nii.gz" in header


@pytest.mark.browser
def test_a_person_at_the_page_sends_an_examination_and_saves_the_mask(case_service: Running, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    for name, content in CASE.items():
        (tmp_path / name).write_bytes(content)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(case_service.url)
        playwright.expect(page.locator("#formats")).to_have_text("DCM, DICOM, IMA, MHA, MHD, NII, NII.GZ, NRRD, ZIP; up to 64 MB each.")
        page.get_by_label("are one examination").check()
        page.set_input_files("#choose", [tmp_path / name for name in CASE])
        playwright.expect(page.locator(".result .answer")).to_be_visible()
        playwright.expect(page.get_by_role("heading", name="p7_t1.nii.gz and 3 more")).to_be_visible()
        playwright.expect(page.locator(".overlay")).to_have_js_property("naturalWidth", 40)
        saved = []
        for label in ("Result (NII.GZ)", "Overlay (PNG)", "Measurements (JSON)"):
            with page.expect_download() as download:
                page.get_by_role("link", name=label).click()
            saved.append(download.value.suggested_filename)
        assert saved == ["p7_result.nii.gz", "p7_overlay.png", "p7.json"]
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()

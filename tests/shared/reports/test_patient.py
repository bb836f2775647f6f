"""The reports that a clinician reads: every figure is the one that was measured, and nothing that can happen to a patient breaks them."""

import base64
import io
import os
import re
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.imaging.volumes import Volume
from shared.metrics.growth import growth
from shared.metrics.lesions import find_lesions
from shared.reports.patient import Scan, write_growth_report, write_patient_report
from tests.shared.reports.test_html import Page
from tests.shared.reports.test_slices import head

NAMES = {1: "necrotic core", 2: "oedema", 4: "enhancing"}
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


def glioma():
    volume = head()
    labels = np.zeros(volume.shape, np.uint8)
    labels[10:22, 16:30, 10:20] = 2
    labels[13:19, 18:26, 12:18] = 4
    labels[15:17, 20:24, 14:16] = 1
    labels[30, 30, 20] = 4
    return volume, labels


def scan(volume, labels, **settings):
    return Scan(volume=volume, labels=labels, lesions=find_lesions(labels, volume.affine, **settings))


def test_a_patients_report_says_what_was_measured(tmp_path):
    volume, labels = glioma()
    path = write_patient_report(
        tmp_path / "patient.html",
        volume=Volume(values=volume.values, affine=volume.affine, name="/home/someone/scans/case.nii.gz"),
        labels=labels,
        names=NAMES,
        lesions=find_lesions(labels, volume.affine),
        probability=np.where(labels > 0, 0.9, 0.0),
        uncertainty=np.where(labels == 2, 0.8, 0.1),
        uncertainty_note="Of four flipped passes.",
        regions={"tumour core": (1, 4)},
        facts={"Passes": 4},
    )
    text = Page(path.read_text()).text
    assert "Lesions 2" in text
    assert "Total volume 1.68 ml" in text  # 12 * 14 * 10 + 1 voxels of 1 microlitre
    assert "Passes 4" in text
    assert "tumour core 0.29 17 %" in text  # 6 * 8 * 6 + 1
    assert "0.90" in text
    assert "Of four flipped passes. Within what was outlined it is 0.68 on average, and above 0.5 in 83 % of the voxels." in text
    assert "case.nii.gz" in text
    assert "someone" not in text
    assert "Not a medical device" in text


def test_a_patient_without_a_lesion_gets_a_report_that_says_so(tmp_path):
    volume = head()
    empty = np.zeros(volume.shape, np.uint8)
    lesions = find_lesions(empty, volume.affine)
    flat = np.full(volume.shape, 0.2)
    path = write_patient_report(tmp_path / "x.html", volume=volume, labels=empty, names=NAMES, lesions=lesions, uncertainty=flat)
    text = Page(path.read_text()).text
    assert "Lesions 0 Total volume none Largest diameter –" in text
    assert "No lesion was found" in text
    assert "Nothing was outlined; the highest value anywhere is 0.20." in text


def test_many_specks_do_not_flood_the_page(tmp_path):
    volume = head()
    labels = np.zeros(volume.shape, np.uint8)
    labels[4:36:3, 4:44:3, 16] = 1
    lesions = find_lesions(labels, volume.affine)
    path = write_patient_report(tmp_path / "x.html", volume=volume, labels=labels, names=NAMES, lesions=lesions, subject="speck")
    text = Page(path.read_text()).text
    assert f"Specks {len(lesions.lesions)}" in text
    assert f"The {len(lesions.lesions) - 25} smaller ones are left out here." in text


def test_growth_is_told_lesion_by_lesion(tmp_path):
    volume = head()
    first, second = np.zeros((2, *volume.shape), np.uint8)
    first[10:20, 20:30, 10:20] = 1
    second[10:20, 20:30, 8:22] = 1
    first[30, 20, 12] = 1
    second[28:30, 30:32, 20:22] = 2
    dates = (date(2024, 1, 1), date(2024, 4, 1))
    before, after = scan(volume, first), scan(volume, second)
    change = growth(before.lesions, after.lesions, dates=dates)
    path = write_growth_report(tmp_path / "g.html", before=before, after=after, growth=change, names=NAMES, dates=dates)
    text = Page(path.read_text()).text
    assert "Volume before 1.00 ml Volume after 1.41 ml Change +0.41 ml (+41 %)" in text
    assert "Between the scans 91 days" in text
    assert "1 → 1 same 1.00 1.40 +0.40 +40 % +1.61 187 days" in text  # 91 * log 2 / log 1.4
    assert "– → 2 new" in text
    assert "2 → – gone" in text


def nothing():
    return scan(head(), np.zeros((40, 48, 32), np.uint8))


def something(z=12):
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[10:20, 20:30, z : z + 8] = 1
    return scan(volume, labels)


def cropped(part):
    whole = something(2)
    affine = whole.volume.affine.copy()
    affine[2, 3] += part.start
    return scan(Volume(values=whole.volume.values[..., part], affine=affine), whole.labels[..., part])


def coarse():
    volume = head(shape=(20, 24, 8), spacing=(2.0, 2.0, 4.0))
    labels = np.zeros(volume.shape, np.uint8)
    labels[5:10, 10:15, 3:5] = 1
    turned = volume.values[::-1].copy(), labels[::-1].copy()
    affine = volume.affine @ np.diag([-1, 1, 1, 1])
    affine[:3, 3] = volume.affine[:3] @ (19, 0, 0, 1)
    return scan(Volume(values=turned[0], affine=affine), turned[1])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (nothing, nothing),
        (nothing, something),
        (something, nothing),
        (lambda: cropped(slice(0, 20)), lambda: cropped(slice(12, 32))),
        (coarse, something),
        (something, coarse),
    ],
    ids=["both empty", "first empty", "second empty", "out of view", "coarse first", "coarse second"],
)
def test_whatever_growth_accepts_gets_its_report(tmp_path, before, after):
    first, second = before(), after()
    change = growth(first.lesions, second.lesions)
    path = write_growth_report(tmp_path / "g.html", before=first, after=second, growth=change, names=NAMES)
    text = Page(path.read_text()).text
    assert "Between the scans –" in text
    assert "nan" not in text.lower().split()
    if any(each.fate == "out of view" for each in change.lesions):
        assert "cannot be said" in text


def test_channels_are_chosen_and_maps_must_fit(tmp_path):
    volume, labels = glioma()
    both = Volume(values=np.stack([volume.values, -volume.values]), affine=volume.affine)
    lesions = find_lesions(labels, volume.affine)
    write_patient_report(tmp_path / "x.html", volume=both, labels=labels, names=NAMES, lesions=lesions, channel=1)
    with pytest.raises(ValueError, match=r"a map is \[3\]"):
        write_patient_report(tmp_path / "x.html", volume=both, labels=labels, names=NAMES, lesions=lesions, uncertainty=np.zeros(3))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser_the_view_turns_by_hand_and_parts_can_be_hidden(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    volume, labels = glioma()
    path = write_patient_report(tmp_path / "x.html", volume=volume, labels=labels, names=NAMES, lesions=find_lesions(labels, volume.affine))
    flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 900, "height": 900}, reduced_motion="reduce")
        page.set_default_timeout(120_000)
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        canvas = page.locator(".scene canvas")
        canvas.scroll_into_view_if_needed()

        def seen():
            page.wait_for_timeout(300)
            return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)

        first = seen()
        assert np.array_equal(first, seen())  # less motion was asked for
        canvas.focus()
        page.keyboard.press("ArrowLeft")
        assert not np.array_equal(first, seen())
        assert (np.abs(seen() - (0, 229, 255)).sum(axis=2) < 300).any()
        for box in page.locator(".scene input").all():
            box.uncheck()
        page.wait_for_timeout(300)
        changed = np.abs(seen() - (11, 13, 16)).sum(axis=2) > 12
        assert changed.mean() < 0.03  # letters and the button
        browser.close()
    assert problems == []


def test_the_still_picture_is_there_for_paper_and_for_browsers_without_webgl(tmp_path):
    volume, labels = glioma()
    path = write_patient_report(tmp_path / "x.html", volume=volume, labels=labels, names=NAMES, lesions=find_lesions(labels, volume.affine))
    html = Path(path).read_text()
    stage = re.search(r'<div class="stage"><img src="data:image/\w+;base64,([^"]+)"', html)[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(stage))).convert("RGB"))
    assert picture.shape == (640, 640, 3)
    assert picture.std() > 5

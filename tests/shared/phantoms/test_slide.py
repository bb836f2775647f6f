"""Slide phantoms: always the same, with a tumour where they say there is one, and readable as slides."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from shared.errors import UserError
from shared.imaging.slides import open_slide
from shared.phantoms.slide import slide_phantom, write_slides

SMALL = {"width": 640, "height": 640, "mpp": 1.0}


def test_a_seed_gives_the_same_slide_and_another_one_another() -> None:
    first, again, other = (slide_phantom(seed, **SMALL) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image != other.image).mean() > 0.2


@pytest.mark.parametrize("seed", range(4))
def test_tumour_is_rare_lies_in_the_tissue_and_is_darker_than_the_rest(seed: int) -> None:
    phantom = slide_phantom(seed, **SMALL)
    assert 0.002 < phantom.tumour_fraction < 0.35
    assert phantom.tissue_mask[phantom.tumour_mask].all()
    grey = phantom.image.mean(axis=2)
    assert grey[phantom.tumour_mask].mean() < grey[phantom.tissue_mask & ~phantom.tumour_mask].mean() - 15
    assert grey[~phantom.tissue_mask].mean() > 200  # glass, even where a pen ran over it


def test_a_normal_slide_has_no_tumour() -> None:
    phantom = slide_phantom(1, tumour=False, **SMALL)
    assert phantom.tumour == ()
    assert phantom.tumour_fraction == 0


def test_the_same_scene_at_another_resolution() -> None:
    fine, coarse = slide_phantom(3, width=1280, height=1280, mpp=0.5), slide_phantom(3, **SMALL)
    assert fine.tissue_mask[::2, ::2].shape == coarse.tissue_mask.shape
    assert (fine.tissue_mask[::2, ::2] != coarse.tissue_mask).mean() < 0.02  # outlines are drawn to whole pixels
    np.testing.assert_allclose(fine.tumour[0] / 2, coarse.tumour[0])


def test_a_data_set_has_pyramids_labels_and_outlines(tmp_path) -> None:
    write_slides(tmp_path, count=4, seed=2, slides_per_patient=2, **SMALL)
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert [row["patient"] for row in rows] == ["patient_000", "patient_000", "patient_001", "patient_001"]
    assert sorted({row["label"] for row in rows}) == ["normal", "tumour"]
    assert len({(row["patient"], row["label"]) for row in rows}) == 2
    for row in rows:
        with open_slide(tmp_path / "slides" / f"{row['slide']}.tiff") as slide:
            assert slide.size == (640, 640)
            assert slide.mpp == pytest.approx(1.0)
            assert len(slide.levels) == 3
        outlines = json.loads((tmp_path / "truth" / f"{row['slide']}.geojson").read_text())["features"]
        assert bool(outlines) == (row["label"] == "tumour") == (float(row["tumour_fraction"]) > 0)


def test_a_slide_too_small_to_hold_anything_is_refused() -> None:
    with pytest.raises(UserError, match="at least 200 micrometres"):
        slide_phantom(0, width=100, height=640, mpp=1.0)

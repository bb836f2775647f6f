"""Scores come back to where their tiles lie: in pictures, in the pyramid of values, and in a page that needs no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from apps.acmil.bags import Bag, Tiles
from apps.acmil.heatmap import FULL_SHARES, overlay, raster, shade, write_heatmaps
from shared.errors import InputError
from shared.phantoms.slide import slide_phantom, write_pyramid

SIDE = 64


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.tiff"
    write_pyramid(path, slide_phantom(4, width=640, height=512, mpp=1.0).image, mpp=1.0)
    return path


def a_bag(**changes) -> Bag:
    x, y = np.meshgrid(np.arange(10) * SIDE, np.arange(8) * SIDE)
    corners = np.stack([x.ravel(), y.ravel()], axis=1)
    tiles = Tiles(coordinates=corners, slide="slide", tile_px_level0=SIDE, mpp=1.0, size=(640, 512))
    known = {"features": np.zeros((80, 0), np.float32), "coordinates": corners, "slide": "a <b>", "tile_px_level0": SIDE, "mpp": 1.0}
    return Bag(**(known | {"tiles": tiles} | changes))


def one_hot(index: int) -> np.ndarray:
    scores = np.full(80, 0.5)
    scores[index] = 40.0
    return scores


def test_a_score_colours_its_tile_and_no_other() -> None:
    values, covered = raster(a_bag(), one_hot(23), downsample=8, shape=(64, 80))
    assert covered.all()
    expected = np.full((64, 80), 0.5)
    expected[16:24, 24:32] = 40  # the tile of column 3, row 2
    np.testing.assert_allclose(values, expected)


def test_overlapping_tiles_are_averaged() -> None:
    bag = Bag(features=np.zeros((2, 0), np.float32), coordinates=np.array([[0, 0], [32, 0]]), slide="s", tile_px_level0=64)
    values, covered = raster(bag, np.array([1.0, 3.0]), downsample=16, shape=(8, 8))
    np.testing.assert_allclose(values[0], [1, 1, 2, 2, 3, 3, 0, 0])
    assert covered[:4, :6].all()
    assert covered.sum() == 24


def test_colour_means_the_same_in_every_slide() -> None:
    """An equal share and less is bare, so that a slide in which nothing stands out stays bare."""
    np.testing.assert_allclose(shade(np.array([0.0, 0.5, 1.0, FULL_SHARES**0.5, FULL_SHARES, 100.0])), [0, 0, 0, 0.5, 1, 1])
    grey = np.full((64, 80, 3), 200, np.uint8)
    assert np.ptp(overlay(grey, a_bag(), np.ones(80))) == 0
    shown = overlay(grey, a_bag(), one_hot(23))
    assert np.ptp(shown[16:24, 24:32, 0]) == 0
    assert np.ptp(shown[20, 28]) > 50, "coloured"
    assert np.ptp(np.delete(shown.reshape(-1, 3), np.flatnonzero((shown != shown[0, 0]).any(-1)), axis=0)) == 0


def test_files_lie_on_the_slide(tmp_path, slide) -> None:
    names = write_heatmaps(tmp_path, "s", slide, a_bag(), {"attention": one_hot(23), "branch_1": one_hot(0)})
    assert names == {
        "heatmap_attention": "s_attention.png",
        "heatmap_branch_1": "s_branch_1.png",
        "heatmaps": "s_heatmaps.ome.tiff",
        "page": "s_slide.html",
    }
    assert Image.open(tmp_path / "s_attention.png").size == (640, 512)
    with tifffile.TiffFile(tmp_path / "s_heatmaps.ome.tiff") as file:
        assert file.is_ome
        assert file.series[0].axes == "CYX"
        assert 'PhysicalSizeX="8.0"' in file.ome_metadata
        assert 'Name="branch_1"' in file.ome_metadata
        values = file.asarray()
    assert values.shape == (2, 64, 80)
    assert np.unravel_index(values[0].argmax(), (64, 80)) == (16, 24)
    assert values[1, 0, 0] == 40


def test_large_maps_have_levels(tmp_path) -> None:
    corners = np.array([[0, 0], [9_000, 6_000]])
    bag = a_bag(coordinates=corners, features=np.zeros((2, 0), np.float32), tiles=None)
    write_heatmaps(tmp_path, "s", np.full((60, 80, 3), 255, np.uint8), bag, {"attention": np.array([2.0, 3.0])})
    with tifffile.TiffFile(tmp_path / "s_heatmaps.ome.tiff") as file:
        sizes = [level.shape for level in file.series[0].levels]
    assert len(sizes) == 4
    assert sizes[1] == (-(-sizes[0][0] // 2), -(-sizes[0][1] // 2))


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path, slide) -> None:
    write_heatmaps(tmp_path, "s", slide, a_bag(), {"attention": one_hot(23), "branch_1": one_hot(0)})
    page = (tmp_path / "s_slide.html").read_text()
    assert "a &lt;b&gt;" in page
    assert "a <b>" not in page
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL)[1])
    assert content["size"] == [640, 512]
    assert [layer["name"] for layer in content["layers"]] == ["attention", "branch 1"]
    assert content["top"][0][0] == [3 * SIDE, 2 * SIDE, 40.0]


@pytest.mark.browser
def test_a_browser_shows_the_slide_and_its_heat_map(tmp_path, slide) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    write_heatmaps(tmp_path, "s", slide, a_bag(), {"attention": one_hot(23)})
    picture = tmp_path / "page.png"
    how = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--window-size=1000,600", f"--screenshot={picture}"]
    subprocess.run(
        [browser, *how, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "s_slide.html").as_uri()], check=True, timeout=120
    )
    shown = np.asarray(Image.open(picture).convert("RGB")).astype(int)[:, :700]
    yellow = (shown[..., 0] > 180) & (shown[..., 1] > 180) & (shown[..., 2] < 140)
    pink = (shown[..., 0] > 180) & (shown[..., 1] < 190) & (shown[..., 2] > 180)
    assert yellow.sum() > 500
    assert pink.sum() > 5000


def test_bags_that_do_not_say_where_their_tiles_lie_have_no_heat_map(tmp_path) -> None:
    blank = np.full((60, 80, 3), 255, np.uint8)
    with pytest.raises(InputError, match="does not say where the tiles lie"):
        write_heatmaps(tmp_path, "s", blank, a_bag(coordinates=None, tiles=None), {"attention": np.ones(80)})
    with pytest.raises(InputError, match="does not say how large tiles are"):
        overlay(blank, a_bag(tile_px_level0=None), np.ones(80))
    with pytest.raises(ValueError, match="one for each of 80 tiles"):
        overlay(blank, a_bag(), np.ones((5, 80)))

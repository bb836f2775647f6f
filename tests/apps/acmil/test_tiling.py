"""Tissue is found where it is, glass and ink are not; tiles have a physical size and cover the tissue once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from apps.acmil.bags import read_tiles
from apps.acmil.config_pipeline import TileConfig, TilingConfig, TissueConfig
from apps.acmil.tiling import tile, tile_slide, tissue_share
from apps.acmil.tissue import find_tissue, rasterised
from shared.errors import InputError, UserError
from shared.imaging.slides import open_slide
from shared.phantoms.slide import SlidePhantom, slide_phantom, write_pyramid


def written(folder: Path, phantom: SlidePhantom, name: str = "slide") -> Path:
    write_pyramid(folder / f"{name}.tiff", phantom.image, mpp=phantom.mpp)
    return folder / f"{name}.tiff"


@pytest.fixture(scope="module")
def phantom() -> SlidePhantom:
    return slide_phantom(3, tumour=False, width=1024, height=1024, mpp=1.0)  # a pen mark beside and over the tissue


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory, phantom) -> Path:
    return written(tmp_path_factory.mktemp("slides"), phantom)


def test_tissue_is_found_and_ink_is_not(slide_file, phantom) -> None:
    with open_slide(slide_file) as slide:
        found = rasterised(find_tissue(slide, TissueConfig()), shape=(1024, 1024), downsample=1)
        with_ink = rasterised(find_tissue(slide, TissueConfig(ink=False)), shape=(1024, 1024), downsample=1)
    # The overview has 8 micrometres per pixel, small holes are filled on purpose, and under the ink tissue is left out.
    agreement = 2 * (found & phantom.tissue_mask).sum() / (found.sum() + phantom.tissue_mask.sum())
    assert agreement > 0.9
    blue = (phantom.image[..., 2] > phantom.image[..., 0].astype(int) + 60) & ~phantom.tissue_mask
    assert blue.sum() > 10_000, "the phantom of this seed has no ink"
    assert with_ink[blue].mean() > 0.9
    assert found[blue].mean() < 0.05


def test_the_same_tissue_however_fine_the_scanner(tmp_path) -> None:
    areas = {}
    for mpp in (1.0, 0.5):
        phantom = slide_phantom(8, width=round(700 / mpp), height=round(700 / mpp), mpp=mpp)
        with open_slide(written(tmp_path, phantom, f"at_{mpp}")) as slide:
            pieces = find_tissue(slide, TissueConfig())
            shape = (slide.size[1], slide.size[0])
            areas[mpp] = rasterised(pieces, shape=shape, downsample=1).mean()
    assert areas[0.5] == pytest.approx(areas[1.0], rel=0.03)


def test_a_small_phantom_full_of_fat_has_tissue(tmp_path) -> None:
    with open_slide(written(tmp_path, slide_phantom(60074652, width=640, height=640))) as slide:
        assert find_tissue(slide, TissueConfig())


def test_tiles_have_a_physical_size_and_cover_the_tissue_once(slide_file, phantom) -> None:
    with open_slide(slide_file) as slide:
        tiles, _ = tile_slide(slide, TilingConfig(tile_px=64, mpp=2.0, min_tissue=0))
    assert tiles.tile_px_level0 == 128
    assert tiles.tile_mpp == pytest.approx(2.0)
    covered = np.zeros((1024, 1024), int)
    for x, y in tiles.coordinates:
        covered[y : y + 128, x : x + 128] += 1
    assert covered.max() == 1
    assert covered[phantom.tissue_mask].mean() > 0.97
    order = tiles.coordinates[:, 1] * 10_000 + tiles.coordinates[:, 0]
    assert (np.diff(order) > 0).all(), "row after row"


def test_overlapping_tiles_lie_closer(slide_file) -> None:
    with open_slide(slide_file) as slide:
        tiles, _ = tile_slide(slide, TilingConfig(tile_px=64, mpp=2.0, overlap_px=32))
    assert sorted(set(np.diff(np.unique(tiles.coordinates[:, 0])).tolist())) == [64]
    assert (tiles.overlap_px, tiles.tile_px_level0) == (32, 128)


def test_a_level_within_one_percent_is_read_as_it_is(slide_file) -> None:
    with open_slide(slide_file) as slide:
        assert tile_slide(slide, TilingConfig(mpp=1.005, tile_px=128))[0].tile_mpp == pytest.approx(1.0)
        assert tile_slide(slide, TilingConfig(mpp=1.1, tile_px=128))[0].tile_mpp == pytest.approx(1.1)


def test_the_share_of_tissue_is_exact_with_fractions() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:4, 2:6] = True
    boxes = np.array([[2, 2, 6, 4], [0, 0, 8, 6], [1.5, 2.0, 2.5, 3.0], [5, 3, 9, 7], [20, 20, 22, 22]])
    np.testing.assert_allclose(tissue_share(mask, boxes), [1, 8 / 48, 0.5, 1 / 16, 0])


def test_clams_rules_keep_its_tiles(slide_file) -> None:
    """How they count is fixed by the parity fixtures; here that each is harder than the one before."""
    with open_slide(slide_file) as slide:
        counts = {
            rule: len(tile_slide(slide, TilingConfig(tile_px=64, mpp=1.0, rule=rule))[0]) for rule in ("four_pt", "center", "four_pt_hard")
        }
    assert counts["four_pt"] >= counts["center"] >= counts["four_pt_hard"] > 0


def blank(folder: Path) -> Path:
    write_pyramid(folder / "blank.tiff", np.full((600, 600, 3), 243, np.uint8), mpp=0.5)
    return folder / "blank.tiff"


@pytest.mark.parametrize("preset", ["micrometres", "clam", "clam_tcga"])
def test_a_blank_slide_has_no_tissue_and_says_so(tmp_path, preset: str) -> None:
    with open_slide(blank(tmp_path)) as slide, pytest.raises(InputError, match=r"blank\.tiff: no tissue was found"):
        tile_slide(slide, TilingConfig(tissue=TissueConfig(preset=preset)))


def test_tiles_finer_than_the_scan_are_refused(slide_file) -> None:
    with (
        open_slide(slide_file) as slide,
        pytest.raises(InputError, match=r"scanned at 1 micrometres per pixel, and tiles are wanted at 0\.25"),
    ):
        tile_slide(slide, TilingConfig(mpp=0.25))


def test_overlap_must_leave_something(slide_file) -> None:
    with open_slide(slide_file) as slide, pytest.raises(UserError, match=r"overlap_px is 256, and must be less"):
        tile_slide(slide, TilingConfig(overlap_px=256, mpp=1.0))


def test_the_verb_leaves_coordinates_outlines_and_a_picture_and_lists_what_it_cannot_read(tmp_path, slide_file, capsys) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.tiff").write_bytes(slide_file.read_bytes())
    blank(tmp_path / "in")
    (tmp_path / "in" / "short.svs").write_bytes(slide_file.read_bytes()[:4000])
    config = TileConfig(input=[tmp_path / "in"], output=tmp_path / "out", tiling=TilingConfig(mpp=1.0, tile_px=128))
    assert tile(config) == 3
    failures = {row["input"]: row["reason"] for row in csv.DictReader((tmp_path / "out" / "failures.csv").open())}
    assert {Path(path).name for path in failures} == {"blank.tiff", "short.svs"}
    tiles = read_tiles(tmp_path / "out" / "good.h5")
    assert len(tiles) > 10
    tissue = json.loads((tmp_path / "out" / "good_tissue.geojson").read_text())
    assert tissue["type"] == "FeatureCollection"
    for feature in tissue["features"]:
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    assert (tmp_path / "out" / "good_tiles.png").stat().st_size > 1000
    assert "1 slides" in capsys.readouterr().out


def test_resolutions_come_from_a_table(tmp_path, phantom, acmil) -> None:
    write_pyramid(tmp_path / "a.tiff", phantom.image, mpp=300)  # what an office program says
    (tmp_path / "mpp.csv").write_text("wsi,mpp\na.tiff,1.0\n")
    words = ["tile", "--input", str(tmp_path / "a.tiff"), "--output", str(tmp_path / "out"), "--tiling.mpp", "1", "--tiling.tile_px", "128"]
    refused = acmil(*words)
    assert refused.code == 3
    assert acmil(*words, "--mpp_table", str(tmp_path / "mpp.csv")).code == 0
    assert read_tiles(tmp_path / "out" / "a.h5").mpp == 1.0

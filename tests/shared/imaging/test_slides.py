"""A slide is the same in every format, and its pixels are where they should be at any resolution; what cannot be read says why."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from shared.errors import InputError, UserError
from shared.imaging.slides import UnreadableRegion, find_slides, open_slide
from shared.phantoms.slide import write_pyramid
from tests.shared.imaging.slides_made import MPP, halved, picture, write_dicom, write_ome

IMAGE = picture()


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """As alike as JPEG leaves it: a shift by one pixel makes a mean difference above 1.7."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).mean() < 1.2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    write_pyramid(folder / "tiled.tiff", IMAGE, mpp=MPP, quality=95)
    write_ome(folder / "levels.ome.tiff", IMAGE)
    write_dicom(folder / "plain", IMAGE)
    write_dicom(folder / "jpegls", IMAGE, jpeg_ls=True)
    tifffile.imwrite(
        folder / "strips.tif", IMAGE, photometric="rgb", rowsperstrip=50, resolution=(20_000, 20_000), resolutionunit="CENTIMETER"
    )
    Image.fromarray(IMAGE).save(folder / "picture.png")
    names = ("tiled.tiff", "levels.ome.tiff", "plain", "jpegls", "strips.tif", "picture.png")
    return {name: folder / name for name in names}


KINDS = ["tiled.tiff", "levels.ome.tiff", "plain", "jpegls", "strips.tif", "picture.png"]


def opened(made: dict[str, Path], name: str):
    return open_slide(made[name], mpp=MPP if name == "picture.png" else None)


@pytest.mark.parametrize("name", KINDS)
def test_every_format_has_the_same_size_resolution_and_pixels(made, name: str) -> None:
    with opened(made, name) as slide:
        assert slide.size == (600, 700)
        assert slide.mpp == pytest.approx(MPP, rel=1e-3)
        region = slide.read_region(100, 50, 300, 200)
        assert_alike(region, IMAGE[50:250, 100:400])


@pytest.mark.parametrize("name", KINDS)
def test_a_region_at_a_physical_resolution_covers_that_tissue_in_every_format(made, name: str) -> None:
    """The picture is a formula: it is computed where the pixels' centres should be."""
    with opened(made, name) as slide:
        for mpp in (0.5, 0.7, 1.0, 1.3, 2.0):
            region = slide.read_region(60, 40, 90, 80, mpp=mpp).astype(float)
            row = 40 + (np.arange(80) + 0.5) * mpp / MPP - 0.5
            column = 60 + (np.arange(90) + 0.5) * mpp / MPP - 0.5
            # A shift of one level-0 pixel changes it by up to 3.2; JPEG and the levels' own averaging account for the rest.
            assert np.abs(region[..., 0] - (128 + 100 * np.sin(row / 31))[:, None]).mean() < 1.5
            assert np.abs(region[..., 1] - (128 + 100 * np.cos(column / 37))[None]).mean() < 1.5


def test_levels_are_where_they_are_though_their_sizes_are_rounded(tmp_path) -> None:
    image = picture(703, 601)
    write_pyramid(tmp_path / "odd.tiff", image, mpp=MPP, levels=3)
    with open_slide(tmp_path / "odd.tiff") as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(601, 703), (300, 351), (150, 175)]
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert_alike(slide.read_region(400, 600, 80, 40, level=1), halved(image)[300:340, 200:280])


def test_a_large_region_is_the_small_ones_side_by_side(made) -> None:
    with opened(made, "tiled.tiff") as slide:
        whole = slide.read_region(0, 0, 120, 80, mpp=1.25)
        parts = [slide.read_region(100 * index, 0, 40, 80, mpp=1.25) for index in range(3)]
        np.testing.assert_allclose(np.concatenate(parts, axis=1).astype(int), whole, atol=1)


def test_the_overview_is_the_slide_however_it_is_put_together(made, monkeypatch) -> None:
    with opened(made, "tiled.tiff") as slide:
        whole = slide.overview(3.5)
        monkeypatch.setattr("shared.imaging.slides.slide._BLOCK", 10_000)
        np.testing.assert_array_equal(slide.overview(3.5), whole)
        assert whole.shape == (200, 172, 3)
        assert slide.thumbnail(100).shape == (100, 86, 3)
        assert slide.thumbnail(5000).shape == (700, 600, 3)


@pytest.mark.parametrize("name", KINDS)
def test_outside_the_slide_is_white(made, name: str) -> None:
    with opened(made, name) as slide:
        region = slide.read_region(-20, 690, 50, 50, level=0)
        assert (region[:, :20] == 255).all()
        assert (region[10:] == 255).all()
        assert_alike(region[:10, 20:].astype(float), IMAGE[690:, :30])


@pytest.mark.parametrize("name", KINDS)
def test_many_threads_read_one_slide(made, name: str) -> None:
    with opened(made, name) as slide, ThreadPoolExecutor(8) as pool:
        places = [(37 * index % 500, 53 * index % 600) for index in range(64)]
        alone = [slide.read_region(x, y, 64, 64, mpp=0.6) for x, y in places]
        together = list(pool.map(lambda place: slide.read_region(*place, 64, 64, mpp=0.6), places))
        np.testing.assert_array_equal(alone, together)


def test_a_resolution_that_is_not_stated_is_asked_for_and_one_that_cannot_be_is_refused(tmp_path, made) -> None:
    with open_slide(made["picture.png"]) as slide:
        assert slide.thumbnail(64).shape == (64, 55, 3)  # looking needs none
        with pytest.raises(InputError, match=r"picture\.png: does not state its resolution.*--mpp"):
            slide.read_region(0, 0, 8, 8, mpp=0.5)
    write_pyramid(tmp_path / "paper.tiff", IMAGE, mpp=352.8)
    with open_slide(tmp_path / "paper.tiff") as slide, pytest.raises(InputError, match=r"states 352\.8 x 352\.8.*0\.05 to 10"):
        _ = slide.mpp
    with pytest.raises(UserError, match="25 micrometres per pixel were given"):
        open_slide(made["tiled.tiff"], mpp=25)
    with open_slide(tmp_path / "paper.tiff", mpp=0.25) as slide:
        assert slide.mpp == 0.25


def damaged(source: Path, target: Path, *, tile: int) -> Path:
    """A copy of a TIFF whose tile of that number, on level 0, is nonsense."""
    with tifffile.TiffFile(source) as file:
        offset, count = file.pages[0].dataoffsets[tile], file.pages[0].databytecounts[tile]
    content = bytearray(source.read_bytes())
    content[offset : offset + count] = bytes(count)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("name", ["tiled.tiff", "levels.ome.tiff"])
def test_an_unreadable_tile_says_where_and_the_rest_of_the_slide_goes_on(tmp_path, made, name: str) -> None:
    with open_slide(damaged(made[name], tmp_path / name, tile=0)) as slide:
        for _ in range(2):
            with pytest.raises(UnreadableRegion, match=r"cannot be decoded at x 0, y 0 of level 0.*damaged there"):
                slide.read_region(0, 0, 50, 50)
            assert_alike(slide.read_region(400, 500, 90, 90).astype(float), IMAGE[500:590, 400:490])


def test_a_damaged_level_is_read_from_the_finer_one(tmp_path, made) -> None:
    with tifffile.TiffFile(made["tiled.tiff"]) as file:
        offset, count = file.pages[1].dataoffsets[0], file.pages[1].databytecounts[0]
    content = bytearray(made["tiled.tiff"].read_bytes())
    content[offset : offset + count] = bytes(count)
    (tmp_path / "level.tiff").write_bytes(content)
    with open_slide(tmp_path / "level.tiff") as slide, opened(made, "tiled.tiff") as whole:
        there, expected = slide.read_region(0, 0, 100, 100, mpp=1.0), whole.read_region(0, 0, 100, 100, mpp=1.0)
        assert_alike(there, expected)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"Not a slide, but a letter about one.", "is not a whole slide: it holds text"),
        (b"PK\x03\x04" + bytes(600), "is not a whole slide: it holds a ZIP archive"),
        (b"II*\0\x08\0\0\0", "cannot be opened as a TIFF"),
    ],
)
def test_what_is_no_slide_is_told_what_it_is(tmp_path, content: bytes, found: str) -> None:
    (tmp_path / "a.svs").write_bytes(content)
    with pytest.raises(InputError, match=found) as refused:
        open_slide(tmp_path / "a.svs")
    assert str(refused.value).startswith(str(tmp_path / "a.svs"))
    assert "\n" not in str(refused.value)


def test_a_slide_that_was_cut_short_says_so(tmp_path, made) -> None:
    content = made["tiled.tiff"].read_bytes()
    (tmp_path / "short.tiff").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"short\.tiff: cannot be"):
        open_slide(tmp_path / "short.tiff").overview(1)


def test_pixels_of_another_kind_are_refused(tmp_path) -> None:
    tifffile.imwrite(tmp_path / "deep.ome.tif", np.zeros((3, 64, 64), np.uint16), photometric="minisblack")
    with pytest.raises(InputError, match=r"holds uint16 pixels.*8-bit RGB"):
        open_slide(tmp_path / "deep.ome.tif")


def test_dicom_series_are_found_once_and_their_companions_are_not_slides(tmp_path, made) -> None:
    for name in ("plain", "jpegls"):
        (tmp_path / name).mkdir()
        for path in made[name].iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    found = find_slides([tmp_path])
    assert [(file.path.name, file.stem) for file in found] == [("0.dcm", "jpegls"), ("0.dcm", "plain")]
    with pytest.raises(InputError, match="is the label of a DICOM slide"):
        open_slide(tmp_path / "plain" / "2.dcm")
    with open_slide(tmp_path / "plain" / "1.dcm") as slide:  # any level opens the series
        assert slide.size == (600, 700)


def test_names_are_those_of_files_without_their_endings(made) -> None:
    names = {name: opened(made, name).name for name in ("tiled.tiff", "levels.ome.tiff", "plain")}
    assert names == {"tiled.tiff": "tiled", "levels.ome.tiff": "levels", "plain": "plain"}

"""From a slide to its features beside the plain way: one ``read_region`` after the other, then the network. Equal tiles, one run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from apps.acmil.bags import Tiles
from apps.acmil.config_pipeline import TilingConfig
from apps.acmil.encoders import Encoder
from apps.acmil.features import slide_to_bag
from apps.acmil.reading import TileStream, tile_geometry
from apps.acmil.tiling import tile_slide
from shared.imaging.slides import open_slide
from shared.phantoms.slide import slide_phantom, write_pyramid

CASES = {"a level as it is (0.5 um)": 0.5, "between two levels (0.7 um)": 0.7}
BATCH = 32


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.tiff"
    write_pyramid(path, slide_phantom(3, width=6144, height=6144, mpp=0.25).image, mpp=0.25)
    return path


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 7, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Encoder(name="small", dimension=32, network=nn.Sequential(*layers).eval())


def plain_tiles(path: Path, tiles: Tiles, mpp: float, px: int):
    """One after the other, from the level that OpenSlide recommends, shrunk by Pillow."""
    with openslide.OpenSlide(path) as slide:
        downsample = mpp / float(slide.properties["openslide.mpp-x"])
        level = slide.get_best_level_for_downsample(downsample * 1.001)
        side = round(px * downsample / slide.level_downsamples[level])
        for x, y in tiles.coordinates.tolist():
            region = slide.read_region((x, y), level, (side, side)).convert("RGB")
            yield np.asarray(region if side == px else region.resize((px, px), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("way", ["plain loop", "ahead, 1 thread", "ahead, 2 threads"])
@pytest.mark.parametrize("case", CASES)
def test_reading_tiles(measure, slide: Path, case: str, way: str) -> None:
    tiling = TilingConfig(mpp=CASES[case])
    with open_slide(slide) as opened:
        tiles, _ = tile_slide(opened, tiling)
        mpp, px = tile_geometry(opened, tiles)

    def plain() -> int:
        return sum(1 for _ in plain_tiles(slide, tiles, mpp, px))

    def ahead(workers: int) -> int:
        with ThreadPoolExecutor(workers) as pool:
            stream = TileStream(open_slide(slide), tiles, pool=pool)
            count = sum(len(chosen) for chosen, _ in stream)
            stream.close()
            return count

    ways = {"plain loop": plain, "ahead, 1 thread": lambda: ahead(1), "ahead, 2 threads": lambda: ahead(2)}
    assert ways[way]() == len(tiles)
    measure(f"reading tiles, {case}", way, ways[way], images=len(tiles), rounds=3)


@pytest.mark.parametrize("way", ["plain loop", "slide_to_bag"])
@pytest.mark.parametrize("case", CASES)
def test_slide_to_features(measure, slide: Path, encoder: Encoder, case: str, way: str) -> None:
    tiling = TilingConfig(mpp=CASES[case])

    def plain() -> NDArray[np.float32]:
        with open_slide(slide) as opened:
            tiles, _ = tile_slide(opened, tiling)
            mpp, px = tile_geometry(opened, tiles)
        parts, batch = [], []
        for tile in plain_tiles(slide, tiles, mpp, px):
            batch.append(tile)
            if len(batch) == BATCH:
                parts.append(encoder.embed(np.stack(batch)))
                batch = []
        return np.concatenate([*parts, encoder.embed(np.stack(batch))] if batch else parts)

    def ours() -> NDArray[np.float32]:
        return slide_to_bag(slide, tiling, encoder, batch_size=BATCH, workers=2).features

    # The plain loop rounds a tile's side to whole pixels of its level, and does not see beyond its edges when it shrinks.
    np.testing.assert_allclose(ours(), plain(), atol=0.02)
    ways = {"plain loop": plain, "slide_to_bag": ours}
    measure(f"slide to features, {case}", way, ways[way], images=len(ours()), rounds=3)

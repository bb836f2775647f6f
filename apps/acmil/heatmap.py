"""Scores of tiles back on the slide: pictures, a pyramid of values, and a page to walk through it all.

Scores are attention in equal shares: 1 where a tile has as much as if all tiles were alike (attention times the number of tiles). Colour
begins above an equal share and is full at sixteen of them, the same in every slide: ranks (CLAM's percentiles) would paint a slide hot in
which nothing stands out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.stats import rankdata

from apps.acmil.bags import Bag
from apps.acmil.viewer import write_page
from shared.errors import InputError
from shared.explain.overlay import heat
from shared.files import atomic_path
from shared.imaging import write_png
from shared.imaging.slides import open_slide

__all__ = ["FULL_SHARES", "blended", "overlay", "percentiles", "raster", "shade", "write_heatmaps"]

FULL_SHARES = 16.0
"""Equal shares from which on the colour is full."""
OVERVIEW_PX, PAGE_PX = 2048, 4096
"""Longest side of the pictures, and of the slide in the page, where the slide's file is given."""
_CELLS = 8
"""Pixels along a tile in the pyramid of values and in the page's layers."""
_LARGEST_RASTER = 2048


def overlay(thumbnail: NDArray[np.uint8], bag: Bag, scores: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A slide's overview with scores over it.

    Args:
        thumbnail: uint8 [H, W, 3]: the whole slide.
        bag: where the tiles lie.
        scores: [N], in equal shares.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: if the bag does not say where its tiles lie, or how large they are.
        ValueError: if there are not as many scores as tiles.
    """
    downsample = _extent(bag)[0] / thumbnail.shape[1]
    values, _ = raster(bag, shade(scores), downsample=downsample, shape=thumbnail.shape[:2])
    return heat(thumbnail, values)


def write_heatmaps(
    folder: Path, stem: str, slide: Path | NDArray[np.uint8], bag: Bag, scores: Mapping[str, NDArray[np.floating]]
) -> dict[str, str]:
    """Writes what a person looks at.

    - STEM_NAME.png: the overview with each map over it.
    - STEM_heatmaps.ome.tiff: the values themselves, a channel for each map, in several resolutions that lie on the slide's (QuPath, Fiji).
    - STEM_slide.html: the slide and each map as a layer, in one file that needs no network.

    Args:
        folder: where to.
        stem: what names begin with.
        slide: its file, or an overview of it, uint8 [H, W, 3]. Of a file, the pictures and the page show more.
        bag: where the tiles lie.
        scores: [N] by name, in equal shares; the first is shown first.

    Returns:
        Kind to file name.

    Raises:
        InputError: if the bag does not say where its tiles lie, or the slide cannot be read.
        UserError: if a file cannot be written.
    """
    _extent(bag)
    if isinstance(slide, Path):
        with open_slide(slide, mpp=bag.mpp) as opened:
            page = opened.thumbnail(PAGE_PX)
            picture = opened.thumbnail(OVERVIEW_PX)
    else:
        page = picture = slide
    names = {}
    for name, values in scores.items():
        names[f"heatmap_{name}"] = f"{stem}_{name}.png"
        write_png(folder / names[f"heatmap_{name}"], overlay(picture, bag, values))
    names |= {"heatmaps": f"{stem}_heatmaps.ome.tiff", "page": f"{stem}_slide.html"}
    _write_pyramid(folder / names["heatmaps"], bag, scores)
    layers = {name: _layer(bag, values) for name, values in scores.items()}
    write_page(folder / names["page"], page, bag, layers=layers, scores=scores, size=_extent(bag))
    return names


def shade(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Equal shares to 0 to 1 by their logarithm: 0 up to one share, 1 from ``FULL_SHARES`` on."""
    shares = np.maximum(np.asarray(scores, dtype=np.float64), 1.0)
    return np.clip(np.log(shares) / math.log(FULL_SHARES), 0, 1).astype(np.float32)


def percentiles(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Average rank of each score in parts of a hundred: CLAM's display scale."""
    return rankdata(scores, "average") / len(scores) * 100


def raster(
    bag: Bag, scores: NDArray[np.floating], *, downsample: float, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores [N] as a map at ``1 / downsample`` of level 0; where tiles overlap, their mean.

    Returns:
        The map float32 [H, W], 0 where there is no tile; and where there are tiles, bool [H, W].

    Raises:
        InputError: if the bag does not say where its tiles lie, or how large they are.
        ValueError: if there are not as many scores as tiles.
    """
    coordinates, side = _places(bag)
    if np.shape(scores) != (len(coordinates),):
        raise ValueError(f"scores are {list(np.shape(scores))}: expected one for each of {len(coordinates)} tiles")
    total, count = np.zeros(shape, np.float64), np.zeros(shape, np.uint16)
    across = math.ceil(side / downsample)
    for (x, y), score in zip(np.ceil(coordinates / downsample).astype(int).tolist(), scores, strict=True):
        part = (slice(y, y + across), slice(x, x + across))
        total[part] += score
        count[part] += 1
    covered = count > 0
    return np.divide(total, count, out=np.zeros(shape), where=covered).astype(np.float32), covered


def blended(
    overview: NDArray[np.uint8], values: NDArray[np.floating], where: NDArray[np.bool_], *, colormap: str, alpha: float
) -> NDArray[np.uint8]:
    """Colours of values in 0 to 1 mixed into an overview, uint8 [H, W, 3], where ``where`` says: CLAM's way of drawing."""
    colours = (matplotlib.colormaps[colormap](values)[..., :3] * 255).astype(np.uint8)
    mixed = alpha * colours.astype(np.float64) + (1 - alpha) * overview
    return np.where(where[..., None], np.rint(mixed), overview).astype(np.uint8)


def _places(bag: Bag) -> tuple[NDArray[np.int64], int]:
    if bag.coordinates is None:
        raise InputError(f"{bag.slide}: its bag does not say where the tiles lie, so there is no heat map. Take the .h5, not the .pt.")
    if bag.tile_px_level0 is None:
        raise InputError(
            f"{bag.slide}: its bag does not say how large tiles are on the slide, so there is no heat map. Make it again with "
            "`apps.acmil features --tiles FOLDER`."
        )
    return bag.coordinates, bag.tile_px_level0


def _extent(bag: Bag) -> tuple[int, int]:
    """Width and height in level-0 pixels: the slide's if they are known, else what the tiles cover."""
    coordinates, side = _places(bag)
    if bag.tiles is not None and bag.tiles.size is not None:
        return bag.tiles.size
    width, height = (coordinates.max(0) + side).tolist()
    return width, height


def _grid(bag: Bag) -> tuple[float, tuple[int, int]]:
    """Downsample and shape of maps with some pixels along a tile."""
    width, height = _extent(bag)
    downsample = max(1.0, _places(bag)[1] / _CELLS, max(width, height) / _LARGEST_RASTER)
    return downsample, (math.ceil(height / downsample), math.ceil(width / downsample))


def _layer(bag: Bag, scores: NDArray[np.floating]) -> tuple[NDArray[np.uint8], float]:
    """Colours with transparency, uint8 [H, W, 4], and their downsample."""
    downsample, shape = _grid(bag)
    values, _ = raster(bag, shade(scores), downsample=downsample, shape=shape)
    colours = (matplotlib.colormaps["viridis"](values) * 255).astype(np.uint8)
    colours[..., 3] = np.rint(255 * np.minimum(1, 1.5 * np.sqrt(values)))
    return colours, downsample


def _write_pyramid(path: Path, bag: Bag, scores: Mapping[str, NDArray[np.floating]]) -> None:
    downsample, shape = _grid(bag)
    maps = np.stack([raster(bag, values, downsample=downsample, shape=shape)[0] for values in scores.values()])
    levels = [maps]
    while max(levels[-1].shape[1:]) > 256:
        levels.append(_halved(levels[-1]))
    pixel = {} if bag.mpp is None else {"PhysicalSizeX": bag.mpp * downsample, "PhysicalSizeY": bag.mpp * downsample}
    units = {} if bag.mpp is None else {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    metadata = {"axes": "CYX", "Channel": {"Name": list(scores)}, **pixel, **units}
    how = {"tile": (256, 256), "compression": "zlib", "photometric": "minisblack"}
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as file:
        file.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **how)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **how)


def _halved(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(maps, ((0, 0), (0, maps.shape[1] % 2), (0, maps.shape[2] % 2)), mode="edge")
    channels, height, width = padded.shape
    return padded.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))

"""A page with a slide and its heat maps, for any browser: one file, OpenSeadragon inside, no network."""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.acmil.bags import Bag
from shared.files import write_text

__all__ = ["write_page"]

_TILE = 512
_TOP = 10
_MARGIN = 0.5
"""Tissue shown around one of the highest tiles, in sides of a tile."""


def write_page(
    path: Path,
    picture: NDArray[np.uint8],
    bag: Bag,
    *,
    layers: Mapping[str, tuple[NDArray[np.uint8], float]],
    scores: Mapping[str, NDArray[np.floating]],
    size: tuple[int, int],
) -> None:
    """Writes the page.

    Args:
        path: the .html; whole or absent.
        picture: the whole slide, uint8 [H, W, 3], as large as is to be seen.
        bag: where the tiles lie.
        layers: by name, a map uint8 [H, W, 4] and its level-0 pixels for each of its own.
        scores: [N] by name, in equal shares.
        size: width and height of level 0.

    Raises:
        UserError: if it cannot be written.
    """
    assert bag.coordinates is not None
    assert bag.tile_px_level0 is not None
    height, width = picture.shape[:2]
    best = {name: np.argsort(-values, kind="stable")[:_TOP].tolist() for name, values in scores.items()}
    content: dict[str, Any] = {
        "slide": bag.slide,
        "size": list(size),
        "mpp": bag.mpp,
        "side": bag.tile_px_level0,
        "margin": _MARGIN,
        "picture": {"width": width, "height": height, "tile": _TILE, "levels": _pyramid(picture)},
        "layers": [
            {"name": name.replace("_", " "), "url": _png(pixels), "width": pixels.shape[1] * downsample}
            for name, (pixels, downsample) in layers.items()
        ],
        "top": [[[*bag.coordinates[index].tolist(), round(float(scores[name][index]), 2)] for index in best[name]] for name in layers],
    }
    folder = importlib.resources.files(__package__)
    page = (folder / "page.html").read_text()
    parts = {
        "TITLE": html.escape(bag.slide),
        "STYLE": (folder / "page.css").read_text(),
        "OPENSEADRAGON": (folder / "openseadragon.min.js").read_text(),
        "SCRIPT": (folder / "page.js").read_text(),
        "CONTENT": json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),
    }
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    write_text(path, page)


def _pyramid(picture: NDArray[np.uint8]) -> list[list[list[str]]]:
    """From one tile to the whole: for each level its rows of tiles, as data addresses. Each level is half of the next, rounded up."""
    levels = []
    image = Image.fromarray(picture)
    while True:
        rows = range(0, image.height, _TILE)
        columns = range(0, image.width, _TILE)
        levels.append(
            [[_jpeg(image.crop((x, y, min(x + _TILE, image.width), min(y + _TILE, image.height)))) for x in columns] for y in rows]
        )
        if max(image.size) <= _TILE:
            return levels[::-1]
        image = image.resize((-(-image.width // 2), -(-image.height // 2)), Image.Resampling.BOX)


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _png(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

"""What a network answers about one slide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from apps.acmil.bags import Bag
from apps.acmil.heatmap import overlay, write_heatmaps
from shared.errors import UserError
from shared.files import write_bytes, write_json
from shared.imaging import encode_png, write_png

__all__ = ["TILE_PX", "SlidePrediction", "concentration", "top_tiles"]

TILE_PX = 128
"""Side of the tiles' pictures."""
BLANK_PX = 512
"""Longest side of the picture that stands for a slide that is not here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlidePrediction:
    """The class of one slide, and what each branch of the attention looked at."""

    media_types: ClassVar[tuple[str, ...]] = ("application/geo+json",)

    bag: Bag
    """Where the tiles lie; without their features."""
    classes: tuple[str, ...]
    probability: NDArray[np.float32]
    """[C], adding up to 1."""
    branch_probability: NDArray[np.float32]
    """[J, C]: what each branch alone would say."""
    attention: NDArray[np.float32]
    """[K, N]: of each branch, adding up to 1 over the tiles."""
    overview: NDArray[np.uint8] | None
    """[H, W, 3] RGB: the whole slide, small; None if only its bag was given."""
    tiles: dict[int, NDArray[np.uint8]]
    """Pictures [128, 128, 3] of the tiles with the highest attention, by index; empty if only the bag was given."""
    slide_path: Path | None = None
    """The slide's file, for larger pictures; None if only its bag was given, or it was an upload."""
    top: int = 10
    """Tiles of each branch that are shown."""

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probability.argmax())]

    @cached_property
    def merged(self) -> NDArray[np.float32]:
        """[N]: the mean of the branches' attention."""
        return self.attention.mean(0)

    @cached_property
    def relative(self) -> dict[str, NDArray[np.float32]]:
        """Attention times the number of tiles, so that 1 is an equal share: of all branches together, and of each if there are several."""
        maps = {"attention": self.merged}
        if len(self.attention) > 1:
            maps |= {f"branch_{number}": row for number, row in enumerate(self.attention, start=1)}
        return {name: row * np.float32(row.size) for name, row in maps.items()}

    def summary(self) -> dict[str, Any]:
        """The answer and how concentrated the attention is; positions are (x, y) of a tile's upper left corner, in level-0 pixels."""
        best = int(self.merged.argmax())
        corner = None if self.bag.coordinates is None else [int(value) for value in self.bag.coordinates[best]]
        return {
            "prediction": self.predicted,
            "probabilities": {name: round(float(value), 4) for name, value in zip(self.classes, self.probability, strict=True)},
            "branch_predictions": [self.classes[int(row.argmax())] for row in self.branch_probability],
            "tiles": len(self.merged),
            "attention_share_of_top_10_tiles": round(concentration(self.merged, [10])[0], 4),
            "attention_share_of_top_1_percent": round(concentration(self.merged, [max(1, len(self.merged) // 100)])[0], 4),
            "most_attended_tile_px": corner,
            "tile_px_level0": self.bag.tile_px_level0,
            "notes": list(self.bag.notes),
        }

    def geojson(self) -> dict[str, Any]:
        """The tiles as QuPath reads them: squares in level-0 pixels, with the attention in equal shares as measurements.

        Where the bag does not say where its tiles lie, they have no geometry.
        """
        side, corners = self.bag.tile_px_level0, self.bag.coordinates
        names = list(self.relative)
        table = np.column_stack(list(self.relative.values()))
        features = []
        for index, row in enumerate(table):
            geometry = None
            if corners is not None:
                x, y = (int(value) for value in corners[index])
                right, below = x + (side or 1), y + (side or 1)
                geometry = {"type": "Polygon", "coordinates": [[[x, y], [right, y], [right, below], [x, below], [x, y]]]}
            measured = {name: float(f"{value:.4g}") for name, value in zip(names, row, strict=True)}
            properties = {"objectType": "tile", "name": f"tile {index}", "measurements": measured}
            features.append({"type": "Feature", "id": f"tile-{index}", "geometry": geometry, "properties": properties})
        about = {"prediction": self.predicted, "probabilities": self.summary()["probabilities"]}
        size = None if self.bag.tiles is None or self.bag.tiles.size is None else [int(value) for value in self.bag.tiles.size]
        return {"type": "FeatureCollection", "properties": {**about, "slide_size_px": size}, "features": features}

    def overlay(self, name: str = "attention") -> NDArray[np.uint8]:
        """[H, W, 3] RGB: the slide with one of ``relative`` over it; the tiles' places on white if the slide is not here."""
        return overlay(self._background(), self.bag, self.relative[name])

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """Writes the answer (JSON), the tiles (GeoJSON), heat maps, and pictures of the tiles that decided it.

        Raises:
            UserError: if a file cannot be written; no half-written one stays.
        """
        names = {"prediction": f"{stem}_prediction.json", "tiles": f"{stem}_tiles.geojson"}
        tops = {name: [int(index) for index in top_tiles(row, self.top)] for name, row in self.relative.items()}
        write_json(folder / names["prediction"], {**self.summary(), "slide": self.bag.slide, "top_tiles": tops})
        write_bytes(folder / names["tiles"], self.encode(self.media_types[0]))
        if self.tiles:
            names["top"] = f"{stem}_top.png"
            write_png(folder / names["top"], self.top_tiles_picture())
        if self.bag.coordinates is not None and self.bag.tile_px_level0 is not None:
            names |= write_heatmaps(folder, stem, self.slide_path or self._background(), self.bag, self.relative)
        return names

    def top_tiles_picture(self) -> NDArray[np.uint8]:
        """[H, W, 3] RGB: a row of tiles for all branches together, and one for each; the highest attention on the left."""
        gap = 4
        rows = [top_tiles(row, self.top) for row in self.relative.values()]
        canvas = np.full((len(rows) * (TILE_PX + gap) - gap, len(rows[0]) * (TILE_PX + gap) - gap, 3), 255, dtype=np.uint8)
        for line, row in enumerate(rows):
            for place, index in enumerate(row):
                y, x = line * (TILE_PX + gap), place * (TILE_PX + gap)
                canvas[y : y + TILE_PX, x : x + TILE_PX] = self.tiles[int(index)]
        return canvas

    def figure(self) -> Figure:
        """The slide, its attention, the probabilities, and the tiles that all branches together look at most."""
        figure = Figure(figsize=(12, 6 if self.tiles else 4), layout="constrained")
        upper, *lower = figure.subfigures(2 if self.tiles else 1, 1, height_ratios=[3, 1] if self.tiles else None, squeeze=False)[:, 0]
        slide, heat, bars = upper.subplots(1, 3)
        for axes, picture, title in ((slide, self._background(), self.bag.slide), (heat, self._overlay_or_blank(), "attention")):
            axes.imshow(picture)
            axes.set_title(title)
            axes.axis("off")
        bars.barh(range(len(self.classes)), self.probability, color="#4477aa")
        bars.set_yticks(range(len(self.classes)), self.classes)
        bars.set_xlim(0, 1)
        bars.set_title("probability")
        for part in lower:
            shown = top_tiles(self.merged, self.top)
            for axes, index in zip(part.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
                axes.imshow(self.tiles[int(index)])
                axes.set_title(f"{self.relative['attention'][index]:.1f} x", fontsize=8)
                axes.axis("off")
        return figure

    def encode(self, media_type: str) -> bytes:
        """The tiles with their attention as GeoJSON."""
        if media_type not in self.media_types:
            raise UserError(f"{media_type} cannot be made; available: {', '.join(self.media_types)}.")
        return (json.dumps(self.geojson(), separators=(",", ":"), allow_nan=False) + "\n").encode()

    def preview(self) -> bytes:
        """The slide with the attention of all branches over it, as PNG."""
        return encode_png(self._overlay_or_blank())

    def _overlay_or_blank(self) -> NDArray[np.uint8]:
        placed = self.bag.coordinates is not None and self.bag.tile_px_level0 is not None
        return self.overlay() if placed else self._background()

    def _background(self) -> NDArray[np.uint8]:
        """The slide, or white of its shape."""
        if self.overview is not None:
            return self.overview
        width, height = _extent(self.bag)
        scale = BLANK_PX / max(width, height)
        return np.full((max(1, round(height * scale)), max(1, round(width * scale)), 3), 255, dtype=np.uint8)


def top_tiles(attention: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The indices of the ``count`` highest values of [N], or of all if there are fewer; equal ones in their order."""
    return np.argsort(-attention, kind="stable")[:count]


def concentration(attention: NDArray[np.float32], counts: Sequence[int]) -> list[float]:
    """Which share of the attention [N] the highest ``counts`` tiles have: the paper's cumulative top-K curve."""
    cumulative = np.cumsum(np.sort(attention.astype(np.float64))[::-1])
    return [float(cumulative[min(count, len(cumulative)) - 1] / cumulative[-1]) for count in counts]


def _extent(bag: Bag) -> tuple[int, int]:
    """Width and height in level-0 pixels: the slide's if they are known, else what the tiles cover."""
    if bag.tiles is not None and bag.tiles.size is not None:
        return bag.tiles.size
    if bag.coordinates is None or not len(bag.coordinates):
        return 1, 1
    width, height = (bag.coordinates.max(0) + (bag.tile_px_level0 or 1)).tolist()
    return width, height

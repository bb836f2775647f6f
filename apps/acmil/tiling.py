"""Cuts the tissue of a slide into tiles of a physical size, and the verb `tile`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.acmil.bags import Tiles, write_tiles
from apps.acmil.config_pipeline import TileConfig, TilingConfig
from apps.acmil.qupath import write_tissue
from apps.acmil.tissue import Piece, find_tissue, rasterised
from shared.config import plain
from shared.errors import InputError, UserError
from shared.imaging import write_png
from shared.imaging.slides import SLIDE_SUFFIXES, Slide, find_slides, open_slide
from shared.inference.protocols import Sample
from shared.inference.run import Engine, local_engine, run

__all__ = ["SlideTiles", "Tiler", "clam_corners", "cut", "grid_corners", "read_mpp_table", "tile", "tile_slide", "tissue_share"]

Corners = NDArray[np.int64]
"""[N, 2]: x and y of upper left corners, in level-0 pixels."""

_SNAP = 0.01
"""A level whose pixels differ less from the wanted size than this is read as it is: scanners' own figures are no better."""
_OVERVIEW_PX = 1600
_TISSUE_COLOR, _TILE_COLOR = (0, 140, 120), (30, 30, 200)
_MASK_DOWNSAMPLE = 16.0
"""Level-0 pixels for each pixel of the mask in which the share of tissue is measured, or an eighth of a tile if that is finer."""


def tile_slide(slide: Slide, config: TilingConfig) -> tuple[Tiles, list[Piece]]:
    """The tiles of a slide's tissue, row after row, and its tissue.

    Raises:
        InputError: if there is no tissue, or its resolution is not known; or a tile would be enlarged more than twice.
    """
    pieces = find_tissue(slide, config.tissue)
    if not pieces:
        raise InputError(
            f"{slide.path}: no tissue was found. If there is some, try `apps.acmil tile` with a lower --tiling.tissue.saturation or "
            "--tiling.tissue.min_area_mm2."
        )
    return cut(slide, pieces, config), pieces


def cut(slide: Slide, pieces: Sequence[Piece], config: TilingConfig) -> Tiles:
    """The tiles of given pieces of tissue.

    Raises:
        InputError: if no tile has enough tissue, or the slide is far coarser than the tiles.
    """
    if config.overlap_px >= config.tile_px:
        raise UserError(f"tiling.overlap_px is {config.overlap_px}, and must be less than tiling.tile_px, {config.tile_px}.")
    if slide.mpp > 2 * config.mpp:
        raise InputError(
            f"{slide.path}: was scanned at {slide.mpp:.3g} micrometres per pixel, and tiles are wanted at {config.mpp:g}: nothing so "
            "fine was seen. Choose a larger --tiling.mpp, and an encoder trained for it."
        )
    mpp = _snapped(slide, config.mpp)
    downsample = mpp / slide.mpp
    side, step = config.tile_px * downsample, (config.tile_px - config.overlap_px) * downsample
    if config.rule == "share":
        corners = grid_corners(slide.size, step)
        mask_downsample = max(1.0, min(_MASK_DOWNSAMPLE, side / 8))
        shape = (math.ceil(slide.size[1] / mask_downsample), math.ceil(slide.size[0] / mask_downsample))
        mask = rasterised(pieces, shape=shape, downsample=mask_downsample)
        boxes = np.concatenate([corners, corners + side], axis=1) / mask_downsample
        corners = corners[tissue_share(mask, boxes) >= max(config.min_tissue, 1e-9)]
    else:
        corners = clam_corners(pieces, side=round(side), step=round(step), rule=config.rule)
    if not len(corners):
        raise InputError(
            f"{slide.path}: has tissue, but no tile of {config.tile_px * mpp:.0f} micrometres with {config.min_tissue:.0%} of it. "
            "Lower --tiling.min_tissue, or choose smaller tiles."
        )
    return Tiles(
        coordinates=corners,
        slide=slide.name,
        slide_path=slide.path,
        tile_px_level0=round(side),
        tile_px=config.tile_px,
        overlap_px=config.overlap_px,
        mpp=slide.mpp,
        tile_mpp=mpp,
        size=slide.size,
    )


def tile(config: TileConfig) -> int:
    """Cuts all slides; the exit code is 3 if some could not be used."""
    options = {"tiling": config.tiling, "mpp": config.mpp, "mpp_table": config.mpp_table}
    engine: Engine
    if config.engine == "ray":
        from shared.scaling.infer import ray_engine

        engine = ray_engine(Tiler, config, options)  # type: ignore[arg-type]  # has what it asks for: model, output, workers
    else:
        engine = local_engine(Tiler.load(None, **options), output=config.output, batch_size=1, workers=config.workers)
    maker = {"tiling": plain(config.tiling), "mpp": config.mpp}
    outcome = run(config, suffixes=Tiler.suffixes, engine=engine, maker=maker, find=find_slides)
    print(f"{len(outcome.rows)} slides, {sum(row['tiles'] for row in outcome.rows)} tiles, in {config.output}")
    if outcome.failures:
        print(f"{len(outcome.failures)} slides could not be used; {config.output / 'failures.csv'} says why.")
    return outcome.exit_code


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideTiles:
    """What `tile` leaves of a slide."""

    tiles: Tiles
    pieces: Sequence[Piece]
    overview: NDArray[np.uint8]
    settings: dict[str, Any]
    media_types: ClassVar[tuple[str, ...]] = ()

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """Coordinates (HDF5), tissue (GeoJSON), and a picture to check both by eye."""
        names = {"tiles": f"{stem}.h5", "tissue": f"{stem}_tissue.geojson", "picture": f"{stem}_tiles.png"}
        write_tiles(folder / names["tiles"], self.tiles, settings=self.settings)
        write_tissue(folder / names["tissue"], self.pieces)
        write_png(folder / names["picture"], self.picture())
        return names

    def picture(self) -> NDArray[np.uint8]:
        """The overview with the outlines of tissue and tiles: uint8 [H, W, 3]."""
        width, _ = self.tiles.size or (1, 1)
        scale = self.overview.shape[1] / width
        canvas = np.ascontiguousarray(self.overview)
        side = (self.tiles.tile_px_level0 or 1) * scale
        for x, y in self.tiles.coordinates * scale:
            cv2.rectangle(canvas, (round(x), round(y)), (round(x + side), round(y + side)), _TILE_COLOR, 1)
        for piece in self.pieces:
            for outline in (piece.outline, *piece.holes):
                cv2.polylines(canvas, [np.rint(outline * scale).astype(np.int32)], True, _TISSUE_COLOR, 2)
        return canvas

    def summary(self) -> dict[str, Any]:
        """Counts and sizes."""
        tiles = self.tiles
        return {
            "slide": tiles.slide,
            "tiles": len(tiles),
            "mpp": tiles.mpp,
            "tile_px_level0": tiles.tile_px_level0,
            "pieces": len(self.pieces),
        }


class Tiler:
    """Cuts slides; a Predictor in all that ``run`` asks of one.

    Args:
        tiling: how slides are cut.
        mpp: micrometres per level-0 pixel of every slide; by default what each states.
        mpp_table: the same by the name of a file or slide.
    """

    suffixes: ClassVar[frozenset[str]] = frozenset(SLIDE_SUFFIXES)

    def __init__(self, tiling: TilingConfig, *, mpp: float | None = None, mpp_table: Path | None = None) -> None:
        self.tiling, self.mpp, self.mpp_of = tiling, mpp, read_mpp_table(mpp_table)

    @classmethod
    def load(cls, model: None, *, tiling: TilingConfig, mpp: float | None = None, mpp_table: Path | None = None) -> Self:
        """There is no model to load."""
        assert model is None
        return cls(tiling, mpp=mpp, mpp_table=mpp_table)

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        """The one sample of a slide."""
        if isinstance(source, bytes):
            raise InputError(f"{name}: slides are read from files, not from memory. Save it first.")
        yield Sample(id="", read=lambda: self.cut(source))

    def cut(self, path: Path) -> SlideTiles:
        """Raises InputError if the slide cannot be opened, its resolution is not known, or there is no tissue."""
        with open_slide(path, mpp=self.mpp_of.get(path.name, self.mpp_of.get(path.stem, self.mpp))) as slide:
            tiles, pieces = tile_slide(slide, self.tiling)
            return SlideTiles(tiles=tiles, pieces=pieces, overview=slide.thumbnail(_OVERVIEW_PX), settings={"tiling": plain(self.tiling)})

    def predict_batch(self, sources: Sequence[SlideTiles]) -> list[SlideTiles]:
        """What was cut, as it is: the work is done where slides are read ahead."""
        return list(sources)


def grid_corners(size: tuple[int, int], step: float) -> Corners:
    """The corners of a grid that covers a picture of this width and height, row after row, from (0, 0): [N, 2].

    Those of the last row and column may reach over the edge.
    """
    x, y = (np.rint(np.arange(math.ceil(side / step)) * step).astype(np.int64) for side in size)
    return np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)


def tissue_share(mask: NDArray[np.bool_], boxes: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """Which part of each box is tissue, exactly, from sums over the mask; what lies outside the mask is none.

    Args:
        mask: bool [H, W].
        boxes: [N, 4], left, top, right and bottom in pixels of the mask, with fractions.

    Returns:
        [N], 0 to 1.
    """
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.float64), axis=1, out=sums[1:, 1:])
    left, top, right, bottom = np.asarray(boxes, dtype=np.float64).T
    inside = _sum_to(sums, right, bottom) - _sum_to(sums, left, bottom) - _sum_to(sums, right, top) + _sum_to(sums, left, top)
    return inside / np.maximum((right - left) * (bottom - top), 1e-12)


def clam_corners(pieces: Sequence[Piece], *, side: int, step: int, rule: str) -> Corners:
    """The corners that CLAM keeps: for each piece a grid from the corner of its bounding box, column after column.

    Args:
        pieces: the tissue, in level-0 pixels.
        side, step: of a tile and of the grid, in level-0 pixels.
        rule: four_pt (one of four points around the centre lies in the outline), four_pt_hard (all four), center, basic (the corner).
    """
    kept: list[tuple[int, int]] = []
    for piece in pieces:
        left, top, width, height = cv2.boundingRect(piece.outline)
        for x in range(left, left + width, step):
            for y in range(top, top + height, step):
                if _inside(piece.outline, x, y, side, rule) and not any(
                    cv2.pointPolygonTest(hole, (x + side / 2, y + side / 2), False) > 0 for hole in piece.holes
                ):
                    kept.append((x, y))
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def read_mpp_table(path: Path | None) -> dict[str, float]:
    """Micrometres per pixel by slide, from a CSV with the columns slide (or wsi) and mpp; TRIDENT's tables are of this form.

    Raises:
        UserError: if it cannot be read, lacks a column, or a value is no number.
    """
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}). Give a CSV with the columns slide and mpp.") from error
    column = next((name for name in ("slide", "wsi", "slide_id") if rows and name in rows[0]), None)
    if column is None or "mpp" not in rows[0]:
        raise UserError(f"{path}: has no columns slide and mpp; found {', '.join(rows[0]) if rows else 'no lines'}.")
    try:
        return {Path(row[column]).name: float(row["mpp"]) for row in rows if row["mpp"].strip()}
    except ValueError as error:
        raise UserError(f"{path}: column mpp must hold numbers ({error}).") from error


def _snapped(slide: Slide, mpp: float) -> float:
    level = min(slide.levels, key=lambda one: abs(math.log(one.downsample * slide.mpp / mpp)))
    own = level.downsample * slide.mpp
    return own if abs(own - mpp) <= _SNAP * mpp else mpp


def _sum_to(sums: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of a mask left of x and above y, with fractions: within a pixel it grows in proportion."""
    x, y = np.clip(x, 0, sums.shape[1] - 1), np.clip(y, 0, sums.shape[0] - 1)
    column, row = (np.minimum(part.astype(np.int64), limit - 2) for part, limit in ((x, sums.shape[1]), (y, sums.shape[0])))
    right, down = x - column, y - row
    above = sums[row, column] * (1 - right) + sums[row, column + 1] * right
    below = sums[row + 1, column] * (1 - right) + sums[row + 1, column + 1] * right
    result: NDArray[np.float64] = above * (1 - down) + below * down
    return result


def _inside(outline: NDArray[np.int32], x: int, y: int, side: int, rule: str) -> bool:
    if rule == "basic":
        points = [(x, y)]
    else:
        centre_x, centre_y, shift = x + side // 2, y + side // 2, int(side // 2 * 0.5)
        points = [(centre_x, centre_y)]
        if rule != "center" and shift > 0:
            points = [(centre_x + across, centre_y + down) for across in (-shift, shift) for down in (-shift, shift)]
    found = (cv2.pointPolygonTest(outline, (float(px), float(py)), False) >= 0 for px, py in points)
    return all(found) if rule == "four_pt_hard" else any(found)

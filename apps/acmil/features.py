"""From slides to bags of features, and the verb `features`.

Each is a Predictor, driven by the same ``run`` as `infer`: so it resumes, lists what it cannot read, and spreads over machines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from apps.acmil.bags import Bag, Tiles, read_tiles, write_bag
from apps.acmil.config_pipeline import EncoderConfig, FeaturesConfig, TilingConfig
from apps.acmil.encoders import Encoder, load_encoder
from apps.acmil.qupath import write_tissue
from apps.acmil.reading import TileStream
from apps.acmil.tiling import read_mpp_table, tile_slide
from apps.acmil.tissue import Piece
from shared.config import plain
from shared.errors import InputError, UserError
from shared.imaging.slides import SLIDE_SUFFIXES, Slide, find_slides, open_slide
from shared.inference.protocols import Sample
from shared.inference.run import Engine, local_engine, run

__all__ = ["Encoder", "FeatureExtractor", "SlideBag", "features", "load_encoder", "slide_to_bag"]

_OTHER_MPP = 0.1
"""From which difference on, in parts, tiles are said to be of another resolution than an encoder's."""


def slide_to_bag(
    slide: Path | str | Slide,
    tiling: TilingConfig,
    encoder: Encoder,
    *,
    mpp: float | None = None,
    batch_size: int = 64,
    workers: int = 2,
) -> Bag:
    """The bag of one slide.

    Args:
        slide: an open slide, which is left open, or its file.
        tiling: how it is cut.
        encoder: what makes the features.
        mpp: micrometres per level-0 pixel, for a file that does not state it.
        batch_size: tiles computed together.
        workers: threads that read.

    Raises:
        InputError: if the slide cannot be read, has no tissue, or no known resolution.
    """
    opened = slide if isinstance(slide, Slide) else open_slide(slide, mpp=mpp)
    try:
        tiles, _ = tile_slide(opened, tiling)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            return _embedded(TileStream(opened, tiles, pool=pool), encoder, tiling, batch_size)
    finally:
        if opened is not slide:
            opened.close()


def features(config: FeaturesConfig) -> int:
    """Makes the bags of all slides; the exit code is 3 if some slides could not be used."""
    options = {
        "tiling": config.tiling,
        "mpp": config.mpp,
        "mpp_table": config.mpp_table,
        "tiles": config.tiles,
        "device": config.device,
        "precision": config.precision,
        "tiles_together": config.batch_size,
    }
    began = time.perf_counter()
    engine: Engine
    if config.engine == "ray":
        from shared.scaling.infer import ray_engine

        encoder_name = load_encoder(config.encoder, device="cpu").name
        engine = ray_engine(FeatureExtractor, config, options)  # type: ignore[arg-type]  # has what it asks for: model, output, workers
    else:
        extractor = FeatureExtractor.load(config.encoder, **options, workers=config.workers)
        encoder_name = extractor.encoder.name
        # One slide is computed while the next one is opened, its tissue found and its first tiles read.
        engine = local_engine(extractor, output=config.output, batch_size=1, workers=2 if config.workers else 0)
    maker = {"encoder": encoder_name, "tiling": plain(config.tiling), "mpp": config.mpp, "tiles": str(config.tiles or "")}
    outcome = run(config, suffixes=frozenset(SLIDE_SUFFIXES), engine=engine, maker=maker, find=find_slides)
    count = sum(row["tiles"] for row in outcome.rows)
    print(f"{len(outcome.rows)} slides, {count} tiles of {encoder_name} in {time.perf_counter() - began:.1f} s, in {config.output}")
    if outcome.failures:
        print(f"{len(outcome.failures)} slides could not be used; {config.output / 'failures.csv'} says why.")
    return outcome.exit_code


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A slide of which the tiles are being read."""

    stream: TileStream
    pieces: Sequence[Piece]
    """Its tissue; empty if the tiles came from a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideBag:
    """What `features` leaves of a slide."""

    bag: Bag
    pieces: Sequence[Piece]
    settings: dict[str, Any]
    media_types: ClassVar[tuple[str, ...]] = ()

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """The bag (HDF5) and the tissue (GeoJSON)."""
        names = {"bag": f"{stem}.h5"}
        write_bag(folder / names["bag"], replace(self.bag, slide=stem), settings=self.settings)
        if self.pieces:
            names["tissue"] = f"{stem}_tissue.geojson"
            write_tissue(folder / names["tissue"], self.pieces)
        return names

    def summary(self) -> dict[str, Any]:
        """Counts and sizes."""
        bag = self.bag
        return {
            "slide": bag.slide,
            "tiles": len(bag),
            "width": int(bag.features.shape[1]),
            "mpp": bag.mpp,
            "tile_px_level0": bag.tile_px_level0,
            "notes": list(bag.notes),
        }


class FeatureExtractor:
    """Makes bags of slides; a Predictor in all that ``run`` asks of one.

    Args:
        encoder: what makes the features.
        tiling: how slides are cut.
        mpp: micrometres per level-0 pixel of every slide; by default what each states.
        mpp_table: the same by the name of a file or slide.
        tiles: a folder of coordinates to take instead of seeking tissue.
        tiles_together: tiles computed together.
        workers: threads that read.
    """

    suffixes: ClassVar[frozenset[str]] = frozenset(SLIDE_SUFFIXES)

    def __init__(
        self,
        encoder: Encoder,
        tiling: TilingConfig,
        *,
        mpp: float | None = None,
        mpp_table: Path | None = None,
        tiles: Path | None = None,
        tiles_together: int = 64,
        workers: int = 2,
    ) -> None:
        self.encoder, self.tiling, self.mpp = encoder, tiling, mpp
        self.mpp_of = read_mpp_table(mpp_table)
        self.tiles, self.tiles_together = tiles, tiles_together
        self.tiled = _tiled(tiles) if tiles else {}
        self.pool = ThreadPoolExecutor(max(1, workers))

    @classmethod
    def load(
        cls,
        encoder: EncoderConfig,
        *,
        tiling: TilingConfig,
        device: str = "auto",
        precision: str = "auto",
        mpp: float | None = None,
        mpp_table: Path | None = None,
        tiles: Path | None = None,
        tiles_together: int = 64,
        workers: int = 1,
    ) -> Self:
        """With the encoder of these settings; raises UserError if it cannot be had."""
        known = {"mpp": mpp, "mpp_table": mpp_table, "tiles": tiles, "tiles_together": tiles_together, "workers": workers}
        return cls(load_encoder(encoder, device=device, precision=precision), tiling, **known)

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        """The one sample of a slide."""
        if isinstance(source, bytes):
            raise InputError(f"{name}: slides are read from files, not from memory. Save it first.")
        yield Sample(id="", read=lambda: self.prepare(source))

    def prepare(self, path: Path) -> Prepared:
        """Opens a slide, finds its tiles and begins to read them.

        Raises:
            InputError: if it cannot be opened, its resolution is not known, or there is no tissue.
        """
        slide = open_slide(path, mpp=self.mpp_of.get(path.name, self.mpp_of.get(path.stem, self.mpp)))
        try:
            if self.tiles is None:
                tiles, pieces = tile_slide(slide, self.tiling)
            else:
                tiles, pieces = (
                    replace(
                        read_tiles(self.tiled.get(path.resolve()) or _tiles_file(self.tiles, slide)), slide=slide.name, slide_path=path
                    ),
                    [],
                )
                tiles = replace(tiles, mpp=tiles.mpp or slide.mpp, size=slide.size)
                _check_inside(tiles, slide)
            return Prepared(stream=TileStream(slide, tiles, pool=self.pool), pieces=pieces)
        except BaseException:
            slide.close()
            raise

    def predict_batch(self, sources: Sequence[Prepared]) -> list[SlideBag]:
        """The bag of each."""
        settings = {"tiling": plain(self.tiling), "encoder": self.encoder.name}
        return [
            SlideBag(bag=self._bag(source), pieces=source.pieces, settings=settings | {"slide": source.stream.slide.format})
            for source in sources
        ]

    def predict(self, source: Path | str | Prepared) -> SlideBag:
        """The bag of one slide."""
        return self.predict_batch([source if isinstance(source, Prepared) else self.prepare(Path(source))])[0]

    def _bag(self, source: Prepared) -> Bag:
        try:
            return _embedded(source.stream, self.encoder, self.tiling, self.tiles_together)
        finally:
            source.stream.close()


def _embedded(stream: TileStream, encoder: Encoder, tiling: TilingConfig, batch_size: int) -> Bag:
    """The features of a stream's tiles, in their order; unreadable ones left out and counted."""
    tiles, indices, parts = stream.tiles, [], []
    for chosen, pictures in _batches(stream, batch_size):
        indices.append(chosen)
        parts.append(encoder.embed(pictures))
    missing = len(stream.unreadable)
    if missing > tiling.max_unreadable * len(tiles) or not parts:
        raise InputError(
            f"{stream.slide.path}: {missing} of {len(tiles)} tiles are unreadable, more than {tiling.max_unreadable:.0%}. The first: "
            f"{stream.unreadable[0].removeprefix(f'{stream.slide.path}: ')}"
        )
    kept = np.concatenate(indices)
    notes = (f"{missing} of {len(tiles)} tiles are unreadable and were left out",) if missing else ()
    if encoder.mpp and tiles.tile_mpp and abs(tiles.tile_mpp / encoder.mpp - 1) > _OTHER_MPP:
        notes += (f"{encoder.name} is meant for {encoder.mpp:g} micrometres per pixel, and these tiles have {tiles.tile_mpp:.3g}",)
    return Bag.of(_only(tiles, kept), np.concatenate(parts), encoder=encoder.name, notes=notes)


def _batches(stream: TileStream, size: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
    """The stream's blocks, joined and cut to the wanted size."""
    indices: list[NDArray[np.intp]] = []
    pictures: list[NDArray[np.uint8]] = []
    for chosen, block in stream:
        indices.append(chosen)
        pictures.append(block)
        while sum(map(len, indices)) >= size:
            all_indices, all_pictures = np.concatenate(indices), np.concatenate(pictures)
            yield all_indices[:size], all_pictures[:size]
            indices, pictures = [all_indices[size:]], [all_pictures[size:]]
    if sum(map(len, indices)):
        yield np.concatenate(indices), np.concatenate(pictures)


def _only(tiles: Tiles, kept: NDArray[np.intp]) -> Tiles:
    return replace(tiles, coordinates=tiles.coordinates[kept])


def _tiled(folder: Path) -> dict[Path, Path]:
    """Coordinates by the slide's file, as a run of ours lists them: it gives slides in sub-folders, and of equal names, other names."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of coordinates. `apps.acmil tile` makes one.")
    table = folder / "predictions.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()] if table.is_file() else []
    listed = {Path(row["input"]).resolve(): folder / row["files"]["tiles"] for row in rows if "tiles" in row.get("files", {})}
    return {slide: file for slide, file in listed.items() if file.is_file()}


def _tiles_file(folder: Path, slide: Slide) -> Path:
    """Coordinates of this slide, in a folder of ours, CLAM's (patches/) or TRIDENT's (patches/, names ending in _patches)."""
    names = [f"{slide.name}.h5", f"{slide.name}_patches.h5"]
    found = next((path for place in (folder, folder / "patches") for name in names if (path := place / name).is_file()), None)
    if found is None:
        raise InputError(f"{slide.path}: there are no coordinates of it in {folder} ({' or '.join(names)} was looked for).")
    return found


def _check_inside(tiles: Tiles, slide: Slide) -> None:
    if not len(tiles):
        raise InputError(f"{slide.path}: its file of coordinates has no tiles. Make it again: apps.acmil tile")
    if tiles.coordinates.min() < 0 or (tiles.coordinates >= slide.size).any():
        raise InputError(
            f"{slide.path}: its coordinates reach over its {slide.size[0]} x {slide.size[1]} pixels. They are another slide's."
        )

"""Bags of tile features in HDF5: written as CLAM and TRIDENT write them; read from these, STAMP, and ACMIL's file of all slides.

A bag is the features of one slide's tiles and where the tiles lie. Coordinates are (x, y) of each tile's upper left corner.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError, UserError
from shared.files import atomic_path

__all__ = ["BAG_SUFFIXES", "Bag", "BagFile", "Tiles", "bag_shape", "list_bags", "read_bag", "read_tiles", "write_bag", "write_tiles"]

BAG_SUFFIXES = frozenset({".h5", ".hdf5", ".pt"})
_ROWS = 512
"""Rows in a chunk: one row in a chunk, as published, is slow to read."""
_FEATURES = ("features", "feats", "feat")


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """Where a slide was cut.

    Raises:
        ValueError: if the coordinates are not [N, 2].
    """

    coordinates: NDArray[np.int64]
    """[N, 2]: x and y of each tile's upper left corner, in level-0 pixels."""
    slide: str
    """The slide's name, without folder and suffix."""
    slide_path: Path | None = None
    """The slide's file, as it stood when it was cut."""
    tile_px_level0: int | None = None
    """Side of a tile in level-0 pixels; None where a file does not say."""
    tile_px: int | None = None
    """Side of a tile as it was shown to the encoder's preprocessing."""
    overlap_px: int = 0
    """Overlap of neighbours, in pixels of the tile as cut."""
    mpp: float | None = None
    """Micrometres per level-0 pixel (per unit of the coordinates); None where a file does not say."""
    tile_mpp: float | None = None
    """Micrometres per pixel of the tile as cut."""
    size: tuple[int, int] | None = None
    """Width and height of level 0."""
    notes: tuple[str, ...] = ()
    """What a person should know, one sentence each."""

    def __post_init__(self) -> None:
        if self.coordinates.ndim != 2 or self.coordinates.shape[1] != 2:
            raise ValueError(f"coordinates are {list(self.coordinates.shape)}: expected [N, 2]")

    def __len__(self) -> int:
        return len(self.coordinates)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bag:
    """The features of one slide.

    Raises:
        ValueError: if features are not [N, D], or there are not as many coordinates.
    """

    features: NDArray[np.float32]
    """[N, D]."""
    coordinates: NDArray[np.int64] | None
    """[N, 2]: x and y of each tile's upper left corner, in level-0 pixels; None where a file has none (CLAM's pt_files)."""
    slide: str
    """The slide's name, without folder and suffix."""
    encoder: str = ""
    """What made the features; empty where a file does not say."""
    tile_px_level0: int | None = None
    """Side of a tile in level-0 pixels; None where a file does not say."""
    mpp: float | None = None
    """Micrometres per level-0 pixel (per unit of the coordinates); None where a file does not say."""
    tiles: Tiles | None = None
    """All that is known of the cutting."""
    slide_path: Path | None = None
    notes: tuple[str, ...] = ()
    """What a person should know, one sentence each."""

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise ValueError(f"features are {list(self.features.shape)}: expected [N, D]")
        if self.coordinates is not None and self.coordinates.shape != (len(self.features), 2):
            raise ValueError(f"{len(self.features)} rows of features and coordinates {list(self.coordinates.shape)}: expected [N, 2]")

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of(cls, tiles: Tiles, features: NDArray[np.float32], *, encoder: str, notes: tuple[str, ...] = ()) -> Bag:
        """A bag of tiles and what an encoder made of them."""
        return cls(
            features=features,
            coordinates=tiles.coordinates,
            slide=tiles.slide,
            encoder=encoder,
            tile_px_level0=tiles.tile_px_level0,
            mpp=tiles.mpp,
            tiles=tiles,
            slide_path=tiles.slide_path,
            notes=tiles.notes + notes,
        )


@dataclass(frozen=True, kw_only=True)
class BagFile:
    """Where a bag is."""

    slide: str
    path: Path
    group: str = ""
    """Its group in a file with many slides; empty for a file of its own."""

    def __str__(self) -> str:
        return f"{self.path}:{self.group}" if self.group else str(self.path)


def list_bags(folder: Path | str) -> list[BagFile]:
    """The bags of a folder (CLAM's, TRIDENT's, STAMP's or ours) or of one file with many slides (ACMIL's), sorted by slide.

    CLAM's h5_files/ and pt_files/ side by side are one set: the .h5 is taken, because it has the coordinates.

    Raises:
        UserError: if there is no such folder, it holds no bags, or a slide has two of them.
    """
    folder = Path(folder)
    if folder.is_file():
        found = _grouped(folder)
    elif folder.is_dir():
        paths = [path for path in sorted(folder.rglob("*")) if path.suffix in BAG_SUFFIXES and not path.name.startswith(".")]
        tables = {path.stem for path in paths if path.suffix != ".pt"}
        kept = [path for path in paths if path.suffix != ".pt" or path.stem not in tables]
        found = [one for path in kept for one in (_grouped(path) if path.suffix != ".pt" else [BagFile(slide=path.stem, path=path)])]
    else:
        raise UserError(f"{folder}: there is no such folder of features. Check the path, or make it: apps.acmil features --help")
    if not found:
        raise UserError(f"{folder}: holds no bags of features (.h5 or .pt). Check that it is the right folder.")
    bags: dict[str, BagFile] = {}
    for one in found:
        if one.slide in bags:
            raise UserError(f"{folder}: slide {one.slide} has two bags, {bags[one.slide]} and {one}. Name a folder with one of each.")
        bags[one.slide] = one
    return [bags[slide] for slide in sorted(bags)]


def bag_shape(file: BagFile | Path | str) -> tuple[int, int]:
    """(N, D) of a bag, without reading its features; errors as ``read_bag``."""
    file = _file(file)
    if file.path.suffix == ".pt":
        rows, columns = _pt(file.path).shape
        return rows, columns
    with _opened(file) as group:
        rows, columns = _table(group, file).shape[-2:]
        return int(rows), int(columns)


def read_bag(file: BagFile | Path | str) -> Bag:
    """The bag of a file.

    Raises:
        InputError: if it is missing, damaged, no bag, has no rows, rows that are not finite, or not as many coordinates as features.
    """
    file = _file(file)
    if file.path.suffix == ".pt":
        features = _pt(file.path)
        return Bag(features=_checked(features, file), coordinates=None, slide=file.slide)
    with _opened(file) as group:
        table = _table(group, file)
        features = _checked(table[()], file)
        encoder = _text(table.attrs.get("encoder") or group.file.attrs.get("extractor") or "")
        tiles = _tiles(group, file, rows=len(features))
    if tiles is None:
        return Bag(features=features, coordinates=None, slide=file.slide, encoder=encoder)
    return Bag.of(tiles, features, encoder=encoder)


def write_bag(path: Path | str, bag: Bag, *, settings: dict[str, Any] | None = None) -> None:
    """One .h5: ``features`` float32 [N, D] and ``coords`` int64 [N, 2], with the attributes of TRIDENT and, in micrometres, our own.

    Args:
        path: the file to write; whole or absent.
        bag: coordinates are needed.
        settings: what made it, JSON-ready; kept as an attribute.

    Raises:
        ValueError: if the bag has no coordinates.
        UserError: if the file cannot be written.
    """
    if bag.coordinates is None:
        raise ValueError(f"the bag of {bag.slide} has no coordinates")
    known = bag.tiles or Tiles(coordinates=bag.coordinates, slide=bag.slide, tile_px_level0=bag.tile_px_level0, mpp=bag.mpp)
    tiles = replace(known, slide=bag.slide, slide_path=bag.slide_path or known.slide_path)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        features = file.create_dataset("features", data=bag.features, chunks=(min(_ROWS, max(1, len(bag))), bag.features.shape[1]))
        features.attrs.update({"name": bag.slide, "encoder": bag.encoder, "savetodir": str(Path(path).parent)})
        _write_coordinates(file, tiles, Path(path), settings)


def read_tiles(file: Path | str) -> Tiles:
    """The coordinates of a file of CLAM's patches/, of TRIDENT's patches/, or of ours; with or without features beside them.

    Raises:
        InputError: if the file is missing, damaged or has no coordinates.
    """
    one = _file(file)
    with _opened(one) as group:
        tiles = _tiles(group, one, rows=None)
    if tiles is None:
        raise InputError(f"{one}: has no table 'coords', so it does not say where tiles lie. Name a file that `apps.acmil tile` made.")
    return tiles


def write_tiles(path: Path | str, tiles: Tiles, *, settings: dict[str, Any] | None = None) -> None:
    """One .h5 with ``coords`` as in ``write_bag``, and no features; errors as there."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        _write_coordinates(file, tiles, Path(path), settings)


def _file(file: BagFile | Path | str) -> BagFile:
    return file if isinstance(file, BagFile) else BagFile(slide=Path(file).stem.removesuffix("_patches"), path=Path(file))


@contextmanager
def _opened(file: BagFile) -> Iterator[h5py.Group]:
    if not file.path.is_file():
        raise InputError(f"{file.path}: there is no such file. Check the path for a typing error.")
    try:
        with h5py.File(file.path, "r") as content:
            yield content[file.group] if file.group else content
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{file}: cannot be read as HDF5 ({reason}). It may be cut short; make it again.") from error


def _grouped(path: Path) -> list[BagFile]:
    """A file's bags: itself, or one for each of its groups; none if it only has coordinates. A damaged one is itself: reading says why."""
    one = BagFile(slide=path.stem, path=path)
    if path.suffix == ".pt":
        return [one]
    try:
        with h5py.File(path, "r") as content:
            if any(name in content for name in _FEATURES):
                return [one]
            groups = [name for name in content if isinstance(content[name], h5py.Group) and any(key in content[name] for key in _FEATURES)]
    except OSError:
        return [one]
    return [BagFile(slide=name, path=path, group=name) for name in groups]


def _table(group: h5py.Group, file: BagFile) -> h5py.Dataset:
    name = next((name for name in _FEATURES if name in group), None)
    if name is None:
        raise InputError(f"{file}: has no table of features; found {', '.join(group) or 'nothing'}. A bag has 'features' and 'coords'.")
    return group[name]


def _checked(features: NDArray[Any], file: BagFile) -> NDArray[np.float32]:
    if features.ndim == 3 and features.shape[0] == 1:
        features = features[0]
    if features.ndim != 2 or not features.size:
        raise InputError(f"{file}: features are {list(features.shape)}, and [tiles, width] with at least one tile was expected.")
    features = features.astype(np.float32)
    if not np.isfinite(features).all():
        rows = int((~np.isfinite(features)).any(axis=1).sum())
        raise InputError(f"{file}: {rows} of {len(features)} rows of features are not finite. Make it again, in full precision.")
    return features


def _pt(path: Path) -> NDArray[Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file. Check the path for a typing error.") from error
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a tensor ({' '.join(str(error).split())[:120]}). Make it again.") from error
    if not isinstance(content, torch.Tensor) or content.ndim not in (2, 3):
        raise InputError(f"{path}: holds {type(content).__name__}, and the tensor [tiles, width] of CLAM's pt_files was expected.")
    values: NDArray[Any] = content.squeeze(0).numpy() if content.ndim == 3 else content.numpy()
    return values


def _tiles(group: h5py.Group, file: BagFile, *, rows: int | None) -> Tiles | None:
    if "coords" not in group:
        return None
    table = group["coords"]
    coordinates = np.asarray(table[()])
    if coordinates.ndim == 3 and coordinates.shape[0] == 1:
        coordinates = coordinates[0]
    if coordinates.ndim != 2 or coordinates.shape[1] < 2 or (rows is not None and len(coordinates) != rows):
        raise InputError(
            f"{file}: {rows} rows of features and coordinates {list(coordinates.shape)}: one (x, y) for each row was expected."
        )
    about = {key: table.attrs[key] for key in table.attrs}
    if _text(group.file.attrs.get("unit", "")) == "um":
        return _stamp(group.file, coordinates, file)
    path = _text(about.get("slide_path", ""))
    width, height = about.get("level0_width"), about.get("level0_height")
    corners = np.rint(coordinates[:, :2]).astype(np.int64)
    side, notes = _level0_side(about), ()
    if side is None and (side := _spacing(corners)) is not None:  # CLAM's features do not say it
        notes = (f"the bag does not say how large its tiles are; {side} level-0 pixels, as far as they are apart",)
    return Tiles(
        coordinates=corners,
        slide=file.slide,
        slide_path=Path(path) if path else None,
        tile_px_level0=side,
        notes=notes,
        tile_px=int(about["patch_size"]) if "patch_size" in about else None,
        overlap_px=int(about.get("overlap", 0)),
        mpp=float(about["mpp"]) if "mpp" in about else None,
        tile_mpp=float(about["tile_mpp"]) if "tile_mpp" in about else None,
        size=(int(width), int(height)) if width is not None and height is not None else None,
    )


def _level0_side(about: dict[str, Any]) -> int | None:
    if "patch_size_level0" in about:
        return int(about["patch_size_level0"])
    if "patch_size" in about and "patch_level" in about:  # CLAM
        factor = np.ravel(about.get("downsample", 1.0))[0] if int(about["patch_level"]) else 1.0
        return round(int(about["patch_size"]) * float(factor))
    return None


def _spacing(corners: NDArray[np.int64]) -> int | None:
    """The smallest step of a grid; None if there is a single tile."""
    steps = [gap for axis in (0, 1) for gap in np.diff(np.unique(corners[:, axis])).tolist()]
    return min(steps, default=None)


def _stamp(content: h5py.File, coordinates: NDArray[Any], file: BagFile) -> Tiles:
    """STAMP counts in micrometres: then one unit of the coordinates is one micrometre."""
    side = float(content.attrs.get("tile_size_um", content.attrs.get("tile_size", 0))) or None
    return Tiles(
        coordinates=np.rint(coordinates[:, :2]).astype(np.int64),
        slide=file.slide,
        tile_px_level0=round(side) if side else None,
        mpp=1.0,
        notes=("coordinates are in micrometres, as STAMP writes them",),
    )


def _write_coordinates(file: h5py.File, tiles: Tiles, path: Path, settings: dict[str, Any] | None) -> None:
    table = file.create_dataset("coords", data=tiles.coordinates.astype(np.int64), chunks=(min(_ROWS, max(1, len(tiles))), 2))
    about: dict[str, Any] = {"name": tiles.slide, "savetodir": str(path.parent), "overlap": tiles.overlap_px, "toolkit": "fovea"}
    if tiles.tile_px_level0:
        about |= {"patch_size_level0": tiles.tile_px_level0, "patch_size": tiles.tile_px or tiles.tile_px_level0}
    if tiles.size:
        about |= {"level0_width": tiles.size[0], "level0_height": tiles.size[1]}
    if tiles.mpp:
        # Magnifications are nominal: 10 micrometres per pixel divided by it. What counts is in micrometres, below.
        tile_mpp = tiles.tile_mpp or tiles.mpp
        about |= {"mpp": tiles.mpp, "tile_mpp": tile_mpp, "level0_magnification": round(10 / tiles.mpp)}
        about |= {"target_magnification": max(1, round(10 / tile_mpp))}
    if tiles.slide_path:
        about["slide_path"] = str(tiles.slide_path)
    if settings is not None:
        about["settings"] = json.dumps(settings)
    table.attrs.update(about)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

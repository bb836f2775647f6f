"""GeoJSON that QuPath opens: tissue as annotations, tiles with their measurements. Coordinates are level-0 pixels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.acmil.tissue import Piece
from shared.files import write_bytes

__all__ = ["tile_features", "tissue_features", "write_features", "write_tissue"]


def tissue_features(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """One annotation for each piece of tissue, with its holes."""
    features = []
    for number, piece in enumerate(pieces, start=1):
        rings = [_ring(outline) for outline in (piece.outline, *piece.holes)]
        properties = {"objectType": "annotation", "name": f"tissue {number}", "isLocked": True, "classification": _TISSUE}
        features.append(_feature([ring for ring in rings if len(ring) >= 4], properties))
    return features


def tile_features(
    coordinates: NDArray[np.int64], side: int, scores: Mapping[str, NDArray[np.floating]] | None = None
) -> list[dict[str, Any]]:
    """One tile object for each corner [N, 2], with scores [N] by name as measurements."""
    features = []
    for index, (x, y) in enumerate(coordinates.tolist()):
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        measurements = {name: float(f"{values[index]:.5g}") for name, values in (scores or {}).items()}
        features.append(_feature([ring], {"objectType": "tile", "measurements": measurements}))
    return features


def write_features(path: Path, features: Iterable[Mapping[str, Any]]) -> None:
    """A FeatureCollection with one feature on a line; compressed if the name ends in .gz.

    Raises:
        UserError: if it cannot be written.
    """
    lines = ",\n".join(json.dumps(feature, separators=(",", ":"), allow_nan=False) for feature in features)
    content = f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n'.encode()
    write_bytes(path, gzip.compress(content) if path.suffix == ".gz" else content)


def write_tissue(path: Path, pieces: Sequence[Piece]) -> None:
    """The tissue of a slide; errors as ``write_features``."""
    write_features(path, tissue_features(pieces))


_TISSUE = {"name": "Tissue", "color": [0, 140, 120]}


def _ring(outline: NDArray[np.int32]) -> list[list[int]]:
    """Closed, and without the points on straight lines."""
    points = outline.reshape(-1, 2)
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    bends = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = points[bends] if bends.sum() >= 3 else points
    ring: list[list[int]] = np.concatenate([kept, kept[:1]]).tolist()
    return ring


def _feature(rings: list[list[list[int]]], properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}

"""GeoJSON that QuPath opens: tissue as annotations. Coordinates are level-0 pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.acmil.tissue import Piece
from shared.files import write_text

__all__ = ["tissue_features", "write_tissue"]


def tissue_features(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """One annotation for each piece of tissue, with its holes."""
    features = []
    for number, piece in enumerate(pieces, start=1):
        rings = [_ring(outline) for outline in (piece.outline, *piece.holes)]
        properties = {"objectType": "annotation", "name": f"tissue {number}", "isLocked": True, "classification": _TISSUE}
        features.append(_feature([ring for ring in rings if len(ring) >= 4], properties))
    return features


def write_tissue(path: Path, pieces: Sequence[Piece]) -> None:
    """A FeatureCollection with one piece of tissue on a line.

    Raises:
        UserError: if it cannot be written.
    """
    lines = ",\n".join(json.dumps(feature, separators=(",", ":")) for feature in tissue_features(pieces))
    write_text(path, f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n')


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

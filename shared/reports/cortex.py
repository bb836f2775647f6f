"""Maps of the cortex as pictures: values of fsaverage5's vertices on the inflated surface, by table look-up, in milliseconds.

``nilearn.plotting.view_surf`` makes pages to turn around in a browser; this makes the many small pictures of reports and services.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.colors import Colormap
from numpy.typing import NDArray

__all__ = ["VIEWS", "cortex_picture", "volume_picture"]

Pixels = NDArray[np.uint8]
View = Literal["lateral", "medial", "ventral", "posterior"]
VIEWS: tuple[View, ...] = ("lateral", "medial", "ventral", "posterior")

MESH_VERTICES = 10242
SAMPLES = 5
"""Points along each edge of a triangle; enough to fill every pixel at the sizes used here."""


def cortex_picture(
    left: NDArray[np.floating],
    right: NDArray[np.floating],
    *,
    views: tuple[View, ...] = ("lateral", "posterior", "ventral"),
    height: int = 160,
    limit: float | None = None,
    colormap: str | Colormap = "RdBu_r",
    symmetric: bool = True,
) -> Pixels:
    """Both hemispheres from several sides, the left one's row above the right one's.

    Args:
        left, right: a value for each vertex of fsaverage5 (of a finer fsaverage mesh, whose first vertices those are); NaN shows the bare
            cortex, darker in the sulci.
        views: columns.
        height: of each picture in pixels.
        limit: value of the last colour; the 98th percentile of all values by default.
        symmetric: colours run from -limit to limit, rather than from 0.

    Returns:
        uint8 [2 * height, W, 3] RGB on white.

    Raises:
        ValueError: if a hemisphere has fewer vertices than fsaverage5.
    """
    if min(len(left), len(right)) < MESH_VERTICES:
        raise ValueError(f"{len(left)} and {len(right)} vertices; fsaverage5 has {MESH_VERTICES} in each hemisphere")
    values = np.concatenate([left[:MESH_VERTICES], right[:MESH_VERTICES]])
    known = values[np.isfinite(values)]
    limit = limit or (float(np.percentile(abs(known), 98)) if known.size else 1.0) or 1.0
    columns = []
    for view in views:
        pair = [
            _painted(values_, side, view, height, limit, colormap, symmetric)
            for side, values_ in zip(("left", "right"), np.split(values, 2), strict=True)
        ]
        width = max(picture.shape[1] for picture in pair)
        columns.append(np.concatenate([np.pad(each, [(0, 0), (0, width - each.shape[1]), (0, 0)], constant_values=255) for each in pair]))
    return np.concatenate(columns, axis=1)


def volume_picture(volume: NDArray[np.floating], *, height: int = 160, limit: float | None = None, colormap: str = "RdBu_r") -> Pixels:
    """A volume [X, Y, Z] in RAS order from the side, the back and above: in each direction the value that is largest in size.

    Returns:
        uint8 [height, W, 3] RGB; NaN is white.
    """
    known = np.nan_to_num(volume)
    limit = limit or float(np.percentile(abs(known[known != 0]), 98) if known.any() else 1.0)
    panels = []
    for axis in (0, 1, 2):
        where = np.abs(known).argmax(axis=axis)
        flat = np.take_along_axis(known, np.expand_dims(where, axis), axis).squeeze(axis)
        coloured = matplotlib.colormaps[colormap](np.clip(flat.T[::-1] / (2 * limit) + 0.5, 0, 1))[..., :3]
        scale = max(1, height // coloured.shape[0])
        panel = np.kron(coloured, np.ones((scale, scale, 1)))[:height]
        panels.append(np.pad(panel, [(0, height - len(panel)), (2, 2), (0, 0)], constant_values=1))
    return (255 * np.concatenate(panels, axis=1)).round().astype(np.uint8)


def _painted(values: NDArray, side: str, view: View, height: int, limit: float, colormap: str | Colormap, symmetric: bool) -> Pixels:
    vertex, shade = _raster(side, view, height)
    shown = vertex >= 0
    bare = np.repeat(_bare(side)[vertex][..., None], 3, axis=2)
    value = values[vertex]
    scaled = value / (2 * limit) + 0.5 if symmetric else value / limit
    coloured = matplotlib.colormaps.get_cmap(colormap)(np.clip(np.nan_to_num(scaled), 0, 1))[..., :3]
    picture = np.where(np.isfinite(value)[..., None], coloured, bare) * (0.55 + 0.45 * shade[..., None])
    return (255 * np.where(shown[..., None], picture, 1)).round().astype(np.uint8)


@cache
def _raster(side: str, view: View, height: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Of each pixel the nearest vertex that is seen there (-1: none), and how much the surface faces the viewer, 0 to 1."""
    points, triangles = _mesh(side)
    towards, up = _directions(side, view)
    across = np.cross(up, towards)
    flat = np.stack([points @ across, points @ up], axis=1)
    low, high = flat.min(axis=0), flat.max(axis=0)
    scale = 0.94 * height / (high - low)[1]
    width = int(scale * (high - low)[0] / 0.94)
    steps = np.array([(i, j, SAMPLES - i - j) for i in range(SAMPLES + 1) for j in range(SAMPLES + 1 - i)]) / SAMPLES
    corners = points[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = normals @ towards / np.linalg.norm(normals, axis=1)
    sampled = np.einsum("sk,tkd->tsd", steps, corners).reshape(-1, 3)
    owner = np.repeat(triangles[:, None, :], len(steps), axis=1).reshape(-1, 3)[
        np.arange(len(sampled)), np.tile(steps.argmax(1), len(triangles))
    ]
    depth = sampled @ towards
    column = ((sampled @ across - low[0]) * scale + 0.03 * width).astype(int).clip(0, width - 1)
    row = (height - 1 - ((sampled @ up - low[1]) * scale + 0.03 * height)).astype(int).clip(0, height - 1)
    order = depth.argsort(kind="stable")  # what is nearer is painted later
    vertex, shade = np.full((height, width), -1), np.zeros((height, width))
    vertex[row[order], column[order]] = owner[order]
    shade[row[order], column[order]] = np.clip(abs(facing), 0, 1).repeat(len(steps))[order]
    return vertex, shade


def _directions(side: str, view: View) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Towards the viewer, and up, in RAS coordinates."""
    outward = -1.0 if side == "left" else 1.0
    towards = {
        "lateral": (outward, 0, 0),
        "medial": (-outward, 0, 0),
        "ventral": (0, 0, -1),
        "posterior": (0.25 * outward, -1, -0.2),
    }[view]
    up = (0, 1, 0) if view == "ventral" else (0, 0, 1)
    vector = np.array(towards, dtype=float) / np.linalg.norm(towards)
    upward = np.array(up, dtype=float) - np.dot(up, vector) * vector
    return vector, upward / np.linalg.norm(upward)


@cache
def _mesh(side: str) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    from nilearn.datasets import load_fsaverage

    part = load_fsaverage("fsaverage5")["inflated"].parts[side]
    return np.asarray(part.coordinates, dtype=np.float64), np.asarray(part.faces)


@cache
def _bare(side: str) -> NDArray[np.float64]:
    """Grey of each vertex: sulci darker than gyri."""
    from nilearn.datasets import load_fsaverage_data

    depth = np.asarray(load_fsaverage_data(mesh="fsaverage5", data_type="sulcal").data.parts[side])
    return np.where(depth > 0, 0.62, 0.82)

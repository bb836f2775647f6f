"""A segmented volume in three dimensions: lesions within a glassy head or brain, as small meshes for a page and as a rendered picture.

Meshes are in the patient's millimetres (RAS+). Their outlines are smoothed for the eye; measure on the labels, never on a mesh.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fast_simplification
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from scipy import ndimage, sparse
from skimage.measure import marching_cubes

from shared.imaging.volumes import Volume
from shared.reports.planes import Viewed, check_labels, solid, view
from shared.reports.slices import Color, contour_order, label_colors

__all__ = ["VIEWS", "Surface", "render", "scene", "surfaces"]

VIEWS: dict[str, tuple[float, float]] = {"front": (0.0, 0.0), "right": (90.0, 0.0), "above": (0.0, 89.9), "oblique": (-35.0, 20.0)}
"""Azimuth and elevation, in degrees, of where the camera stands: azimuth from the face towards the patient's right."""

BACKGROUND: Color = (11, 13, 16)
OUTLINE_COLOR: Color = (198, 210, 222)
OUTLINE_OPACITY, ENCLOSING_OPACITY = 0.16, 0.25
OUTLINE_VOXELS = 80
"""Along the longest side of the grid on which head or brain is outlined."""
LIGHT = np.array([-0.4, 0.5, 0.77])
"""From the camera's upper left: right, up, towards the camera."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """A closed mesh."""

    name: str
    color: Color
    opacity: float
    """1: solid; below, seen through."""
    vertices: NDArray[np.float32]
    """[N, 3], millimetres in RAS+."""
    faces: NDArray[np.int32]
    """[M, 3], anticlockwise as seen from outside."""

    @property
    def normals(self) -> NDArray[np.float32]:
        """[N, 3], outwards, of length 1."""
        corners = self.vertices[self.faces]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        summed = np.zeros_like(self.vertices)
        for corner in range(3):
            np.add.at(summed, self.faces[:, corner], across)
        return summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-12)


def surfaces(
    volume: Volume, labels: ArrayLike, names: Mapping[int, str], *, channel: int = 0, most_faces: int = 10_000
) -> tuple[Surface, ...]:
    """The outline of the head or brain, if the volume shows one whole, and a surface for each label, from the outside in.

    A label that encloses another is seen through, and its surface is the outer one. A lesion of a single voxel has a surface too.

    Args:
        volume: [X, Y, Z] or [C, X, Y, Z].
        labels: whole numbers [X, Y, Z] on the same voxels.
        names: of the label values; others are left out.
        channel: in which the outline is looked for.
        most_faces: of each mesh; finer ones are made coarser.

    Raises:
        ValueError: if the labels do not fit the volume, there is no such channel, or ``most_faces`` is not from 100 to 60,000.
    """
    if not 100 <= most_faces <= 60_000:
        raise ValueError(f"most_faces is {most_faces}: expected 100 to 60,000")
    values = check_labels(volume, labels)
    found: list[Surface] = []
    outline = _outline(view(volume, values, channel=channel), most_faces)
    if outline is not None:
        found.append(Surface(name="outline", color=OUTLINE_COLOR, opacity=OUTLINE_OPACITY, vertices=outline[0], faces=outline[1]))
    colors = label_colors(names)
    order = [value for value in contour_order(values, names) if (values == value).any()]
    for place, value in enumerate(order):
        mask = values == value
        enclosed = [inner for inner in order[place + 1 :] if _within(values == inner, mask)]
        # A shell has an inner side too, which would only be seen through the outer one: what it encloses counts as part of it.
        vertices, faces = _mesh(mask | np.isin(values, enclosed), volume.affine, most_faces)
        opacity = ENCLOSING_OPACITY if enclosed else 1.0
        found.append(Surface(name=names[value], color=colors[value], opacity=opacity, vertices=vertices, faces=faces))
    return tuple(found)


def scene(meshes: Sequence[Surface]) -> dict[str, Any]:
    """The meshes as the viewer of a report takes them: base64 of little-endian integers, in a box from -1 to 1.

    Raises:
        ValueError: if there are none, or one has more than 65,535 vertices.
    """
    if not meshes or max(len(mesh.vertices) for mesh in meshes) > 0xFFFF:
        raise ValueError("a scene has at least one mesh, each of at most 65,535 vertices: lower most_faces")
    middle, radius = _extent(meshes)
    reach = max(float(np.abs(mesh.vertices - middle).max()) for mesh in meshes)
    half = np.max([np.abs(mesh.vertices - middle).max(axis=0) for mesh in meshes], axis=0)
    return {
        "radius": radius / reach,
        "half": [round(float(side) / reach, 4) for side in half],
        "surfaces": [
            {
                "color": list(mesh.color),
                "opacity": mesh.opacity,
                "positions": _encoded((mesh.vertices - middle) / reach * 32767, "<i2"),
                "normals": _encoded(mesh.normals * 127, "i1"),
                "indices": _encoded(mesh.faces, "<u2"),
            }
            for mesh in meshes
        ],
    }


def render(meshes: Sequence[Surface], *, azimuth: float = -35.0, elevation: float = 20.0, pixels: int = 480) -> Pixels:
    """A picture of the meshes, without perspective.

    Args:
        meshes: from the outside in, as ``surfaces`` gives them; none gives an empty picture.
        azimuth, elevation: where the camera stands, in degrees; see ``VIEWS``.
        pixels: width and height.

    Returns:
        uint8 [pixels, pixels, 3].
    """
    side = 2 * pixels
    picture = Image.new("RGBA", (side, side), (*BACKGROUND, 255))
    if meshes:
        middle, radius = _extent(meshes)
        turn, scale = _camera(azimuth, elevation), pixels / (1.05 * radius)
        opaque = [mesh for mesh in meshes if mesh.opacity == 1]
        # A translucent surface is drawn by itself and laid over what it encloses, so that its own triangles do not add up.
        for together in (opaque, *([mesh] for mesh in reversed(meshes) if mesh.opacity < 1)):
            layer = Image.new("RGBA", (side, side))
            pen = ImageDraw.Draw(layer)
            for corners, color in _painted(together, middle, turn, scale, side / 2):
                pen.polygon(corners, fill=color)
            picture = Image.alpha_composite(picture, layer)
    return np.asarray(picture.convert("RGB").resize((pixels, pixels), Image.Resampling.BOX))


def _painted(
    meshes: Sequence[Surface], middle: NDArray[np.float64], turn: NDArray[np.float64], scale: float, centre: float
) -> Iterator[tuple[list[float], tuple[int, ...]]]:
    """The triangles that face the camera, farthest first: corners in pixels, and RGBA."""
    depths, corners, colors = [], [], []
    for mesh in meshes:
        placed = ((mesh.vertices - middle) @ turn.T * scale)[mesh.faces]
        normals = (mesh.normals @ turn.T)[mesh.faces].mean(axis=1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        light = np.clip(normals @ LIGHT, 0, 1)[:, None]
        dark = 0.3 if mesh.opacity == 1 else 0.6
        color = np.asarray(mesh.color, np.float32) * (dark + (1 - dark) * light) + 60 * light**24
        rim = (1 - np.clip(np.abs(normals[:, 2]), 0, 1)) ** 2
        alpha = np.ones(len(rim)) if mesh.opacity == 1 else mesh.opacity + (min(1.0, 4 * mesh.opacity) - mesh.opacity) * rim
        sides = placed[:, 1:, :2] - placed[:, :1, :2]
        front = sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0] > 0
        depths.append(placed[front, :, 2].mean(axis=1))
        corners.append(np.stack([centre + placed[front, :, 0], centre - placed[front, :, 1]], axis=2).reshape(-1, 6))
        colors.append(np.clip(np.rint(np.concatenate([color, 255 * alpha[:, None]], axis=1)[front]), 0, 255).astype(int))
    if not meshes:
        return
    order = np.argsort(np.concatenate(depths), kind="stable")
    places, paints = np.concatenate(corners)[order].tolist(), np.concatenate(colors)[order].tolist()
    for place, paint in zip(places, paints, strict=True):
        yield place, tuple(paint)


def _camera(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Rows: the directions of the screen's right, its top, and the camera, in the patient."""
    turn, lift = np.deg2rad([azimuth, elevation])
    ahead = np.array([np.sin(turn) * np.cos(lift), np.cos(turn) * np.cos(lift), np.sin(lift)])
    right = np.array([-np.cos(turn), np.sin(turn), 0.0])
    return np.stack([right, np.cross(ahead, right), ahead])


def _outline(shown: Viewed, most_faces: int) -> tuple[NDArray[np.float32], NDArray[np.int32]] | None:
    """Head or brain; None where the volume is a cut-out that tissue fills to its borders."""
    spacing = np.array(shown.image.spacing_mm)
    inside = solid(shown.image.values, shown.window)
    step = max(float((spacing * inside.shape).max()) / OUTLINE_VOXELS, float(spacing.min()))
    smooth = ndimage.gaussian_filter(inside.astype(np.float32), np.maximum(0.5 * step / spacing, 0.3))
    factors = spacing / step
    coarse = ndimage.zoom(smooth, factors, order=1, grid_mode=True, mode="nearest") > 0.5
    numbers, count = ndimage.label(ndimage.binary_opening(coarse))
    if not count:
        return None
    body = numbers == np.argmax(np.bincount(numbers.ravel())[1:]) + 1
    faces = [body.take(end, axis).mean() for axis in range(3) for end in (0, -1)]
    if sum(share > 0.5 for share in faces) >= 4:
        return None
    padded = np.pad(body, 4)
    body = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=3))[4:-4, 4:-4, 4:-4]
    affine = shown.image.affine.copy()
    scale = np.array(shown.image.shape) / body.shape
    affine[:3, 3] = shown.image.grid.to_world(0.5 * scale - 0.5)
    affine[:3, :3] *= scale
    return _mesh(body, affine, most_faces, smoothing=12)


def _mesh(
    mask: NDArray[np.bool_], affine: NDArray[np.float64], most_faces: int, *, smoothing: int = 15
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The smoothed surface of a mask that is not empty, in millimetres."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    start = np.array([part.start for part in box])
    # Between slices that lie far apart, distances in the patient give a slope where the voxels have a step; and a single voxel stays.
    body, spacing = np.pad(mask[box], 1), np.linalg.norm(affine[:3, :3], axis=0)
    depth = ndimage.distance_transform_edt(body, spacing) - ndimage.distance_transform_edt(~body, spacing)
    found, triangles, _, _ = marching_cubes(depth.astype(np.float32), 0.0)
    vertices = (found - 1 + start) @ affine[:3, :3].T + affine[:3, 3]
    vertices, faces = _smoothed(vertices, triangles, smoothing).astype(np.float32), triangles.astype(np.int32)
    if len(faces) > most_faces:
        vertices, faces = fast_simplification.simplify(vertices, faces, target_count=most_faces)
    corners = vertices[faces]
    if np.einsum("fd,fd->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) < 0:
        faces = faces[:, ::-1]
    return vertices.astype(np.float32), np.ascontiguousarray(faces, dtype=np.int32)


def _smoothed(vertices: NDArray[np.float64], faces: NDArray[Any], rounds: int) -> NDArray[np.float64]:
    """Without shrinking: one step in, one slightly longer out (Taubin, "A signal processing approach to fair surface design", 1995)."""
    count = len(vertices)
    if count < 30:
        return vertices
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    both = np.concatenate([pairs, pairs[:, ::-1]])
    linked = sparse.csr_array((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(count, count))
    linked.data[:] = 1
    degree = np.maximum(linked.sum(axis=1), 1)[:, None]
    for _ in range(rounds):
        for step in (0.5, -0.53):
            vertices = vertices + step * (linked @ vertices / degree - vertices)
    return vertices


def _within(inner: NDArray[np.bool_], outer: NDArray[np.bool_]) -> bool:
    """Whether most of one lies in the box around the other, so that a solid outer one would hide it."""
    box = ndimage.find_objects(outer.astype(np.uint8))[0]
    return bool(inner[box].sum() > 0.8 * inner.sum())


def _extent(meshes: Sequence[Surface]) -> tuple[NDArray[np.float64], float]:
    """Middle of the box around all, and the radius of the sphere around that."""
    every = np.concatenate([mesh.vertices for mesh in meshes]).astype(np.float64)
    middle = (every.min(axis=0) + every.max(axis=0)) / 2
    return middle, max(float(np.linalg.norm(every - middle, axis=1).max()), 1e-6)


def _encoded(values: NDArray[Any], kind: str) -> str:
    whole = np.rint(values) if np.dtype(kind).kind == "i" else values
    return base64.b64encode(np.ascontiguousarray(whole.astype(kind)).tobytes()).decode()

"""Colonoscopy phantoms: frames from inside a colon that never was, with polyps whose outline is known exactly.

A frame is made as a scope makes it: a bent tube with haustral folds and lesions (``colon_geometry``), lit from the scope's tip
(``colon_light``), seen by an imperfect camera (``scope_camera``). A polyp differs from the wall by its form, its pits, the vessels it
displaces and, as far as ``contrast`` says, its colour. Folds, swellings, residue, foam and highlights are not polyps.

The mask is the visible part of the head. As annotators of Kvasir-SEG (Jha et al., 2020) draw it, a stalk is not part of it; highlights,
foam and the marks printed over the picture are; what the black frame or a fold hides is not.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from shared.errors import UserError
from shared.files import atomic_path
from shared.phantoms.colon_geometry import Colon, View, draw_colon, trace, trace_lesion, trace_wall
from shared.phantoms.colon_lesion import LESION_SHAPES, Lesion, LesionShape, draw_lesion
from shared.phantoms.colon_light import Mucosa, draw_mucosa, shade, shadow
from shared.phantoms.scope_camera import Camera, aperture, develop, draw_camera, picture_axes

__all__ = ["ColonoscopyFrame", "Polyp", "colonoscopy_frame", "colonoscopy_video", "write_colonoscopy"]

Floats = NDArray[np.float32]
SMALLEST_SIDE = 32
_COARSE = 4
"""Shadows, and where a ray may start, are found on every fourth row and column."""
_PLACING = 44
"""Places for lesions are sought on a grid with so many along the shorter side, so that the scene is the same at every resolution."""
_BAND = 32768
"""Pixels worked on together: few enough to stay in the processor's cache."""
_ATTEMPTS = 12
_SMALLEST, _LARGEST = 0.004, 0.33


@dataclass(frozen=True, kw_only=True)
class Polyp:
    """One polyp as it is seen in a frame."""

    shape: LesionShape
    """Paris classification: pedunculated 0-Ip, sessile 0-Is, flat (slightly elevated) 0-IIa; lobulated is a 0-Is of several lobes."""
    centre_px: tuple[float, float]
    """Row and column of the centroid of its visible part."""
    area_fraction: float
    """Visible part, as a fraction of the whole frame."""
    contrast: float
    """0: the mucosa's own colour; 1: much redder or paler."""


@dataclass(frozen=True, kw_only=True)
class ColonoscopyFrame:
    """A frame and its truth."""

    image: NDArray[np.uint8]
    """[H, W, 3], RGB."""
    mask: NDArray[np.bool_]
    """[H, W]: polyp."""
    polyps: tuple[Polyp, ...]


@dataclass(frozen=True, kw_only=True)
class _Scene:
    colon: Colon
    mucosa: Mucosa
    camera: Camera
    view: View
    lesions: tuple[Lesion, ...]


def colonoscopy_frame(seed: int, *, height: int = 352, width: int = 416, polyps: int | None = None) -> ColonoscopyFrame:
    """The frame of this seed, always the same.

    Args:
        seed: any whole number from 0.
        height, width: size in pixels, at least 32 each.
        polyps: how many, 0 to 2; drawn if None: none in 20 % of frames, two in 10 %.

    Raises:
        UserError: if the size or the number of polyps is out of range.
    """
    scene = _draw_scene(seed, height, width, polyps)
    return _render(scene, height, width, np.random.Generator(np.random.PCG64([seed, 1])))


def colonoscopy_video(seed: int, *, frames: int, height: int = 352, width: int = 416) -> Iterator[ColonoscopyFrame]:
    """A short withdrawal: the first frame shows the scene of ``colonoscopy_frame(seed, polyps=1)``, then the scope draws back and sways.

    Raises:
        UserError: as ``colonoscopy_frame``.
    """
    scene = _draw_scene(seed, height, width, 1)
    for number in range(frames):
        moved = replace(scene, view=_withdrawn(scene.view, number)) if number else scene
        yield _render(moved, height, width, np.random.Generator(np.random.PCG64([seed, 1 + number])))


def write_colonoscopy(folder: Path, *, count: int, seed: int = 0, height: int = 352, width: int = 416, empty_fraction: float = 0.2) -> None:
    """Writes ``count`` frames as a labelled data set.

    Leaves images/phantom_0000.jpg (quality 95), masks/phantom_0000.png (0 and 255) and truth.csv (name, polyps, shapes, area_fraction,
    contrast; several polyps' values are joined by ";"). Each file is whole or absent; truth.csv comes last.

    Raises:
        UserError: if an argument is out of range or the folder cannot be written to.
    """
    if count < 1 or not 0 <= empty_fraction <= 1:
        raise UserError(f"Phantoms: count must be at least 1 and empty_fraction between 0 and 1; found {count} and {empty_fraction}.")
    kinds = np.random.Generator(np.random.PCG64([seed, 2]))
    empty = set(kinds.permutation(count)[: round(count * empty_fraction)].tolist())
    rows = []
    for number in range(count):
        polyps = 0 if number in empty else 2 if kinds.uniform() < 0.125 else 1
        frame = colonoscopy_frame(int(kinds.integers(2**31)), height=height, width=width, polyps=polyps)
        name = f"phantom_{number:04d}"
        with atomic_path(folder / "images" / f"{name}.jpg") as path:
            Image.fromarray(frame.image).save(path, quality=95)
        with atomic_path(folder / "masks" / f"{name}.png") as path:
            Image.fromarray(frame.mask.astype(np.uint8) * 255).save(path)
        shapes = ";".join(polyp.shape for polyp in frame.polyps)
        areas = ";".join(f"{polyp.area_fraction:.5f}" for polyp in frame.polyps)
        rows.append([name, len(frame.polyps), shapes, areas, ";".join(f"{polyp.contrast:.3f}" for polyp in frame.polyps)])
    with atomic_path(folder / "truth.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["name", "polyps", "shapes", "area_fraction", "contrast"])
        table.writerows(rows)


def _draw_scene(seed: int, height: int, width: int, polyps: int | None) -> _Scene:
    if seed < 0 or min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"Phantoms: the seed must not be negative and each side must have at least {SMALLEST_SIDE} pixels; "
            f"found seed {seed}, {height} x {width}."
        )
    if polyps is not None and polyps not in (0, 1, 2):
        raise UserError(f"Phantoms: a frame has 0, 1 or 2 polyps; found {polyps}.")
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = int(rng.choice(3, p=[0.2, 0.7, 0.1]))
    colon, mucosa, camera = draw_colon(rng), draw_mucosa(rng), draw_camera(rng)
    view = _draw_view(rng, colon)
    lesions: list[Lesion] = []
    for _ in range(drawn if polyps is None else polyps):
        lesions.append(_place_lesion(rng, colon, view, camera, lesions, height, width))
    return _Scene(colon=colon, mucosa=mucosa, camera=camera, view=view, lesions=tuple(lesions))


def _render(scene: _Scene, height: int, width: int, rng: np.random.Generator) -> ColonoscopyFrame:
    across, down = picture_axes(height, width)
    inside = aperture(scene.camera, height, width)
    coarse_across, coarse_down = across[::_COARSE], down[::_COARSE]
    rays = scene.view.rays(*_grid(coarse_across, coarse_down))
    depth = trace_wall(scene.colon, scene.view, rays)
    wall = depth.copy()
    for lesion in scene.lesions:
        trace_lesion(scene.colon, lesion, scene.view, rays, depth)
    lit = shadow(scene.colon, scene.lesions, scene.view, scene.view.origin[:, None] + rays * (0.985 * depth))
    coarse = (len(coarse_down), len(coarse_across))
    start = _starts(depth.reshape(coarse), height, width)
    close = ndimage.binary_dilation((depth < 0.998 * wall).reshape(coarse), np.ones((3, 3), bool), iterations=2)
    close = close.repeat(_COARSE, axis=0).repeat(_COARSE, axis=1)[:height, :width].ravel()

    seen = np.flatnonzero(inside)
    across, down = _grid(across, down)
    diffuse, film = np.zeros((3, height * width), np.float32), np.zeros(height * width, np.float32)
    found = np.zeros(height * width, np.int8)
    pixel = 2 * scene.view.angle / min(height, width)
    for band in np.array_split(seen, max(1, len(seen) // _BAND)):
        rays = scene.view.rays(across[band], down[band])
        row, column = np.divmod(band, width)
        hits = trace(scene.colon, scene.lesions, scene.view, rays, start[band], close[band])
        shaded = _at_depth(lit, depth, coarse, row, column, hits.depth)
        diffuse[:, band], film[band] = shade(scene.lesions, scene.mucosa, scene.view, hits, shaded, pixel)
        found[band] = hits.lesion
    label = found.reshape(height, width)
    image = develop(scene.camera, diffuse.reshape(3, height, width), film.reshape(height, width), inside, rng)
    polyps = []
    for number, lesion in enumerate(scene.lesions, start=1):
        rows, columns = np.nonzero(label == number)
        if len(rows):
            centre = (float(rows.mean()), float(columns.mean()))
            polyps.append(Polyp(shape=lesion.shape, centre_px=centre, area_fraction=len(rows) / label.size, contrast=lesion.contrast))
    return ColonoscopyFrame(image=image, mask=label > 0, polyps=tuple(polyps))


def _draw_view(rng: np.random.Generator, colon: Colon) -> View:
    """A tip inside the lumen that looks along it, or at the wall."""
    turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.55)
    origin = np.array([away * math.cos(turn), away * math.sin(turn), rng.uniform(-0.3, 0.3)], np.float32)
    room = float(colon.distance(origin[:, None])[0])
    if room < 0.1:  # a fold is in the way: look from the middle of the lumen instead
        origin[:2] *= 0.2
    along_wall = rng.uniform() < 0.5
    off = rng.uniform(0.1, 0.6) if along_wall else rng.uniform(0.6, 1.25)
    towards = rng.uniform(0, 2 * np.pi)
    forward = np.array([math.sin(off) * math.cos(towards), math.sin(off) * math.sin(towards), math.cos(off)])
    roll = rng.uniform(0, 2 * np.pi)
    right = np.cross([math.cos(roll), math.sin(roll), 0.1], forward)
    right /= np.linalg.norm(right)
    shine = rng.uniform(0, 2 * np.pi)
    offset = rng.uniform(0.05, 0.11)
    return View(
        origin=origin,
        axes=np.stack([right, np.cross(forward, right), forward]).astype(np.float32),
        angle=rng.uniform(0.72, 0.92),
        light=(offset * math.cos(shine), offset * math.sin(shine)),
    )


def _withdrawn(view: View, number: int) -> View:
    """The view some frames later, at a withdrawal of about a centimetre a second and 25 frames a second."""
    sway, nod = 0.05 * math.sin(0.21 * number), 0.04 * math.sin(0.13 * number)
    right, down, forward = view.axes
    forward = forward + np.float32(sway) * right + np.float32(nod) * down
    forward = forward / np.linalg.norm(forward)
    right = right - forward * (right @ forward)
    right = right / np.linalg.norm(right)
    return View(
        origin=view.origin - np.array([0, 0, 0.016 * number], np.float32),
        axes=np.stack([right, np.cross(forward, right), forward]).astype(np.float32),
        angle=view.angle,
        light=view.light,
    )


def _place_lesion(
    rng: np.random.Generator, colon: Colon, view: View, camera: Camera, others: list[Lesion], height: int, width: int
) -> Lesion:
    """A lesion where it is seen: a place in the picture and an area are drawn, and the lesion is fitted to both."""
    shape: LesionShape = LESION_SHAPES[rng.choice(4, p=[0.2, 0.34, 0.24, 0.22])]
    contrast = float(rng.uniform(0, 1) ** 1.3)
    wanted = float(np.exp(rng.uniform(np.log(0.01), np.log(0.28))))
    rows, columns = (round(side * _PLACING / min(height, width)) for side in (height, width))
    across, down = picture_axes(rows, columns)
    inside = aperture(camera, rows, columns).ravel()
    rays = view.rays(*_grid(across, down))
    depth = trace_wall(colon, view, rays)
    taken = np.zeros(len(depth), bool)
    for other in others:
        taken |= trace_lesion(colon, other, view, rays, depth) & inside
    free = inside & ~taken & (np.hypot(*_grid(across, down)) < 0.9)
    places = np.flatnonzero(free & (depth <= max(2.6, float(np.percentile(depth[free], 20)))))
    best, best_error = None, np.inf
    while best is None:
        for _ in range(_ATTEMPTS):
            place = rng.choice(places)
            distance, ray = depth[place], rays[:, place]
            foot = view.origin + ray * distance
            inward = _normal(colon, foot)
            seen = max(0.3, -float(inward @ ray)) if shape == "flat" else 0.9
            opening = math.tan(view.angle * math.sqrt(wanted * 4 * np.abs(across).max() * np.abs(down).max() / (np.pi * seen)))
            size = float(distance * opening / (1 + 0.6 * opening))
            lesion = draw_lesion(rng, shape=shape, foot=foot, inward=inward, size=size, contrast=contrast, hang=view.axes[1])
            for _ in range(3):
                size = min(max(size, 0.05), 0.55)
                lesion = replace(lesion, size=size)
                if float(np.linalg.norm(lesion.bounds[0] - view.origin)) < 1.1 * lesion.bounds[1]:
                    size *= 0.7  # it would touch the lens
                    continue
                visible = trace_lesion(colon, lesion, view, rays, depth.copy()) & inside
                area = float(visible.mean())
                good = _SMALLEST < area < _LARGEST and (visible & taken).sum() <= 0.3 * taken.sum()
                error = abs(math.log((area + 1e-4) / wanted)) + (0 if good else 3)
                if error < best_error and visible.any():
                    best, best_error = lesion, error
                if error < 0.35:
                    return lesion
                size *= min(max(math.sqrt(wanted / (area + 1e-4)), 0.6), 1.6)
    return best


def _normal(colon: Colon, point: Floats) -> Floats:
    """The wall's normal [3] around a point, smoothed over a little more than a fold's edge."""
    offsets = np.eye(3, dtype=np.float32) * 0.08
    slope = colon.distance(point[:, None] + offsets) - colon.distance(point[:, None] - offsets)
    normal: Floats = (slope / np.linalg.norm(slope)).astype(np.float32)
    return normal


def _grid(across: Floats, down: Floats) -> tuple[Floats, Floats]:
    """Every place of a picture with these columns [W] and rows [H], both [H * W]."""
    return np.tile(across, len(down)), np.repeat(down, len(across))


def _starts(depth: Floats, height: int, width: int) -> Floats:
    """Where rays may start, [H * W]: on the surface as interpolated where the coarse depths [h, w] are smooth, else well before it."""
    nearest, furthest = ndimage.minimum_filter(depth, 3, mode="nearest"), ndimage.maximum_filter(depth, 3, mode="nearest")
    row, column = np.arange(height), np.arange(width)
    down, right = (row % _COARSE / np.float32(_COARSE))[:, None], column % _COARSE / np.float32(_COARSE)
    row, column = row // _COARSE, column // _COARSE
    lines = depth[row] * (1 - down) + depth[np.minimum(row + 1, depth.shape[0] - 1)] * down
    between = lines[:, column] * (1 - right) + lines[:, np.minimum(column + 1, depth.shape[1] - 1)] * right
    before = np.maximum(nearest * np.float32(0.97) - np.float32(0.02), 0.02)
    starts: Floats = np.where((furthest < 1.12 * nearest)[row][:, column], between, before[row][:, column]).astype(np.float32)
    return starts.ravel()


def _at_depth(
    values: Floats, depths: Floats, coarse: tuple[int, int], row: NDArray[np.intp], column: NDArray[np.intp], depth: Floats
) -> Floats:
    """Coarse values [h * w] between their places, each counting as far as its depth is that of the pixel: nothing leaks over an edge."""
    total, weights = np.zeros_like(depth), np.full_like(depth, 1e-6)
    down, right = (row % _COARSE).astype(np.float32) / _COARSE, (column % _COARSE).astype(np.float32) / _COARSE
    upper, left = row // _COARSE, column // _COARSE
    rows = ((upper * coarse[1], 1.001 - down), (np.minimum(upper + 1, coarse[0] - 1) * coarse[1], down + 0.001))
    columns = ((left, 1.001 - right), (np.minimum(left + 1, coarse[1] - 1), right + 0.001))
    for first, vertical in rows:
        for second, horizontal in columns:
            place = first + second
            off = depths[place] / depth
            off -= 1
            off *= off
            weight = vertical * horizontal / (1 + 4e5 * off * off)
            total += weight * values[place]
            weights += weight
    return total / weights

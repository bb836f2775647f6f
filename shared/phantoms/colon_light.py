"""What the colonoscopy phantoms' colon looks like in the light of the scope: mucosa, vessels, pits, residue, shade, shadow and gloss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.phantoms.colon_geometry import Colon, Hits, View, gap
from shared.phantoms.colon_lesion import Lesion

__all__ = ["Mucosa", "draw_mucosa", "shade", "shadow"]

Floats = NDArray[np.float32]
_TILE = 256
_VESSELS = 1024
_VESSEL_MAPS = 6
"""Vessel trees take long to draw: a few are kept, and shifted and mirrored for each colon."""
_PIT_KINDS = ("round pits", "ridges")
"""As on hyperplastic polyps, and as on adenomas (Kudo et al., 1994)."""
_TEXTURES = ("grain", "swell", *_PIT_KINDS)
_SHADOW_STEPS = (0.05, 0.1, 0.16, 0.24, 0.34, 0.46, 0.6, 0.76)


@dataclass(frozen=True, kw_only=True)
class Mucosa:
    """How one colon's lining reflects light. Colours are linear RGB."""

    colour: Floats
    """[3]"""
    second: Floats
    """[3]: colour towards which it varies."""
    variation: float
    vessels: Floats
    """[1024, 1024, 1] in 0..1 over the whole circumference and as much length; repeats."""
    vessel_strength: float
    shift: tuple[float, float]
    """Where on this colon the repeating maps begin, in parts of them."""
    pits: str
    """Kind of the pits on lesions."""
    roughness: float
    gloss: float
    moisture: float
    """How much of the wall is wet enough to shine; 0: about half."""
    residue: float
    """Where the wall's residue field exceeds this, there is stool; above 3 there is none."""
    residue_colour: Floats
    falloff: float
    """Power of the distance with which the light falls; below 2, because the lining lights itself."""


def draw_mucosa(rng: np.random.Generator) -> Mucosa:
    """A lining at random."""
    palette = np.array([[0.6, 0.155, 0.06], [0.58, 0.21, 0.14], [0.56, 0.12, 0.062], [0.58, 0.19, 0.065], [0.6, 0.17, 0.09]])
    colour = palette[rng.integers(len(palette))] * rng.uniform(0.92, 1.08, 3)
    second = np.array([[0.6, 0.28, 0.10], [0.5, 0.11, 0.07], [0.62, 0.3, 0.22]])[rng.integers(3)]
    residue = rng.uniform(1.2, 2.2) if rng.uniform() < 0.35 else 9.0
    vessels = _vessels(int(rng.integers(_VESSEL_MAPS)))[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    return Mucosa(
        colour=colour.astype(np.float32),
        second=second.astype(np.float32),
        variation=rng.uniform(0.1, 0.4),
        vessels=np.ascontiguousarray(vessels),
        shift=(rng.uniform(), rng.uniform()),
        vessel_strength=rng.choice([rng.uniform(0.0, 0.3), rng.uniform(0.5, 1.1)], p=[0.35, 0.65]),
        pits=_PIT_KINDS[rng.integers(len(_PIT_KINDS))],
        roughness=rng.uniform(0.01, 0.06),
        gloss=rng.uniform(0.4, 1.6),
        moisture=rng.uniform(-1.6, 0.2),
        residue=residue,
        residue_colour=np.array([[0.52, 0.33, 0.05], [0.4, 0.23, 0.05], [0.28, 0.19, 0.05]], np.float32)[rng.integers(3)],
        falloff=rng.uniform(1.7, 2.2),
    )


def shade(lesions: Sequence[Lesion], mucosa: Mucosa, view: View, hits: Hits, lit: Floats, pixel: float) -> tuple[Floats, Floats]:
    """Light that reaches the camera: diffuse [3, N], coloured, and from the wet film [N], white; ``lit`` [N] is
    from ``shadow``, ``pixel`` the angle between neighbouring rays in radians."""
    normals, points = hits.normals, hits.points
    hollow, cloud, residue = hits.detail
    cosine, sine = np.cos(hits.angle), np.sin(hits.angle)
    # A unit is the circumference, along the tube as around it.
    around = hits.angle * (1 / (2 * np.pi)) + mucosa.shift[0]
    along = (points[2] - 0.25 * hits.distance) * (1 / (2 * np.pi)) + mucosa.shift[1]
    slope_a, slope_b, value = _lookup(_texture("grain"), around * 7, along * 7)
    swell_a, swell_b, pool = _lookup(_texture("swell"), around * 4, along * 4)
    tangent_a = np.stack([-sine, cosine, np.zeros_like(sine)])
    tangent_b = np.stack([np.zeros_like(sine), np.zeros_like(sine), np.ones_like(sine)])

    spread = np.clip(0.5 + 0.5 * cloud, 0, 1) * mucosa.variation
    albedo = mucosa.colour[:, None] + (mucosa.second - mucosa.colour)[:, None] * spread
    albedo *= 1 + 0.05 * value + 0.07 * cloud
    vessel = _lookup(mucosa.vessels, around, along)[0]
    vessel *= mucosa.vessel_strength * np.clip(0.65 - 0.35 * cloud, 0.15, 1)
    albedo *= 1 - np.array([[0.3], [0.62], [0.55]], np.float32) * vessel

    open_to_light = np.clip(1 - 1.1 * np.maximum(hollow, 0), 0.35, 1) * np.clip(1 - 0.5 * np.minimum(hollow, 0), 1, 1.15)
    wet = np.full(len(around), mucosa.roughness, np.float32)
    for number, lesion in enumerate(lesions, start=1):
        rays, local, distance = hits.near[number]
        head = hits.lesion[rays] == number
        open_to_light[rays] *= np.where(head, 1, 1 - 0.28 * np.exp(-np.maximum(distance, 0) / (0.13 * lesion.size)))
        # A lesion pushes the vessels aside: none cross it, few come near.
        _paint_lesion(lesion, mucosa, rays, local, distance, albedo, cloud)
        rays, local = rays[head], local[:, head]
        unrolled = lesion.unrolled(local)
        a, b, _ = _lookup(_texture(mucosa.pits), *unrolled * (0.55 / lesion.pits[1]))
        slope_a[rays], slope_b[rays] = a, b
        swell_a[rays], swell_b[rays], _ = _lookup(_texture("swell"), *unrolled * max(0.3, lesion.size * 0.6))
        # Pits smaller than a pixel or two would only flicker.
        visible = np.clip(lesion.size * lesion.pits[1] / (20 * pixel * hits.depth[rays]) - 0.5, 0, 1)
        wet[rays] = 0.03 + (0.03 + 0.12 * lesion.pits[0]) * visible
        tangent_a[:, rays], tangent_b[:, rays] = lesion.frame[0][:, None], lesion.frame[1][:, None]
        residue[rays] -= 0.8
        cloud[rays] += 0.6
    if mucosa.residue < 3:
        stool = np.clip((residue + 0.06 * value + 0.12 * pool - mucosa.residue) * 1.8, 0, 1)
        thick = np.clip((residue + 0.2 * pool - mucosa.residue - 0.5) * 1.5, 0, 1)
        albedo += (mucosa.residue_colour[:, None] * (1 + 0.12 * value + 0.2 * pool) - albedo) * (0.45 * stool + 0.45 * thick)
        wet += 0.12 * thick

    to_eye = view.origin[:, None] - points
    to_eye /= hits.depth
    facing_eye = np.maximum((normals * to_eye).sum(axis=0), 0)
    relief = np.minimum(2.5 * facing_eye, 1)  # at a grazing angle a pixel covers many bumps, which cancel
    slope_a, slope_b = (slope_a * wet + 0.1 * swell_a) * relief, (slope_b * wet + 0.1 * swell_b) * relief
    rough = normals - slope_a * tangent_a - slope_b * tangent_b
    rough /= np.sqrt((rough * rough).sum(axis=0))
    to_lamp = view.lamp[:, None] - points
    reach = np.sqrt((to_lamp * to_lamp).sum(axis=0))
    to_lamp /= reach
    soft = 0.45 * normals + 0.55 * rough
    facing = np.clip((soft * to_lamp).sum(axis=0) * 0.92 + 0.08, 0, 1)
    strength = 1 / (reach + 0.05) ** np.float32(mucosa.falloff)
    direct = strength * (0.72 * facing * (0.12 + 0.88 * lit) + 0.28 * facing_eye)
    direct += 0.02 * np.exp(-0.6 * reach)
    direct *= open_to_light
    # Light that went through the lining comes out redder: shaded places keep red longest.
    glow = np.array([[0.06], [0.012], [0.006]], np.float32) * (strength * open_to_light * (0.4 + 0.6 * lit))
    diffuse = albedo * direct + glow * albedo[:1]
    diffuse[1:] *= np.exp(np.array([[-0.16], [-0.2]], np.float32) * hits.depth)  # far light has met more mucosa on its way

    half = to_lamp + to_eye
    half /= np.sqrt((half * half).sum(axis=0)) + 1e-6
    ripple = soft - (0.4 * swell_a) * tangent_a - (0.4 * swell_b) * tangent_b
    ripple /= np.sqrt((ripple * ripple).sum(axis=0))
    mirror = np.clip((ripple * half).sum(axis=0), 0, 1) - 1
    wetness = np.clip(1.6 * cloud + 0.5 * pool + mucosa.moisture, 0.0, 1)
    film = strength * lit * (mucosa.gloss * wetness * np.exp(mirror * 420) * 30 + np.exp(mirror * 30) * 0.05)
    return diffuse, film.astype(np.float32)


def shadow(colon: Colon, lesions: Sequence[Lesion], view: View, points: Floats) -> Floats:
    """How much of the lamp is seen from points [3, N], 0 to 1, [N]. The lamp is not a point: shadows are soft (Quilez's estimate)."""
    to_lamp = view.lamp[:, None] - points
    reach = np.sqrt((to_lamp * to_lamp).sum(axis=0))
    seen = np.ones(points.shape[1], np.float32)
    for part in _SHADOW_STEPS:
        np.minimum(seen, 0.5 + gap(colon, lesions, points + to_lamp * np.float32(part)) / (0.07 * part * reach + 0.004), out=seen)
    seen = np.clip(seen, 0, 1)
    return seen * seen * (3 - 2 * seen)


def _paint_lesion(
    lesion: Lesion,
    mucosa: Mucosa,
    rays: NDArray[np.intp],
    local: Floats,
    distance: Floats,
    albedo: Floats,
    cloud: Floats,
) -> None:
    """Colours the head of a lesion in ``albedo`` [3, N], in place; at contrast 0 only its texture and the missing vessels tell it."""
    own = np.clip(1.5 - distance / (0.06 * lesion.size), 0, 1)  # where the join bulges, the colours run into each other
    unrolled = lesion.unrolled(local)
    _, _, pit = _lookup(_texture(mucosa.pits), *unrolled * (0.55 / lesion.pits[1]))
    tint = 1 + lesion.contrast * (lesion.tint - 1)
    blotch = _lookup(_texture("grain"), *unrolled * 0.13 + 0.3)[2]
    base = mucosa.colour[:, None] + (mucosa.second - mucosa.colour)[:, None] * (np.clip(0.5 + 0.5 * cloud[rays], 0, 1) * mucosa.variation)
    colour = base * tint[:, None] * (1 + 0.08 * blotch)
    colour *= 1 + np.array([[0.05], [0.1], [0.1]], np.float32) * (lesion.pits[0] * np.clip(pit, -2, 2))
    blood = np.clip((blotch + 0.6 * pit - 2.3 + 0.9 * lesion.blood) * 1.2, 0, 1) * min(0.9, 1.5 * lesion.blood)
    colour *= 1 - np.array([[0.35], [0.8], [0.8]], np.float32) * blood
    albedo[:, rays] += (colour - albedo[:, rays]) * own


def _lookup(tile: Floats, a: Floats, b: Floats) -> Floats:
    """Values [C, N] of a repeating tile [M, M, C], M a power of two, whose side is one unit, between its samples."""
    side = tile.shape[0]
    a, b = a * side, b * side
    row, column = np.floor(a), np.floor(b)
    a -= row
    b -= column
    i, j = row.astype(np.int32), column.astype(np.int32)
    i_next, j_next = ((i + 1) & (side - 1)) * side, (j + 1) & (side - 1)
    i = (i & (side - 1)) * side
    j &= side - 1
    table = tile.reshape(-1, tile.shape[2])
    both = a * b
    values = table.take(i + j, axis=0) * (1 - a - b + both)[:, None]
    values += table.take(i_next + j, axis=0) * (a - both)[:, None]
    values += table.take(i + j_next, axis=0) * (b - both)[:, None]
    values += table.take(i_next + j_next, axis=0) * both[:, None]
    return np.ascontiguousarray(values.T)


@lru_cache
def _texture(kind: str) -> Floats:
    """Slopes and value of a repeating height map, [256, 256, 3]; slopes per four samples, to keep them near 1. The same for all colons."""
    rng = np.random.Generator(np.random.PCG64(_TEXTURES.index(kind)))
    if kind == "grain":
        height = _band(rng, 2, 7) + 0.8 * _band(rng, 6, 17)
    elif kind == "swell":
        height = _band(rng, 15, 41) + 0.22 * _band(rng, 5, 15)
    elif kind == "round pits":
        height = _band(rng, 7, 13) + 0.25 * _band(rng, 3, 7)
    else:
        height = np.abs(_band(rng, 8, 15)) * 1.6 - 1.3 + 0.25 * _band(rng, 3, 7)
    slopes = [(np.roll(height, -1, axis) - np.roll(height, 1, axis)) * 2 for axis in (0, 1)]
    return np.stack([*slopes, height], axis=2).astype(np.float32)


def _band(rng: np.random.Generator, fine: int, broad: int) -> Floats:
    """Noise between two scales, of unit variance, [256, 256], without a seam."""
    noise = rng.standard_normal((_TILE, _TILE), dtype=np.float32)
    for _ in range(2):
        noise = ndimage.uniform_filter(noise, fine, mode="wrap")
    noise -= ndimage.uniform_filter(noise, broad, mode="wrap")
    unit: Floats = noise / noise.std()
    return unit


@lru_cache
def _vessels(number: int) -> Floats:
    """Branching vessels: each generation leaves the one before at an angle, is thinner, paler and more tortuous."""
    rng = np.random.Generator(np.random.PCG64([7, number]))
    image = np.zeros((_VESSELS, _VESSELS), np.float32)
    step = 1.1
    count, length = int(rng.integers(26, 44)), 440
    place = rng.uniform(0, _VESSELS, (2, count))
    heading = rng.uniform(0, 2 * np.pi, count)
    generations = []
    for width, dark, curl in ((3.0, 1.0, 0.05), (2.0, 0.8, 0.09), (1.0, 0.6, 0.13), (0.0, 0.45, 0.17)):
        turns = heading[:, None] + np.cumsum(rng.normal(0, curl, (len(heading), length)), axis=1)
        turns += 0.35 * np.sin(np.arange(length) * 0.09 + rng.uniform(0, 6, len(heading))[:, None])
        path = place[:, :, None] + step * np.cumsum(np.stack([np.cos(turns), np.sin(turns)]), axis=2)
        generations.append((path, turns, width, dark * rng.uniform(0.6, 1, len(heading))))
        branches = 3 * len(heading)
        parent, at = rng.integers(len(heading), size=branches), rng.integers(length // 8, length, size=branches)
        place = path[:, parent, at]
        heading = turns[parent, at] + rng.choice([-1, 1], branches) * rng.uniform(0.4, 1.1, branches)
        length = int(length * 0.5)
    for path, turns, width, tone in reversed(generations):
        taper = np.linspace(1, 0.55, path.shape[2])
        for offset in np.arange(-width / 2, width / 2 + 0.01, 0.9):
            rows = (path[0] - np.sin(turns) * offset * taper).astype(np.intp) % _VESSELS
            columns = (path[1] + np.cos(turns) * offset * taper).astype(np.intp) % _VESSELS
            image[rows, columns] = tone[:, None] * taper
    smooth: Floats = ndimage.gaussian_filter(image, 0.6, mode="wrap")[..., None]
    return smooth

"""The colon of the colonoscopy phantoms: a bent tube with haustral folds and lesions on its wall, and where the rays of a scope meet it.

Lengths are in units of the tube's mean radius (about 25 mm). The tube runs along z; its wall is a height map over z and angle, so that the
wall costs the same whatever its shape; a lesion is a signed distance in its own frame, joined to the wall smoothly. Rays are followed by
sphere tracing (Hart, "Sphere tracing", The Visual Computer, 1996), first on a coarse grid, then from there on the full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.phantoms.colon_lesion import Lesion, union

__all__ = ["Colon", "Hits", "View", "draw_colon", "gap", "trace", "trace_lesion", "trace_wall"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

Z_START, Z_STEP, Z_COUNT = -2.0, 0.02, 512
ANGLE_COUNT = 256
_FARTHEST = 9.0
_SAFETY = 0.5
"""Folds are at most about twice as steep as the axis, so this part of the radial gap is never much more than the distance."""


@dataclass(frozen=True, kw_only=True)
class Colon:
    """The wall on a grid of z and of angle, the angle counted in quarter turns along a diamond, which needs no arc tangent."""

    radius: Floats
    """[Z_COUNT, ANGLE_COUNT + 2]; the last two columns repeat the first two."""
    detail: Floats
    """[Z_COUNT, ANGLE_COUNT + 2, 5]: slope along z, slope along the angle, depth of the hollow, variation of colour, residue."""
    bend: float
    pace: float
    """Beyond z = 0 the axis lies at x = bend (1 - cos(pace z))."""

    def cell(self, points: Floats) -> tuple[Floats, Floats, Floats, NDArray[np.intp], Floats, Floats]:
        """points [3, N] -> x and y from the axis, distance from it, flat index of the grid cell, place in the cell along z and angle."""
        z = np.clip((points[2] - Z_START) * (1 / Z_STEP), 0, Z_COUNT - 1.01)
        row = z.astype(np.intp)
        z -= row
        x = points[0] + self.bend * (np.cos(self.pace * np.maximum(points[2], 0)) - 1)
        y = points[1]
        turn = (2 - np.copysign(1 + x / (np.abs(x) + np.abs(y) + 1e-9), y)) * (ANGLE_COUNT / 4)
        column = turn.astype(np.intp)
        turn -= column
        row *= ANGLE_COUNT + 2
        row += column
        return x, y, np.sqrt(x * x + y * y) + 1e-6, row, z, turn

    def at(self, index: NDArray[np.intp], z: Floats, turn: Floats) -> Floats:
        """The wall's radius in these places of these cells, [N]."""
        table, width = self.radius.ravel(), ANGLE_COUNT + 2
        low = table.take(index)
        low += (table.take(index + 1) - low) * turn
        index = index + width
        high = table.take(index)
        high += (table.take(index + 1) - high) * turn
        high -= low
        high *= z
        high += low
        return high

    def detail_at(self, index: NDArray[np.intp], z: Floats, turn: Floats) -> Floats:
        """The details in these places of these cells, [5, N]."""
        table, width = self.detail.reshape(-1, self.detail.shape[-1]), ANGLE_COUNT + 2
        both = z * turn
        values = table.take(index, axis=0) * (1 - z - turn + both)[:, None]
        values += table.take(index + 1, axis=0) * (turn - both)[:, None]
        values += table.take(index + width, axis=0) * (z - both)[:, None]
        values += table.take(index + (width + 1), axis=0) * both[:, None]
        return np.ascontiguousarray(values.T)

    def distance(self, points: Floats) -> Floats:
        """A lower bound of the distance to the wall from points [3, N] inside the tube; negative outside."""
        _, _, r, index, z, turn = self.cell(points)
        return (self.at(index, z, turn) - r) * _SAFETY


@dataclass(frozen=True, kw_only=True)
class View:
    """Where the scope's tip is, where it looks, and how wide."""

    origin: Floats
    """[3]"""
    axes: Floats
    """[3, 3]: right, down and forward, one a row."""
    angle: float
    """Radians off the axis at half the shorter side of the picture; the angle grows in proportion to the distance from its centre."""
    light: tuple[float, float]
    """The lamp, right of and below the camera."""

    def rays(self, across: Floats, down: Floats) -> Floats:
        """Unit directions [3, N] of places in the picture, in units of half its shorter side from its centre."""
        distance = np.sqrt(across * across + down * down) + 1e-6
        off = np.minimum(distance * self.angle, 2.6)
        sideways = np.sin(off) / distance
        rays: Floats = self.axes.T @ np.stack([across * sideways, down * sideways, np.cos(off)])
        return rays

    @property
    def lamp(self) -> Floats:
        """[3]"""
        lamp: Floats = self.origin + self.axes[0] * np.float32(self.light[0]) + self.axes[1] * np.float32(self.light[1])
        return lamp


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What the rays met. N is rows times columns."""

    depth: Floats
    """[N]"""
    points: Floats
    """[3, N]"""
    normals: Floats
    """[3, N], towards the lumen."""
    lesion: NDArray[np.int8]
    """[N]: 0 for the wall and for stalks, i for the head of lesion i."""
    near: dict[int, tuple[NDArray[np.intp], Floats, Floats]]
    """For lesion i: the rays that pass it, their points in its frame [3, M], and the distance of these from its head [M]."""
    detail: Floats
    """[3, N]: depth of the hollow, variation of colour, residue."""
    angle: Floats
    """[N]: radians around the tube."""
    distance: Floats
    """[N]: from the tube's axis."""


def gap(colon: Colon, lesions: Sequence[Lesion], points: Floats) -> Floats:
    """A lower bound of the distance from points [3, N] to whatever is nearest."""
    distance = colon.distance(points)
    for lesion in lesions:
        head, stalk = lesion.distances(lesion.local(points))
        distance = union(distance, union(head, stalk, 0.2 * lesion.size)[0], lesion.join)[0]
    return distance


def trace_wall(colon: Colon, view: View, rays: Floats) -> Floats:
    """Depth [N] at which rays [3, N] from the scope meet the wall."""
    return _march(colon, (), view.origin, rays, np.full(rays.shape[1], 0.02, np.float32), 36)


def trace_lesion(colon: Colon, lesion: Lesion, view: View, rays: Floats, depth: Floats) -> Bools:
    """Which of the rays [3, N] see the lesion's head, given the ``depth`` [N] of what else there is; updates ``depth`` in place."""
    passing, entry = _passing(lesion, view.origin, rays)
    passing = passing[entry[passing] < depth[passing]]
    reached = _march(colon, (lesion,), view.origin, rays[:, passing], np.maximum(entry[passing], 0.02), 26)
    nearer = reached < depth[passing]
    passing, reached = passing[nearer], reached[nearer]
    depth[passing] = reached
    seen = np.zeros(len(depth), bool)
    seen[passing] = _nearest_head(colon, (lesion,), view.origin[:, None] + rays[:, passing] * reached) == 1
    return seen


def trace(colon: Colon, lesions: Sequence[Lesion], view: View, rays: Floats, start: Floats, close: Bools) -> Hits:
    """What rays [3, N] from the scope meet; ``start`` [N] is a depth before which there is nothing.

    ``close`` [N] says which rays may meet a lesion or its join with the wall; the others are spared the search.
    """
    depth = np.empty_like(start)
    plain, others = np.flatnonzero(~close), np.flatnonzero(close)
    depth[plain] = _march(colon, (), view.origin, rays[:, plain], start[plain], 16)
    depth[others] = _march(colon, lesions, view.origin, rays[:, others], start[others], 16)

    points = rays * depth
    points += view.origin[:, None]
    x, y, r, index, z, turn = colon.cell(points)
    slope_z, slope_angle, *detail = colon.detail_at(index, z, turn)
    cosine, sine = x / r, y / r
    slope_angle /= r
    slope_z += cosine * (colon.bend * colon.pace) * np.sin(colon.pace * np.maximum(points[2], 0))
    normals = np.stack([-cosine - sine * slope_angle, -sine + cosine * slope_angle, slope_z])
    normals /= np.sqrt((normals * normals).sum(axis=0))

    label = np.zeros(len(start), np.int8)
    label[others] = _nearest_head(colon, lesions, points[:, others])
    near = {}
    for number, lesion in enumerate(lesions, start=1):
        slope, share = _lesion_slope(colon, lesion, lesion.local(points[:, others]), points[:, others])
        normals[:, others] += (slope - normals[:, others]) * share
        those = _passing(lesion, view.origin, rays)[0]
        local = lesion.local(points[:, those])
        near[number] = (those, local, lesion.distances(local)[0])
    normals /= np.sqrt((normals * normals).sum(axis=0)) + 1e-6
    return Hits(
        depth=depth, points=points, normals=normals, lesion=label, near=near, detail=np.stack(detail), angle=np.arctan2(y, x), distance=r
    )


def draw_colon(rng: np.random.Generator) -> Colon:
    """A stretch of colon at random: bend, cross-section, folds, colour variation and residue."""
    z = (Z_START + Z_STEP * np.arange(Z_COUNT, dtype=np.float32))[:, None]
    turn = np.arange(ANGLE_COUNT + 2, dtype=np.float32) * np.float32(4 / ANGLE_COUNT) % 4
    along = np.where(turn <= 2, 1 - turn, turn - 3)
    angle = np.arctan2(np.where(turn <= 2, 1 - np.abs(along), np.abs(along) - 1), along).astype(np.float32)[None, :]

    triangular, towards = rng.uniform(0.02, 0.14), rng.uniform(0, 2 * np.pi)
    radius = (1 - triangular * np.cos(3 * (angle - towards)) + 0.05 * np.sin(1.3 * z + angle + towards)).astype(np.float32)
    height, sharp = rng.uniform(0.25, 0.62), rng.uniform(0.03, 0.08)
    place = rng.uniform(-1.6, -1.0)
    while place < Z_START + Z_STEP * Z_COUNT:
        lean, side, width = rng.uniform(-0.4, 0.4), rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.27) + 0.18 * height
        extent = 0.5 + 0.5 * np.cos(angle - side)
        crescent = (0.08 + 0.92 * extent ** rng.uniform(0.6, 2.4)) * (1 - 0.25 * np.cos(3 * (angle - towards)))
        fold = (
            place
            + lean * np.cos(angle - side)
            + 0.09 * np.sin(2 * angle + 3 * side)
            + 0.06 * np.sin(3 * angle + side)
            + 0.03 * np.sin(5 * angle - 2 * side)
        )
        nearby = slice(max(0, int((place - Z_START - 1.6) / Z_STEP)), max(0, int((place - Z_START + 1.6) / Z_STEP)))
        away = np.sqrt((z[nearby] - fold) ** 2 + sharp**2) - sharp
        radius[nearby] -= (height * rng.uniform(0.45, 1.15) * crescent * np.exp(-away / width)).astype(np.float32)
        place += rng.uniform(0.45, 1.15)
    for _ in range(rng.integers(1, 5)):
        radius -= _bulge(rng, z, angle)
    # Beyond the last fold the tube closes, so that every ray ends somewhere; no light reaches so far.
    np.maximum(radius, 0.22, out=radius)
    radius *= np.clip((Z_START + Z_STEP * Z_COUNT - 0.1 - z) / 1.5, 0.02, 1) ** 0.5

    slope_angle = np.gradient(radius[:, : ANGLE_COUNT + 1], np.unwrap(angle[0, : ANGLE_COUNT + 1]).astype(np.float32), axis=1)
    slope_angle[:, 0] = slope_angle[:, -1] = (slope_angle[:, 0] + slope_angle[:, -1]) / 2
    slope_angle = np.concatenate([slope_angle, slope_angle[:, 1:2]], axis=1)
    hollow = radius - ndimage.uniform_filter(ndimage.uniform_filter(radius, (41, 31), mode="nearest"), (31, 25), mode="nearest")
    cloud = _cloud(rng, 11)
    residue = _cloud(rng, 4) + 0.35 * _cloud(rng, 2)
    detail = np.stack([np.gradient(radius, Z_STEP, axis=0), slope_angle, hollow, cloud, residue], axis=2).astype(np.float32)
    return Colon(radius=radius, detail=detail, bend=rng.uniform(0.1, 1.0), pace=rng.uniform(0.35, 0.7))


def _bulge(rng: np.random.Generator, z: Floats, angle: Floats) -> Floats:
    """A soft swelling under the ordinary mucosa, which at a glance may pass for a polyp."""
    width = rng.uniform(0.15, 0.45)
    away = np.angle(np.exp(1j * (angle - rng.uniform(-np.pi, np.pi)))) ** 2 + (z - rng.uniform(0.2, 3.5)) ** 2
    return (rng.uniform(0.25, 0.6) * width * np.exp(-away / (2 * width**2))).astype(np.float32)


def _cloud(rng: np.random.Generator, smooth: int) -> Floats:
    """Smooth noise of unit variance on the wall's grid, without a seam, [Z_COUNT, ANGLE_COUNT + 2]."""
    noise = rng.standard_normal((Z_COUNT // 4, ANGLE_COUNT // 4), dtype=np.float32)
    for _ in range(2):  # two box filters: nearly a Gaussian
        noise = ndimage.uniform_filter(noise, smooth, mode="wrap")
    noise = ndimage.uniform_filter(noise.repeat(4, axis=0).repeat(4, axis=1), 5, mode="wrap") / noise.std()
    return np.concatenate([noise, noise[:, :2]], axis=1)


def _lesion_slope(colon: Colon, lesion: Lesion, local: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Normal [3, N] of the lesion's surface, and how much it counts beside the wall's [N]."""
    join = 0.2 * lesion.size
    slope = np.zeros_like(local)
    for corner in np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32):
        slope += corner[:, None] * union(*lesion.distances(local + 0.02 * corner[:, None]), join)[0]
    slope = lesion.frame.T @ slope
    slope /= np.sqrt((slope * slope).sum(axis=0)) + 1e-9
    own = union(*lesion.distances(local), join)[0]
    return slope, union(colon.distance(points), own, lesion.join)[1]


def _nearest_head(colon: Colon, lesions: Sequence[Lesion], points: Floats) -> NDArray[np.int8]:
    """The lesion to whose head each point belongs, counted from 1; 0 where the wall or a stalk is nearer."""
    nearest, label = colon.distance(points), np.zeros(points.shape[1], np.int8)
    for number, lesion in enumerate(lesions, start=1):
        head, stalk = lesion.distances(lesion.local(points))
        label[head < nearest] = number
        nearest = np.minimum(nearest, head)
        label[stalk < nearest] = 0
        nearest = np.minimum(nearest, stalk)
    return label


def _passing(lesion: Lesion, origin: Floats, rays: Floats) -> tuple[NDArray[np.intp], Floats]:
    """The rays that meet the sphere around the lesion, and where each ray of all would enter it [N]."""
    centre, radius = lesion.bounds
    to = centre - origin
    along = to @ rays
    inside = radius**2 - float(to @ to) + along * along
    entry = along - np.sqrt(np.maximum(inside, 0))
    return np.flatnonzero((inside > 0) & (along + radius > 0)), entry


def _march(colon: Colon, lesions: Sequence[Lesion], origin: Floats, rays: Floats, start: Floats, steps: int) -> Floats:
    """Depth [N] at which rays [3, N] from ``start`` [N] come close to a surface."""
    depth = start.copy()
    active = np.arange(len(depth))
    moving, reached = rays, depth.copy()
    before, went = np.zeros_like(depth), np.zeros_like(depth)
    for step in range(steps):
        distance = gap(colon, lesions, origin[:, None] + moving * reached)
        # A bound is never far off the truth for long: if it shrank steadily, the next step may go as far as that line says.
        shrink = np.maximum((before - distance) / (went + 1e-9), 0.2) if step else np.ones_like(distance)
        went = np.where((shrink < 1.2) & (np.abs(distance) < 0.05), distance / shrink, distance)
        before = distance
        reached = reached + went
        if step % 2:
            depth[active] = reached
            going = (np.abs(went) > 0.0015 * reached) & (reached < _FARTHEST)
            active, moving, reached, before, went = active[going], moving[:, going], reached[going], before[going], went[going]
            if not len(active):
                break
    depth[active] = reached
    return np.clip(depth, 0.02, _FARTHEST)

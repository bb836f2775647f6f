"""One person's head: the template bent smoothly at random, and bent further where a tumour pushes the brain aside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.phantoms.head_grid import Grid
from shared.phantoms.head_template import depth_map, head_template

__all__ = ["Anatomy", "draw_anatomy"]

Floats = NDArray[np.float32]

_LOW = (-112.0, -148.0, -124.0)
_STEP = 4
_SIZE = (57, 72, 61)
_WAVE = 28
"""mm between the knots of the random bend."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The way from a place in the head, in mm with x to the right, y to the front and z upwards, to its place in the template."""

    bend: Grid
    """Displacement in mm, [X, Y, Z, 3], on a lattice over the head."""

    def in_template(self, points: Floats) -> Floats:
        """points [3, N] of the head -> points [3, N] of the template; what is beyond the lattice is taken to be as at its end."""
        low = np.array(self.bend.origin, np.float32)[:, None]
        high = low + np.float32(self.bend.step) * (np.array(self.bend.values.shape[:3], np.float32)[:, None] - 1)
        return np.clip(points, low, high) + self.bend.at(points).T

    def tissues(self, points: Floats, step: int) -> Floats:
        """Fractions [N, 7] of the template's tissues, averaged over about ``step`` mm, at points [3, N]."""
        return head_template(step).at(self.in_template(points)) * np.float32(1 / 255)

    def depth(self, points: Floats) -> Floats:
        """mm [N] beneath the inner table of the skull at points [3, N], negative outside."""
        return depth_map().at(self.in_template(points))[:, 0]

    def brain(self) -> Floats:
        """Places [3, N] all over the brain and its fluid, without the cord, 4 mm apart."""
        points = self.bend.nodes()
        template = self.in_template(points)
        brain: Floats = points[:, (depth_map().at(template)[:, 0] > 0) & (template[2] > -70)]
        return brain

    def places(self) -> Floats:
        """Places [3, N] all over the head and around it, 8 mm apart."""
        points = self.bend.nodes().reshape(3, *self.bend.values.shape[:3])
        return points[:, ::2, ::2, ::2].reshape(3, -1)

    def pushed(self, centre: Floats, radius: float, strength: float) -> Anatomy:
        """The same head once a ball of ``radius`` mm around ``centre`` has grown and the brain has given way by ``strength`` of its volume.

        Brain is incompressible, so a point at distance r was at the cube root of r^3 - strength radius^3. The skull stays where it is.
        """
        points = self.bend.nodes()
        away = points - centre[:, None]
        distance = np.sqrt((away * away).sum(axis=0)) + np.float32(1e-3)
        before = np.cbrt(np.maximum(distance**3 - np.float32(strength * radius**3), (distance * np.float32(0.55)) ** 3))
        yields = np.clip((self.depth(points) - 1) / 14, 0, 1)
        before = distance + (before - distance) * yields * yields * (3 - 2 * yields)
        moved = centre[:, None] + away * (before / distance)
        bend = (self.in_template(moved) - points).T.reshape(self.bend.values.shape)
        return Anatomy(bend=Grid(values=bend.astype(np.float32), origin=self.bend.origin, step=self.bend.step))


def draw_anatomy(rng: np.random.Generator, deformation_mm: float) -> Anatomy:
    """A head whose size and form depart from the template by about ``deformation_mm``, mirrored or not."""
    share = deformation_mm / 3.0
    scale = np.exp(rng.normal(0, 0.03 * share, 3)) * np.exp(rng.normal(0, 0.02 * share))
    mirror = 1 if rng.uniform() < 0.5 else -1
    knots = [int(np.ceil(_STEP * side / _WAVE)) + 3 for side in _SIZE]
    waves: NDArray[Any] = rng.standard_normal((*knots, 3)) * (1.5 * deformation_mm)
    for axis, side in enumerate(_SIZE):
        waves = np.moveaxis(np.tensordot(_spline(side, knots[axis]), waves, axes=(1, axis)), 0, axis)
    bend = waves.astype(np.float32)
    lattice = Grid(values=bend, origin=_LOW, step=float(_STEP))
    points = lattice.nodes()
    target = points / scale[:, None] + bend.reshape(-1, 3).T
    target[0] *= mirror
    values = (target - points).T.reshape(bend.shape).astype(np.float32)
    return Anatomy(bend=Grid(values=values, origin=_LOW, step=float(_STEP)))


def _spline(count: int, knots: int) -> NDArray[np.float64]:
    """What each of the knots has to say at each of ``count`` nodes, [count, knots]: cubic B-splines."""
    away = np.abs(np.arange(count)[:, None] * (_STEP / _WAVE) + 1 - np.arange(knots))
    weights: NDArray[np.float64] = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.maximum(2 - away, 0) ** 3 / 6)
    return weights

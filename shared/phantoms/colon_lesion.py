"""The polyps of the colonoscopy phantoms: signed distances in their own frame, of the shapes of the Paris classification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["LESION_SHAPES", "Lesion", "LesionShape", "draw_lesion", "union"]

Floats = NDArray[np.float32]
LesionShape = Literal["pedunculated", "sessile", "flat", "lobulated"]
LESION_SHAPES: tuple[LesionShape, ...] = ("pedunculated", "sessile", "flat", "lobulated")
_NOWHERE = 1e3
"""Distance from what is not there."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A polyp on the wall. Its own frame has the foot as origin and the third axis into the lumen; ``size`` is its half width."""

    shape: LesionShape
    foot: Floats
    """[3]"""
    frame: Floats
    """[3, 3]: one axis a row."""
    size: float
    heads: Floats
    """[K, 6]: centres and half axes of the ellipsoids that make the head, in units of ``size``."""
    stalk: Floats
    """[2, 3]: the two ends of the stalk's centre line, in units of ``size``; both zero where there is none."""
    waves: Floats
    """[3, 4]: wave vectors and phases of the head's unevenness."""
    contrast: float
    tint: Floats
    """[3]: factor on the mucosa's colour at full contrast."""
    pits: tuple[float, float]
    """Depth and spacing of the pit pattern."""
    blood: float

    @property
    def join(self) -> float:
        """Width over which it runs into the wall."""
        return self.size * (0.1 if self.shape == "flat" else 0.2)

    @property
    def bounds(self) -> tuple[Floats, float]:
        """Centre [3] and radius of a sphere that holds all of it and its join with the wall."""
        centre = np.concatenate([self.heads[:, :3], np.zeros((1, 3), np.float32)]).mean(axis=0)
        head = np.max(np.linalg.norm(self.heads[:, :3] - centre, axis=1) + self.heads[:, 3:].max(axis=1))
        foot = np.linalg.norm(centre) + 0.4 * self.stalk.any()
        return self.foot + self.size * (centre @ self.frame), self.size * (max(float(head), float(foot)) + 0.2)

    def local(self, points: Floats) -> Floats:
        """points [3, N] in the lesion's own frame, in units of ``size``."""
        return (self.frame @ (points - self.foot[:, None])) * np.float32(1 / self.size)

    def unrolled(self, local: Floats) -> Floats:
        """Places on the head for a texture, [2, N], little stretched: distance and azimuth from its top, seen from its middle."""
        out = local - self.heads[:, :3].mean(axis=0)[:, None]
        across = np.sqrt(out[0] ** 2 + out[1] ** 2) + 1e-6
        stretch: Floats = np.arctan2(across, out[2]) / across
        return out[:2] * stretch

    def distances(self, local: Floats) -> tuple[Floats, Floats]:
        """Distance from the head and from the stalk, both [N], in the tube's units, for points in the lesion's frame."""
        head = np.full(local.shape[1], _NOWHERE, np.float32)
        for ellipsoid in self.heads:
            narrow = 1 / ellipsoid[3:, None]
            offset = (local - ellipsoid[:3, None]) * narrow
            level = np.sqrt(np.einsum("ij,ij->j", offset, offset)) + 1e-6
            offset *= narrow
            distance = level * (level - 1) / (np.sqrt(np.einsum("ij,ij->j", offset, offset)) + 1e-6)
            head = union(head, distance, 0.13)[0]
        wave = np.sin(self.waves[:, :3] @ local + self.waves[:, 3:]).sum(axis=0)
        head += wave * 0.035
        axis = self.stalk[1] - self.stalk[0]
        length = float(axis @ axis)
        if length == 0:
            return head * self.size, np.full_like(head, _NOWHERE)
        along = np.clip(axis @ (local - self.stalk[0][:, None]) / length, 0, 1)
        offset = local - self.stalk[0][:, None] - axis[:, None] * along
        thick = 0.24 + 0.16 * (2 * along - 1) ** 2
        stalk = (np.sqrt(np.einsum("ij,ij->j", offset, offset)) - thick) * (0.85 * self.size)
        return head * self.size, stalk


def draw_lesion(
    rng: np.random.Generator, *, shape: LesionShape, foot: Floats, inward: Floats, size: float, contrast: float, hang: Floats
) -> Lesion:
    """A lesion at random of this shape, its foot on the wall, ``inward`` [3] the wall's normal there; stalks bend towards ``hang``."""
    side = hang - inward * (hang @ inward)
    if side @ side < 1e-3:
        side = np.roll(inward, 1) - inward * (np.roll(inward, 1) @ inward)
    side = side / np.linalg.norm(side)
    frame = np.stack([side, np.cross(inward, side), inward]).astype(np.float32)
    stalk = np.zeros((2, 3), np.float32)
    if shape == "sessile":
        tall, broad = rng.uniform(0.65, 1.0), rng.uniform(0.75, 1.0)
        heads = [[0, 0, rng.uniform(0.15, 0.5) * tall, 0.9, broad * 0.9, tall]]
        turn = rng.uniform(0, 2 * np.pi)
        heads.append([0.4 * math.cos(turn), 0.4 * math.sin(turn), 0.3 * tall, 0.62, 0.62, tall * rng.uniform(0.5, 0.85)])
    elif shape == "flat":
        heads = []
        for _ in range(rng.integers(2, 5)):
            turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.4)
            reach = rng.uniform(0.5, 0.75)
            heads.append([away * math.cos(turn), away * math.sin(turn), 0.02, reach, reach * rng.uniform(0.75, 1), rng.uniform(0.24, 0.36)])
    elif shape == "lobulated":
        heads = [[0, 0, 0.3, 0.55, 0.5, 0.45]]
        for _ in range(rng.integers(4, 8)):
            turn, rise, lobe = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1.2), rng.uniform(0.26, 0.5)
            away = 0.62 * math.cos(rise)
            heads.append(
                [away * math.cos(turn), away * math.sin(turn), 0.15 + 0.6 * math.sin(rise), lobe, lobe * rng.uniform(0.8, 1), lobe]
            )
    else:
        length, droop = rng.uniform(0.9, 1.9), rng.uniform(0.2, 0.9)
        tip = np.array([math.sin(droop), rng.uniform(-0.2, 0.2), math.cos(droop)]) * length
        stalk[1] = tip
        heads = [[*(tip * (1 + 0.45 / length)), rng.uniform(0.8, 1), rng.uniform(0.8, 1), rng.uniform(0.8, 1.1)]]
    waves = rng.normal(0, 1, (3, 4)) * [2.4, 2.4, 2.4, 3]
    red = rng.uniform() < 0.6
    tint = (
        [rng.uniform(0.85, 1.05), rng.uniform(0.4, 0.55), rng.uniform(0.45, 0.65)]
        if red
        else [1.1, rng.uniform(1.35, 1.7), rng.uniform(1.4, 2)]
    )
    return Lesion(
        shape=shape,
        foot=foot.astype(np.float32),
        frame=frame,
        size=size,
        heads=np.array(heads, np.float32),
        stalk=stalk,
        waves=waves.astype(np.float32),
        contrast=contrast,
        tint=np.array(tint, np.float32),
        pits=(rng.uniform(0.25, 1.0), rng.uniform(0.6, 1.3)),
        blood=max(0.0, rng.uniform(-1, 0.8)),
    )


def union(first: Floats, second: Floats, join: float) -> tuple[Floats, Floats]:
    """Smooth minimum of two distances, and how much the second one counts in it (0 to 1)."""
    share = np.minimum(np.maximum(0.5 + (first - second) * (0.5 / join), 0), 1)
    return first + (second - first) * share - join * share * (1 - share), share

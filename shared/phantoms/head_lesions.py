"""The tumours of the head phantoms: where they lie, how far each of their parts reaches, and how large that makes them.

A tumour is a set of level fields on a lattice of its own, one for each part, the inner ones within the outer ones: a place belongs to the
first part whose field is negative there. So truth is known without regard to any scan's voxels. ``head_growth`` makes the fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from shared.errors import UserError
from shared.phantoms.head_anatomy import Anatomy
from shared.phantoms.head_grid import Grid
from shared.phantoms.head_settings import LesionKind
from shared.phantoms.head_template import TISSUES

__all__ = ["LABELS", "Lesion", "LesionPlan", "LesionTruth", "along", "measure", "plan_lesion", "push"]

Floats = NDArray[np.float32]

LABELS: dict[LesionKind, dict[str, int]] = {
    "glioma": {"necrosis": 1, "enhancing": 4, "oedema": 2},
    "meningioma": {"meningioma": 1, "oedema": 0},
}
"""Parts from the inside out, and their label: BraTS for glioma. The oedema around a meningioma is seen but not part of the tumour."""

_TISSUE_MM = 3


@dataclass(frozen=True, kw_only=True)
class LesionPlan:
    """What a lesion is to be, before it is known what is in its way."""

    kind: LesionKind
    place: Floats
    """[3], mm: the middle of a glioma, or the place of the dura on which a meningioma sits."""
    inward: Floats
    """[3]: unit vector from the dura into the head; of no meaning for a glioma."""
    volumes_ml: dict[str, float]
    """Of each part in ``LABELS``."""
    grain_mm: float
    """Of its unevenness, which it keeps while it grows."""
    seed: int

    @property
    def tumour_ml(self) -> float:
        """Without oedema."""
        return sum(volume for part, volume in self.volumes_ml.items() if part != "oedema")

    @property
    def radius(self) -> float:
        """mm, of a ball of the tumour's volume."""
        return (3000 * self.tumour_ml / (4 * math.pi)) ** (1 / 3)

    @property
    def middle(self) -> Floats:
        """[3], mm: about the tumour's centre."""
        return self.place if self.kind == "glioma" else self.place + self.inward * np.float32(0.6 * self.radius)

    def grown(self, factor: float) -> LesionPlan:
        """The same lesion with each part's volume multiplied."""
        return replace(self, volumes_ml={part: volume * factor for part, volume in self.volumes_ml.items()})


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A tumour in place."""

    kind: LesionKind
    levels: Grid
    """[X, Y, Z, P + 1]: for each of the P parts about the distance in mm from its outer border, negative within; then a texture."""

    @property
    def parts(self) -> tuple[str, ...]:
        """From the inside out."""
        return tuple(LABELS[self.kind])

    @property
    def box(self) -> tuple[Floats, Floats]:
        """Lowest and highest corner [3] of its lattice, in mm."""
        low = np.array(self.levels.origin, np.float32)
        return low, low + np.float32(self.levels.step) * (np.array(self.levels.values.shape[:3], np.float32) - 1)

    def nodes(self) -> Floats:
        """The nodes [3, N] of its lattice that are in it."""
        return self.levels.nodes()[:, (self.levels.values[..., :-1] < 0).any(axis=3).ravel()]

    def near(self, points: Floats) -> NDArray[np.intp]:
        """Which of points [3, N] are in its box."""
        low, high = self.box
        return np.flatnonzero(((points >= low[:, None]) & (points <= high[:, None])).all(axis=0))

    def part_at(self, points: Floats) -> NDArray[np.int8]:
        """The part at points [3, N] of its box, as an index into ``parts``; -1 outside all of them."""
        negative = self.levels.at(points)[:, :-1] < 0
        return np.where(negative.any(axis=1), negative.argmax(axis=1), -1).astype(np.int8)


@dataclass(frozen=True, kw_only=True)
class LesionTruth:
    """What is known of a lesion, from its form in continuous space."""

    kind: LesionKind
    volumes_ml: dict[str, float]
    """Of each part; the oedema around a meningioma has no label."""
    centroid_mm: tuple[float, float, float]
    """Of all that is labelled; x to the right, y to the front, z upwards."""
    largest_diameter_mm: float
    """Of all that is labelled, in any direction."""
    tumour_diameter_mm: float
    """The same without oedema."""


def plan_lesion(
    rng: np.random.Generator, anatomy: Anatomy, kind: LesionKind, volume_ml: tuple[float, float], others: list[LesionPlan]
) -> LesionPlan:
    """A lesion at random, of a tumour volume in this range, apart from the others.

    Raises:
        UserError: if there is no room for it.
    """
    tumour_ml = float(np.exp(rng.uniform(*np.log(volume_ml))))
    if kind == "glioma":
        share = rng.uniform(0.2, 0.55)
        oedema = min(tumour_ml * float(np.exp(rng.uniform(np.log(0.8), np.log(4.0)))), 100.0)
        volumes = {"necrosis": tumour_ml * share, "enhancing": tumour_ml * (1 - share), "oedema": oedema}
    else:
        volumes = {"meningioma": tumour_ml, "oedema": float(rng.uniform() < 0.4) * tumour_ml * rng.uniform(0.5, 2.0)}
    radius = (3000 * tumour_ml / (4 * math.pi)) ** (1 / 3)
    points = anatomy.places()
    depth = anatomy.depth(points)
    template = anatomy.in_template(points)
    if kind == "glioma":
        fits = (depth > min(7 + 0.75 * radius, 26)) & (template[2] > -30) & (np.abs(template[0]) > 9)
        fits[fits] = anatomy.tissues(points[:, fits], _TISSUE_MM)[:, TISSUES.index("white")] > 0.5
    else:
        fits = (depth > 1) & (depth < 6) & (template[2] > -18) & (np.abs(template[0]) > 6)
    for other in others:
        away = np.linalg.norm(points - other.middle[:, None], axis=0)
        fits &= away > other.radius + radius * (1 if kind == "glioma" else 1.4) + 8
    if not fits.any():
        raise UserError(f"Phantoms: no room for {len(others) + 1} lesions of up to {volume_ml[1]:g} ml. Ask for fewer or smaller ones.")
    place = points[:, rng.choice(np.flatnonzero(fits))] + rng.uniform(-2, 2, 3).astype(np.float32)
    inward = np.zeros(3, np.float32)
    if kind == "meningioma":
        for _ in range(3):  # Newton steps onto the dura, along a slope taken over some millimetres
            steps = np.eye(3, dtype=np.float32) * 5
            inward = anatomy.depth(place[:, None] + steps) - anatomy.depth(place[:, None] - steps)
            slope = float(np.linalg.norm(inward)) + 1e-6
            inward = (inward / slope).astype(np.float32)
            place = place - inward * (anatomy.depth(place[:, None])[0] * np.float32(10 / slope))
    seed = int(rng.integers(2**31))
    return LesionPlan(kind=kind, place=place, inward=inward, volumes_ml=volumes, grain_mm=max(1.1 * radius, 10), seed=seed)


def push(anatomy: Anatomy, plan: LesionPlan, strength: float) -> Anatomy:
    """The head after the brain has given way to the tumour."""
    return anatomy.pushed(plan.middle, plan.radius, strength)


def measure(lesion: Lesion) -> LesionTruth:
    """Volumes, centroid and diameters, from the lesion's own lattice."""
    grid, points = lesion.levels, lesion.levels.nodes()
    negative = grid.values[..., :-1] < 0
    part = np.where(negative.any(axis=3), negative.argmax(axis=3), -1)
    # Nodes beside a border count by 27 places around them: fields between nodes are a little flatter than at them.
    beside = np.flatnonzero((ndimage.maximum_filter(part, 3) != ndimage.minimum_filter(part, 3)).ravel())
    weights = np.stack([(part == index).ravel() for index in range(len(lesion.parts))]).astype(np.float64)
    weights[:, beside] = 0
    for shift in np.ndindex(3, 3, 3):
        here = lesion.part_at(points[:, beside] + (np.array(shift, np.float32)[:, None] - 1) * np.float32(grid.step / 3))
        for index in range(len(lesion.parts)):
            weights[index, beside] += (here == index) / 27
    volumes = weights.sum(axis=1) * grid.step**3 / 1000
    labels = list(LABELS[lesion.kind].values())
    labelled = [index for index, label in enumerate(labels) if label]
    tumour = [index for index in labelled if lesion.parts[index] != "oedema"]
    mass = weights[labelled].sum(axis=0)
    centroid = points @ mass / mass.sum()
    return LesionTruth(
        kind=lesion.kind,
        volumes_ml={name: float(volume) for name, volume in zip(lesion.parts, volumes, strict=True)},
        centroid_mm=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
        largest_diameter_mm=_diameter(grid, labelled[-1]),
        tumour_diameter_mm=_diameter(grid, tumour[-1]),
    )


def along(axis: int, way: int) -> tuple[slice, ...]:
    """All but the first (1) or the last (-1) along an axis."""
    return tuple((slice(1, None) if way > 0 else slice(None, -1)) if number == axis else slice(None) for number in range(3))


def _diameter(grid: Grid, part: int) -> float:
    """The largest distance in mm between two places of the border of this part and all within it."""
    level = grid.values[..., part].astype(np.float32)
    crossings = []
    for axis in range(3):
        low, high = level[along(axis, -1)], level[along(axis, 1)]
        where = np.argwhere((low < 0) != (high < 0)).astype(np.float32)
        a, b = (side[tuple(where.astype(int).T)] for side in (low, high))
        where[:, axis] += np.clip(a / (a - b), 0, 1)
        crossings.append(where)
    surface = np.concatenate(crossings)
    return float(pdist(surface[ConvexHull(surface).vertices]).max() * grid.step)

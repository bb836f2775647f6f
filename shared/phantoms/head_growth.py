"""How the tumours of the head phantoms grow: level fields whose parts have the volumes that were planned.

Each field is a distance made uneven by noise and by what is in the way; its threshold is the value below which there are as many nodes of
the lattice as the volume needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.errors import UserError
from shared.phantoms.head_anatomy import Anatomy
from shared.phantoms.head_grid import Grid, smooth_noise
from shared.phantoms.head_lesions import Lesion, LesionPlan, along
from shared.phantoms.head_template import TISSUES, depth_map, head_template

__all__ = ["grow"]

Floats = NDArray[np.float32]

_TISSUE_MM = 3
_NODES = 64
_KNOT_MM = 5.0
_KNOTS = 40
_THINNEST_RIM_MM = 1.4
_SPARED_MM = np.float32(6)
"""By so much is oedema held back in the cortex."""
_SPREADING = 90
"""Steps of time for which oedema spreads."""


def grow(anatomy: Anatomy, plan: LesionPlan, others: list[Lesion]) -> Lesion:
    """The lesion of this plan in this head, kept off the ``others``.

    Raises:
        UserError: if it does not fit into the head.
    """
    rng = np.random.Generator(np.random.PCG64(plan.seed))
    noises = [smooth_noise(rng, (_KNOTS,) * 3, grain / _KNOT_MM) for grain in (plan.grain_mm, max(0.45 * plan.grain_mm, 7), 12, 7)]
    whole_ml = plan.tumour_ml + plan.volumes_ml["oedema"]
    reach = 1.75 * (3000 * whole_ml / (4 * math.pi)) ** (1 / 3) + 10 + (12 if plan.kind == "meningioma" else 0)
    step = min(max(2 * reach / _NODES, 0.6), 2.0)
    count = int(2 * reach / step) + 1
    lattice = Grid(values=np.empty((count, count, count, 1), np.float32), origin=_corner(plan.middle, reach), step=step)
    points = lattice.nodes()
    template = anatomy.in_template(points)
    depth = depth_map().at(template)[:, 0]
    limit = -depth
    for other in others:
        near = other.near(points)
        limit[near] = np.maximum(limit[near], -other.levels.at(points[:, near])[:, -2])
    anchor = _corner(plan.place, _KNOT_MM * (_KNOTS - 1) / 2)
    bed = _Bed(
        points=points,
        sideways=template[0],
        tissues=head_template(_TISSUE_MM).at(template) * np.float32(1 / 255),
        depth=depth,
        limit=limit,
        noise=Grid(values=np.stack(noises, axis=3), origin=anchor, step=_KNOT_MM).at(points).T,
        shape=(count, count, count),
        step=step,
    )
    levels = _glioma(plan, bed, rng) if plan.kind == "glioma" else _meningioma(plan, bed, rng)
    levels.append(_oedema(plan.volumes_ml["oedema"], levels[-1], bed))
    values = np.stack([level.reshape(bed.shape) for level in (*levels, bed.noise[3])], axis=3).astype(np.float32)
    return Lesion(kind=plan.kind, levels=Grid(values=values, origin=lattice.origin, step=step))


@dataclass(frozen=True, kw_only=True)
class _Bed:
    """What a lesion grows in, at the N nodes of its lattice."""

    points: Floats
    """[3, N], mm in the head."""
    sideways: Floats
    """[N]: mm to the right of the falx."""
    tissues: Floats
    """[N, 7]"""
    depth: Floats
    """[N]: mm beneath the inner table."""
    limit: Floats
    """[N]: about the distance in mm to where it may grow; negative there."""
    noise: Floats
    """[4, N]: coarse, fine, for the oedema, and for the texture."""
    shape: tuple[int, int, int]
    step: float

    @property
    def node_ml(self) -> float:
        return self.step**3 / 1000


def _glioma(plan: LesionPlan, bed: _Bed, rng: np.random.Generator) -> list[Floats]:
    """Fields of necrosis and of the tumour's outer border."""
    radius = np.float32(plan.radius)
    turned = _rotation(rng) @ (bed.points - plan.place[:, None])
    stretch = np.exp(rng.uniform(-0.22, 0.22, 3)).astype(np.float32)[:, None]
    distance = np.sqrt(((turned * stretch) ** 2).sum(axis=0))
    fluid = ndimage.gaussian_filter(bed.tissues[:, TISSUES.index("csf")].reshape(bed.shape), 1.0).ravel()
    barrier = radius * (np.float32(0.7) * fluid + np.clip((5 - bed.depth) / 5, 0, 2))
    outer = distance + radius * (np.float32(0.2) * bed.noise[0] + np.float32(0.07) * bed.noise[1]) + barrier
    outer = _connected(outer, bed.limit, plan.tumour_ml / bed.node_ml, bed.shape)
    inner = outer + radius * np.float32(0.3) * bed.noise[1]
    within = outer < -_THINNEST_RIM_MM
    if within.sum() < 2:
        return [np.maximum(outer + radius, np.float32(1)), outer]
    inner -= _threshold(inner[within], min(plan.volumes_ml["necrosis"] / bed.node_ml, 0.95 * within.sum()))
    return [np.maximum(inner, outer + np.float32(_THINNEST_RIM_MM)), outer]


def _meningioma(plan: LesionPlan, bed: _Bed, rng: np.random.Generator) -> list[Floats]:
    """Field of the tumour's outer border: a dome on the dura and the tail that it draws along it."""
    dome = np.float32((3000 * plan.tumour_ml / (2 * math.pi)) ** (1 / 3))
    offset = bed.points - plan.place[:, None]
    below = plan.inward @ offset
    side = np.cross(plan.inward, [1, 0, 0] if abs(plan.inward[0]) < 0.8 else [0, 1, 0])
    side = (side / np.linalg.norm(side)).astype(np.float32)
    first, second = side @ offset, np.cross(plan.inward, side).astype(np.float32) @ offset
    stretch = np.exp(rng.uniform(-0.14, 0.14, 2)).astype(np.float32)
    high = np.float32(rng.uniform(0.85, 1.1))
    distance = np.sqrt((first * stretch[0]) ** 2 + (second * stretch[1]) ** 2 + ((bed.depth - np.float32(0.2) * dome) / high) ** 2)
    bulk = distance + dome * (np.float32(0.09) * bed.noise[0] + np.float32(0.03) * bed.noise[1])

    around, phase = np.arctan2(second, first), rng.uniform(0, 2 * np.pi, 2)
    tongues = 0.5 + 0.3 * np.sin(around + phase[0]) + 0.25 * np.sin(2 * around + phase[1])
    length = rng.uniform(8, 14) * min(1, float(dome) / 9) ** 2 * np.clip(tongues, 0.05, 1)
    thick = min(max(0.13 * float(dome), 1.9), 0.25 * float(dome), 2.8)
    reach = 0.15 * dome + length
    beyond = (np.hypot(first, second) - np.float32(0.85) * dome) / reach
    sheet = bed.depth - thick * (1 - 0.5 * np.clip(beyond, 0, 1))
    tail = np.maximum.reduce([sheet, (beyond - 1) * reach, below - np.float32(0.9) * dome])

    # The falx is in the way of whatever does not arise on it.
    own = np.sign(bed.sideways[np.argmin((offset * offset).sum(axis=0))])
    limit = np.maximum(bed.limit, np.float32(1.0) - own * bed.sideways)
    tail = np.maximum(tail, limit).astype(np.float32)
    rest = (limit < 0) & (tail >= 0)
    bulk -= _threshold(bulk[rest], plan.tumour_ml / bed.node_ml - (tail < 0).sum())
    level = np.minimum(bulk, tail)
    return [_connected(level, limit, float((np.maximum(level, limit) < 0).sum()), bed.shape)]


def _oedema(volume_ml: float, tumour: Floats, bed: _Bed) -> Floats:
    """Field of the border that encloses the tumour and so much oedema around it.

    Water spreads from the tumour as glioma cells do in the model of Swanson, Alvord and Murray, 2000: fast in white matter, slowly in
    grey, hardly through fluid. By the maximum principle what it reaches first hangs together.
    """
    around = (bed.limit < 0) & (tumour >= 0)
    if volume_ml < bed.node_ml or not around.any():
        return tumour.copy()
    white, grey, csf = (bed.tissues[:, TISSUES.index(name)] for name in ("white", "grey", "csf"))
    ease = (white**2 + np.float32(0.03) * grey + np.float32(0.003) * csf) * np.exp(np.float32(0.6) * bed.noise[2]) * (bed.limit < 0)
    ease = np.minimum(ease, 1.6) / 10
    ease[tumour < 0] = 0.1
    # A lattice of twice the step is fine enough for what spreads so smoothly.
    source, ease = ((tumour < 0).reshape(bed.shape)[::2, ::2, ::2], ease.reshape(bed.shape)[::2, ::2, ::2])
    between = [np.sqrt(ease[along(axis, 1)] * ease[along(axis, -1)]) for axis in range(3)]
    spread = source.astype(np.float32)
    for _ in range(_SPREADING):
        flow = np.zeros_like(spread)
        for axis in range(3):
            passed = between[axis] * (spread[along(axis, 1)] - spread[along(axis, -1)])
            flow[along(axis, -1)] += passed
            flow[along(axis, 1)] -= passed
        spread += flow
        spread[source] = 1
    steps = np.sqrt(-np.log(np.maximum(spread, 1e-30))) * np.float32(2 * bed.step)
    arrival = ndimage.affine_transform(steps, np.full(3, 0.5), output_shape=bed.shape, order=1, mode="nearest")
    arrival = ndimage.gaussian_filter(arrival, 0.7).ravel()
    # That lattice is too coarse for the cortex, whose folds oedema leaves out like fingers.
    arrival += _SPARED_MM * np.clip(grey + 2 * csf, 0, 1)
    arrival = _connected(arrival, bed.limit, min(volume_ml / bed.node_ml, 0.9 * around.sum()), bed.shape, tumour)
    border = around & (np.abs(arrival) < 2 * bed.step)
    slope = [np.gradient(arrival.reshape(bed.shape), bed.step, axis=axis).ravel()[border] for axis in range(3)]
    return np.minimum(arrival / max(float(np.sqrt(sum(part**2 for part in slope)).mean()), 0.05), tumour)


def _threshold(values: Floats, count: float) -> np.float32:
    """Below which ``count`` of the values lie."""
    place = min(max(round(count), 1), len(values) - 1)
    lower = np.partition(values, [place - 1, place])
    return np.float32((lower[place - 1] + lower[place]) / 2)


def _connected(level: Floats, limit: Floats, count: float, shape: tuple[int, int, int], core: Floats | None = None) -> Floats:
    """``level`` less its threshold for ``count`` nodes within the limit and outside the core, all of them in one piece with the core.

    Raises:
        UserError: if there are not so many nodes to have.
    """
    core = np.ones_like(level) if core is None else core
    for _ in range(8):
        within = (limit < 0) & (core >= 0)
        if within.sum() <= count:
            raise UserError("Phantoms: a lesion does not fit into the head. Ask for smaller or fewer lesions.")
        shifted = np.maximum(level - _threshold(level[within], count), limit)
        pieces, number = ndimage.label((np.minimum(shifted, core) < 0).reshape(shape))
        if number < 2:
            break
        largest = np.bincount(pieces.ravel())[1:].argmax() + 1
        limit = np.where((pieces.ravel() > 0) & (pieces.ravel() != largest), np.float32(1), limit)
    return shifted.astype(np.float32)


def _corner(middle: Floats, reach: float) -> tuple[float, float, float]:
    return (float(middle[0]) - reach, float(middle[1]) - reach, float(middle[2]) - reach)


def _rotation(rng: np.random.Generator) -> Floats:
    """A rotation [3, 3] in which every direction is as likely as any other."""
    basis, upper = np.linalg.qr(rng.standard_normal((3, 3)))
    return (basis * np.sign(np.diag(upper))).astype(np.float32)

"""The head of the head phantoms: fractions of seven tissues around the MNI152 average brain that ships inside nilearn.

Brain and its fluid come from the template (ICBM 2009a symmetric: Fonov et al., "Unbiased average age-appropriate brain templates",
NeuroImage, 2009). The template has no skull: dura, bone, scalp, orbits, face and neck are built around it from the distance to the brain.
They are there so that a meningioma has a dura to sit on and so that preprocessing meets a head, not to be anatomy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.errors import UserError
from shared.phantoms.head_grid import Grid, smooth_noise

__all__ = ["TISSUES", "depth_map", "head_template"]

Floats = NDArray[np.float32]

TISSUES = ("white", "grey", "csf", "blood", "bone", "fat", "muscle")
"""What a voxel may hold; what is left to 1 is air. blood: vessels and the dura, which take up gadolinium."""

_LOW = (-96, -132, -108)
_SIZE = (192, 252, 216)
"""The template's box at 1 mm in MNI152 space: divisible by each step from 1 to 4 mm."""
_COARSE_MM = 3
_MENINGES_MM = 2.0
"""From the brain's hull to the inner table of the skull."""


@lru_cache(maxsize=4)
def head_template(step: int) -> Grid:
    """Fractions of ``TISSUES``, uint8 [X, Y, Z, 7] (255 is all of the voxel), in MNI152 space, averaged over cubes of ``step`` mm.

    Args:
        step: 1 to 4. The first call of a process takes seconds (about ten at 1 mm, three at 3 mm); later ones nothing.

    Raises:
        UserError: if nilearn is not installed.
    """
    white, grey, csf = (_averaged(values, step) for values in _brain())
    origin = tuple(low + (step - 1) / 2 for low in _LOW)
    axes = [np.float32(low) + np.float32(step) * np.arange(count, dtype=np.float32) for low, count in zip(origin, white.shape, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    depth, skin = (_resampled(field, white.shape, step) for field in _surfaces())

    def over(distance: NDArray[np.floating[Any]]) -> Floats:
        """1 where a distance in mm is positive, 0 where it is negative, and the part of the voxel between."""
        return np.clip(distance.astype(np.float32) / np.float32(step) + np.float32(0.5), 0, 1)

    inside = over(depth)
    brain = white + grey
    csf = np.where(inside > 0, np.maximum(csf, inside - brain), 0)
    white, grey, csf = (np.minimum(part, 1) * inside for part in (white, grey, csf))

    # The sagittal sinus runs under the vault; other vessels are where two noises cross zero together: thin winding lines, in the fluid.
    sinus = over(np.float32(5.0) - np.abs(x) - np.float32(0.9) * np.maximum(depth, 0)) * over(np.maximum(z - 30, -y - 55)) * inside
    first, second, rough, fine = (_resampled(field, white.shape, step) for field in _textures())
    wide = max(step, 1.4)
    vessels = np.clip(np.float32(1.15) - np.hypot(first, second) * np.float32(6 / wide), 0, 1) * np.float32(1.4 / wide)
    vessels *= csf * over(depth + 1)
    dura = (over(depth + 0.8) - over(depth - 0.8)) * np.float32(0.6)
    falx = (over(x + 0.7) - over(x - 0.7)) * csf * over(z - 5) * over(22 - depth) * np.float32(0.5)
    blood = np.maximum.reduce([np.minimum(sinus, 1 - brain), vessels, dura, falx]).astype(np.float32)
    for part in (white, grey, csf):
        part *= 1 - blood

    thickness = 6.5 + 1.2 * rough
    bone = over(-depth) * over(depth + thickness)
    marrow = over(-depth - 1.8) * over(depth + thickness - 1.8) * np.clip(0.45 + 0.2 * fine, 0, 0.8)
    beyond = over(-depth - thickness) * over(skin)
    # Muscles parted by planes of fat; on the vault fat alone; the skin covers both.
    vault = np.clip((z + 20) / 20, 0, 1) * np.clip((60 - np.abs(x)) / 6, 0, 1)
    flesh = np.clip((np.abs(fine) - np.float32(0.18)) * 3, 0, 1) * (1 - np.float32(0.8) * vault)
    flesh = np.where(skin < 2.2, np.float32(0.85), np.where(skin < 5.5, np.float32(0.12), flesh))
    muscle, fat = beyond * flesh, beyond * (1 - flesh)
    fat += bone * marrow
    bone *= 1 - marrow
    parts = {"white": white, "grey": grey, "csf": csf, "blood": blood * inside, "bone": bone, "fat": fat, "muscle": muscle}
    _add_face(parts, origin, step, fine)
    table = np.stack([np.rint(255 * np.clip(parts[name], 0, 1)).astype(np.uint8) for name in TISSUES], axis=3)
    return Grid(values=table, origin=(float(origin[0]), float(origin[1]), float(origin[2])), step=float(step))


@lru_cache(maxsize=1)
def depth_map() -> Grid:
    """mm beneath the inner table of the skull, float32 [X, Y, Z, 1] in MNI152 space: 0 at the dura, positive towards the brain.

    Raises:
        UserError: if nilearn is not installed.
    """
    centre = (_COARSE_MM - 1) / 2
    return Grid(values=_surfaces()[0][..., None], origin=(_LOW[0] + centre, _LOW[1] + centre, _LOW[2] + centre), step=float(_COARSE_MM))


@lru_cache(maxsize=1)
def _brain() -> tuple[Floats, Floats, Floats]:
    """Fractions of white matter, grey matter and fluid at 1 mm on the template's box, zero outside the brain."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise UserError(
            "Head phantoms need nilearn, which contains the MNI152 head template, and it is not installed. Install it: pip install nilearn"
        ) from error
    images = (datasets.load_mni152_template(resolution=1), datasets.load_mni152_wm_template(resolution=1))
    t1, white, grey = (_boxed(image) for image in (*images, datasets.load_mni152_gm_template(resolution=1)))
    within = t1 > 0
    # An average over many people is blurred: the squares, made to sum to one again, are as crisp as one person.
    csf = np.maximum(np.clip(1 - white - grey, 0, 1), np.clip((0.58 - t1) / 0.3, 0, 1)) * within
    white, grey = white * within, grey * within
    for part in (white, grey, csf):
        part *= part
    total = np.maximum(white + grey + csf, 1e-6)
    white, grey, csf = (np.where(within, part / total, 0).astype(np.float32) for part in (white, grey, csf))
    # The template ends at z = -72; the cord goes on.
    below = -68 - _LOW[2]
    x, y, drop = np.meshgrid(
        np.arange(_SIZE[0]) + _LOW[0], np.arange(_SIZE[1]) + _LOW[1], np.linspace(5, 0, below), indexing="ij", sparse=True
    )
    cord = np.clip(6.2 - np.hypot(x, y + 45 + drop), 0, 1).astype(np.float32)
    for part, share in ((white, 0.55), (grey, 0.45), (csf, 0)):
        part[..., :below] += cord * (np.float32(share) - part[..., :below])
    return white, grey, csf


def _boxed(image: object) -> Floats:
    """A template image at 1 mm on the box of ``_LOW`` and ``_SIZE``."""
    affine, data = image.affine, np.asarray(image.dataobj, np.float32)  # type: ignore[attr-defined]
    boxed = np.zeros(_SIZE, np.float32)
    start = [round(offset) - low for offset, low in zip(affine[:3, 3], _LOW, strict=True)]
    place = tuple(slice(max(first, 0), first + side) for first, side in zip(start, data.shape, strict=True))
    data = data[tuple(slice(max(-first, 0), None) for first in start)]
    target = boxed[place]
    target[...] = data[tuple(slice(side) for side in target.shape)]
    return boxed


def _averaged(values: Floats, step: int) -> Floats:
    a, b, c = (side // step for side in _SIZE)
    return np.ascontiguousarray(values.reshape(a, step, b, step, c, step).mean(axis=(1, 3, 5), dtype=np.float32))


def _resampled(field: Floats, shape: tuple[int, ...], step: int) -> Floats:
    """A field of the coarse grid on that of ``step`` mm, both over the same box."""
    ratio = step / _COARSE_MM
    offset = ((step - 1) / 2 - (_COARSE_MM - 1) / 2) / _COARSE_MM
    return ndimage.affine_transform(field, np.full(3, ratio), offset=offset, output_shape=shape, order=1, mode="nearest")


@lru_cache(maxsize=1)
def _surfaces() -> tuple[Floats, Floats]:
    """On the coarse grid: depth beneath the inner table and depth beneath the skin, both in mm and negative outside."""
    white, grey, csf = _brain()
    brain = _averaged(white + grey + csf, _COARSE_MM) > 0.5
    x, y, z = np.meshgrid(
        *[low + 1 + _COARSE_MM * np.arange(side, dtype=np.float32) for low, side in zip(_LOW, brain.shape, strict=True)],
        indexing="ij",
        sparse=True,
    )
    hull = _closed(brain, 9)
    depth = ndimage.gaussian_filter(_signed(hull) + np.float32(_MENINGES_MM), 1.0)
    head = ndimage.gaussian_filter(_signed(_closed(brain, 40)) + np.float32(15), 1.5)
    face = 1 - np.sqrt((x / 66) ** 2 + ((y - 24) / 70) ** 2 + ((z + 62) / 66) ** 2)
    nose = 1 - np.sqrt((x / (12 - 0.1 * np.minimum(z + 60, 40))) ** 2 + ((y - 88) / 22) ** 2 + ((z + 58) / 24) ** 2)
    neck = 56 + 0.05 * np.abs(z) - np.sqrt(x**2 + (1.05 * (y + 18)) ** 2) + 0.6 * np.minimum(-40 - z, 0)
    skin = np.maximum.reduce([head, 62 * face, 18 * nose, neck])
    return depth, ndimage.gaussian_filter(skin, 1.2)


@lru_cache(maxsize=1)
def _textures() -> list[Floats]:
    """On the coarse grid, the same for every step: two for the vessels, then one for the bone and one for the soft tissues."""
    shape = tuple(side // _COARSE_MM for side in _SIZE)
    grains = (7.0, 7.0, 18.0, 7.0)
    return [
        smooth_noise(np.random.Generator(np.random.PCG64([77, number])), shape, grain / _COARSE_MM) for number, grain in enumerate(grains)
    ]


def _signed(mask: NDArray[np.bool_]) -> Floats:
    """Signed distance in mm, positive inside, zero half-way between the last voxel in and the first one out."""
    inside, outside = (ndimage.distance_transform_edt(part) for part in (mask, ~mask))
    signed: Floats = (_COARSE_MM * (inside - outside - np.where(mask, 0.5, -0.5))).astype(np.float32)
    return signed


def _closed(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Closing by a ball of ``radius`` mm: bridges sulci and fissures."""
    grown = ndimage.distance_transform_edt(~np.pad(mask, 16)) * _COARSE_MM <= radius
    closed: NDArray[np.bool_] = (ndimage.distance_transform_edt(grown) * _COARSE_MM > radius)[16:-16, 16:-16, 16:-16] | mask
    return closed


def _add_face(parts: dict[str, Floats], origin: tuple[float, ...], step: int, fine: Floats) -> None:
    """Orbits with eyes, the nose and the sinuses, where there was flesh; changes ``parts`` in place."""

    def fill(
        centre: tuple[float, float, float], radii: tuple[float, float, float], share: tuple[float, float] = (1, 0), **content: float
    ) -> None:
        """An ellipsoid on both sides becomes ``content`` and air, as far as ``share`` says: a constant and a factor on ``fine``."""
        for side in (-1, 1) if centre[0] else (1,):
            middle = (side * centre[0], *centre[1:])
            low = [max(0, int((c - r - o) / step)) for c, r, o in zip(middle, radii, origin, strict=True)]
            box = tuple(slice(first, first + int(2 * r / step) + 3) for first, r in zip(low, radii, strict=True))
            inner = {name: part[box] for name, part in parts.items()}
            axes = [
                o + step * (first + np.arange(side, dtype=np.float32)) for o, first, side in zip(origin, low, fine[box].shape, strict=True)
            ]
            scaled = [(axis - c) / r for axis, c, r in zip(np.meshgrid(*axes, indexing="ij", sparse=True), middle, radii, strict=True)]
            away = np.sqrt(sum(axis**2 for axis in scaled))
            where = np.clip((1 - away) * (min(radii) / step) + 0.5, 0, 1) * np.clip(share[0] + share[1] * fine[box], 0, 1)
            where = where * (1 - np.clip(inner["white"] + inner["grey"] + inner["csf"] + inner["blood"], 0, 1))
            for name, part in inner.items():
                part += where * (np.float32(content.get(name, 0)) - part)

    fill((30, 47, -34), (18, 30, 17), fat=1.0)
    fill((29, 44, -34), (11, 20, 10), muscle=1.0)
    fill((29, 46, -34), (8.5, 20, 7.5), fat=1.0)
    fill((28, 40, -35), (2.6, 26, 2.6), muscle=0.5, csf=0.5)
    fill((31, 63, -35), (12.5, 12.5, 12.5), muscle=0.8, bone=0.2)
    fill((31, 63, -35), (11.3, 11.3, 11.3), csf=1.0)
    fill((31, 71, -35), (4.5, 2.6, 4.5), muscle=1.0)
    fill((0, 58, -46), (13, 30, 12), bone=0.15, muscle=0.1)
    fill((0, 58, -62), (15, 34, 16), bone=0.15, muscle=0.1)
    fill((0, 58, -46), (11, 28, 11), (-0.2, 2.5), muscle=1.0)
    fill((0, 58, -62), (13, 32, 15), (-0.2, 2.5), muscle=1.0)
    fill((27, 50, -67), (14, 15, 14), bone=0.7, muscle=0.3)
    fill((27, 50, -67), (12, 13, 12))
    fill((0, 24, -42), (9, 9, 8))
    fill((0, 76, -22), (14, 5, 10))
    fill((45, -38, -42), (8, 12, 12), (0.6, 1.0))

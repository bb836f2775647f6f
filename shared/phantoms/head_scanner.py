"""The scanner of the head phantoms: where its voxels lie, the shading of its coil, its noise and its scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.phantoms.head_settings import HeadSettings

__all__ = ["Scan", "draw_scan", "shading", "with_noise"]

Floats = NDArray[np.float32]

_SPACINGS = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.2), (0.9, 0.9, 2.0), (1.0, 1.0, 3.0), (1.0, 1.0, 4.0))
_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
_MARGIN_MM = {True: 8.0, False: 26.0}
"""Around the brain: enough for its fluid, or for the scalp."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The grid of one acquisition."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    """[4, 4]: voxel to mm, x to the right, y to the front, z upwards."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along the axes of the array."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    def points(self, first: int, last: int, shift: tuple[float, float, float] = (0, 0, 0)) -> Floats:
        """Places in mm [3, N] of the voxels in these layers of the first axis, moved by ``shift`` voxels; the last axis is fastest."""
        counts = (np.arange(first, last), np.arange(self.shape[1]), np.arange(self.shape[2]))
        terms = [self.affine[:3, axis, None] * (count + move)[None] for axis, (count, move) in enumerate(zip(counts, shift, strict=True))]
        whole = terms[0][:, :, None, None] + terms[1][:, None, :, None] + terms[2][:, None, None, :] + self.affine[:3, 3, None, None, None]
        return whole.reshape(3, -1).astype(np.float32)


def draw_scan(rng: np.random.Generator, settings: HeadSettings, brain: Floats, lesions: Floats) -> Scan:
    """Where the voxels lie: over the brain (points [3, N] in mm), and in any case over the lesions (points [3, M]).

    Raises:
        UserError: if the lesions do not fit into a field of view of ``settings.shape``.
    """
    drawn = _SPACINGS[rng.choice(len(_SPACINGS), p=[0.4, 0.15, 0.15, 0.15, 0.15])]
    order, signs = rng.permutation(3), rng.choice([-1, 1], 3)
    spacing = np.array(drawn if settings.spacing_mm is None else settings.spacing_mm)
    if settings.orientation is not None:
        order, signs = np.array([_AXES[letter] for letter in settings.orientation]).T
    axes = np.zeros((3, 3))
    axes[order, np.arange(3)] = signs
    axes = _turn(rng, settings.oblique_deg) @ axes

    along = axes.T @ brain
    low, high = along.min(axis=1), along.max(axis=1)
    margin = _MARGIN_MM[settings.skull_stripped]
    wanted = np.ceil((high - low + 2 * margin) / spacing).astype(int) + 1
    shape = wanted if settings.shape is None else np.array(settings.shape)
    centre = (low + high) / 2 + rng.uniform(-1, 1, 3) * np.minimum(4, np.maximum((shape - 1) * spacing - (high - low), 0) / 2)
    if lesions.shape[1]:
        along = axes.T @ lesions
        half = (shape - 1) * spacing / 2 - 1.5 * spacing
        least, most = along.max(axis=1) - half, along.min(axis=1) + half
        if (least > most).any():
            field = " x ".join(f"{side:g}" for side in shape * spacing)
            raise UserError(f"Phantoms: the lesions do not fit into a field of {field} mm. Use a larger shape or spacing, or one lesion.")
        centre = np.clip(centre, least, most)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = axes @ (centre - (shape - 1) * spacing / 2)
    return Scan(shape=(int(shape[0]), int(shape[1]), int(shape[2])), affine=affine)


def shading(rng: np.random.Generator, points: Floats, strength: float) -> Floats:
    """The coil's sensitivity at points [3, N]: smooth, about 1, within ``strength`` of it."""
    weights = rng.normal(0, 1, 9) * np.array([1, 1, 1, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7])
    x, y, z = points * np.float32(1 / 90)
    terms = (x, y, z, x * x - 0.3, y * y - 0.3, z * z - 0.3, x * y, y * z, z * x)
    field = sum(np.float32(weight) * term for weight, term in zip(weights, terms, strict=True))
    sensitivity: Floats = 1 + np.float32(strength) * np.tanh(np.float32(0.5) * field)
    return sensitivity


def with_noise(rng: np.random.Generator, signal: Floats, deviation: float) -> Floats:
    """The magnitude of a complex signal with Gaussian noise in both channels: a Rician variable (Gudbjartsson and Patz, 1995)."""
    real = signal + np.float32(deviation) * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = np.float32(deviation) * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.hypot(real, imaginary)


def _turn(rng: np.random.Generator, largest_deg: float) -> NDArray[np.float64]:
    """A rotation [3, 3] about a random axis, by up to ``largest_deg``."""
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(0, 1) * largest_deg)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn

"""Solids of known size, cut out of grids of any spacing and direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

OBLIQUE = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()


def grid(
    spacing: Sequence[float], shape: Sequence[int], *, rotation: np.ndarray | None = None, centre: Sequence[float] = (0, 0, 0)
) -> np.ndarray:
    """The affine of a grid whose middle lies at ``centre``."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) * np.asarray(spacing, float)
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def world(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Millimetres [X, Y, Z, 3] of the voxels' centres."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def ellipsoid(
    affine: np.ndarray,
    shape: Sequence[int],
    *,
    semiaxes: Sequence[float],
    centre: Sequence[float] = (0, 0, 0),
    rotation: np.ndarray | None = None,
) -> np.ndarray:
    """The voxels whose centres lie inside. ``rotation`` holds the directions of the semiaxes as columns."""
    away = (world(affine, shape) - np.asarray(centre)) @ (np.eye(3) if rotation is None else rotation)
    return ((away / np.asarray(semiaxes)) ** 2).sum(axis=-1) <= 1


def ball(affine: np.ndarray, shape: Sequence[int], radius: float, centre: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    return ellipsoid(affine, shape, semiaxes=(radius,) * 3, centre=centre)


def box(affine: np.ndarray, shape: Sequence[int], *, sides: Sequence[float], rotation: np.ndarray | None = None) -> np.ndarray:
    """As ``ellipsoid``, with flat sides, around the origin."""
    away = world(affine, shape) @ (np.eye(3) if rotation is None else rotation)
    return (np.abs(away) <= np.asarray(sides) / 2).all(axis=-1)

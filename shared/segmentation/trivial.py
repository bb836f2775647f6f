"""Answers that need no network: what any model has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.imaging.volumes import Volume
from shared.segmentation.preparation import foreground

__all__ = ["TRIVIAL"]

SHARE = 0.02
"""Of the head's voxels: about what a brain tumour takes."""


def nothing(volume: Volume) -> NDArray[np.bool_]:
    """No voxel: right wherever there is nothing to find. Result: [X, Y, Z]."""
    return np.zeros(volume.shape, dtype=bool)


def central_ellipsoid(volume: Volume) -> NDArray[np.bool_]:
    """An ellipsoid in the middle, half as long along each axis: where things lie that were cut out around their target."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in volume.shape), indexing="ij", sparse=True)
    return np.asarray(sum(axis**2 for axis in axes) < 0.25)


def brightest(volume: Volume) -> NDArray[np.bool_]:
    """The largest connected part of the brightest two hundredths of the head, in the last channel: contrast agent and oedema are bright."""
    values = volume.values if volume.values.ndim == 4 else volume.values[None]
    inside = foreground(values)
    bright = inside & (values[-1] > np.quantile(values[-1][inside], 1 - SHARE))
    numbers, count = ndimage.label(bright)
    return numbers == 1 + int(np.bincount(numbers.ravel())[1:].argmax()) if count else bright


TRIVIAL: dict[str, Callable[[Volume], NDArray[np.bool_]]] = {
    "nothing": nothing,
    "central ellipsoid": central_ellipsoid,
    "brightest part": brightest,
}
"""Name -> function of a volume [C, X, Y, Z] that returns one mask [X, Y, Z] for every class."""

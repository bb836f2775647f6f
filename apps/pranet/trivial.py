"""Answers that need no network: what any model has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRIVIAL"]


def nothing(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """No pixel of the frame: right wherever there is no polyp. image: [H, W, 3] RGB; result: [H, W]."""
    return np.zeros(image.shape[:2], dtype=bool)


def everything(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Every pixel of the frame. image: [H, W, 3] RGB; result: [H, W]."""
    return np.ones(image.shape[:2], dtype=bool)


def central_ellipse(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """An ellipse in the middle, half as wide and as high as the frame: where the endoscopist puts the polyp."""
    rows, columns = (np.linspace(-1, 1, side) for side in image.shape[:2])
    return (rows[:, None] ** 2 + columns[None, :] ** 2) < 0.25


def reddest(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The redder side of Otsu's threshold ("A Threshold Selection Method from Gray-Level Histograms", 1979) on the share of red."""
    total = image.astype(np.float32).sum(axis=2)
    share = np.where(total > 60, image[..., 0] / np.maximum(total, 1), 0.0)  # the black corners are no tissue
    levels = np.round(share * 255).astype(np.intp)
    counts = np.bincount(levels[total > 60], minlength=256).astype(np.float64)
    below = counts.cumsum()
    mean_below = (counts * np.arange(256)).cumsum()
    whole, mean = below[-1], mean_below[-1]
    possible = (below > 0) & (below < whole)
    between = np.zeros(256)
    between[possible] = (mean_below - mean * below / whole)[possible] ** 2 / (below * (whole - below))[possible]
    return levels > between.argmax()


TRIVIAL: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.bool_]]] = {
    "nothing": nothing,
    "everything": everything,
    "central ellipse": central_ellipse,
    "reddest part (Otsu)": reddest,
}
"""Name -> function of an RGB frame [H, W, 3] that returns a mask [H, W]."""

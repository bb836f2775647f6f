"""A picture as a slide with one level: photographs from microscopes, and regions that someone cut out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.imaging.limits import Limits
from shared.imaging.reading import read_image
from shared.imaging.slides.resolution import Resolution

__all__ = ["PicturePyramid"]

_LIMITS = Limits(pixels=400_000_000)


class PicturePyramid:
    """See ``Pyramid``. Held in memory as a whole; states no resolution, because pictures carry that of paper."""

    format = "picture"

    def __init__(self, path: Path) -> None:
        self._pixels: NDArray[np.uint8] = read_image(path, limits=_LIMITS)
        height, width, _ = self._pixels.shape
        self.sizes: tuple[tuple[int, int], ...] = ((width, height),)
        self.resolution = Resolution()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See ``Pyramid``."""
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:
        """See ``Pyramid``."""

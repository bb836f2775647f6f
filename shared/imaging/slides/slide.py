"""One whole slide: its levels, its size in micrometres, and any region of it at any resolution."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.errors import InputError, UserError
from shared.imaging.slides.resolution import Resolution

__all__ = ["Level", "Pyramid", "Slide", "UnreadableRegion"]

Pixels = NDArray[np.uint8]

WHITE = 255
"""What lies outside the slide, or was not scanned."""
_MARGIN = 4
"""Pixels of a level read around a region, so that its edges are resampled as its middle is.
Bicubic filtering reaches two pixels of the coarser grid."""
_BLOCK = 4_000_000
"""Pixels of a level that an overview is made from at a time: a slide with one level never stands in memory as a whole."""


_RESCUED = 16_000_000
"""Pixels that are read at most from a finer level where a coarser one is damaged."""


class UnreadableRegion(InputError):
    """A part of the slide cannot be decoded; others may be."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of the pyramid."""

    width: int
    height: int
    downsample: float
    """Level-0 pixels for each of its pixels; 1 for level 0."""


class Pyramid(Protocol):
    """What a file format has to answer. May be called from many threads."""

    format: str
    """For a person, such as "Aperio"."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, the finest first."""
    resolution: Resolution
    """What the file says of its pixels' size."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """uint8 [height, width, 3], in pixels of this level, all of them inside it; white where nothing was scanned."""

    def close(self) -> None:
        """Closes the file."""


class Slide:
    """A whole slide; ``open_slide`` makes it. May be read from many threads; a context manager.

    After a read error the file is opened anew, because OpenSlide's handles answer nothing but that error from then on.

    Args:
        path: its file.
        opened: the open file, and what opens it again after a read error.
        mpp: micrometres per level-0 pixel, instead of what the file says.
    """

    def __init__(self, path: Path, *, opened: tuple[Pyramid, Callable[[], Pyramid]], mpp: float | None = None) -> None:
        self.path = path
        pyramid, self._opener = opened
        self._handle = _Handle(pyramid)
        self._lock = threading.Lock()
        self.format = pyramid.format
        self.resolution = Resolution.given(mpp) if mpp is not None else pyramid.resolution
        (width, height), *_ = pyramid.sizes
        self.size = (width, height)
        """Width and height of level 0."""
        self.levels = tuple(Level(width=w, height=h, downsample=_downsample(self.size, (w, h))) for w, h in pyramid.sizes)

    @property
    def name(self) -> str:
        """The file's name without its suffix; for a DICOM series in a folder of its own, the folder's."""
        return self.path.name if self.path.is_dir() else self.path.name.removesuffix("".join(_endings(self.path)))

    @property
    def mpp(self) -> float:
        """Micrometres per level-0 pixel.

        Raises:
            InputError: if the file states none, or one that cannot be true, and none was given.
        """
        return self.resolution.mpp(str(self.path))

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is at least as fine as ``downsample`` (to one part in a thousand)."""
        return max(index for index, level in enumerate(self.levels) if index == 0 or level.downsample <= downsample * 1.001)

    def read_region(self, x: float, y: float, width: int, height: int, *, mpp: float | None = None, level: int | None = None) -> Pixels:
        """A region at a resolution.

        It is taken from the coarsest level that is fine enough and resampled exactly: the result covers ``width * mpp`` micrometres,
        whatever the ratios of the levels. Where the ratio is one, pixels are as decoded. What lies outside the slide is white.

        Args:
            x, y: upper left corner in level-0 pixels.
            width, height: of the result, in its own pixels.
            mpp: micrometres per pixel of the result; or
            level: the level whose pixels are wanted. One of the two; level 0 if neither.

        Returns:
            uint8 [height, width, 3].

        Raises:
            UnreadableRegion: if that part of the file is damaged.
            InputError: if ``mpp`` is asked of a slide of unknown resolution.
            ValueError: if both mpp and level are given, or there is no such level.
        """
        if mpp is not None and level is not None:
            raise ValueError("read_region takes mpp or level, not both")
        if mpp is not None:
            downsample = mpp / self.mpp
            level = self.level_for(downsample)
        else:
            level = level or 0
            if not 0 <= level < len(self.levels):
                raise ValueError(f"level {level}: {self.name} has {len(self.levels)} levels")
            downsample = self.levels[level].downsample
        return self._resampled(level, x, y, width, height, downsample)

    def thumbnail(self, max_side: int) -> Pixels:
        """The whole slide with its longer side at most ``max_side`` pixels (never enlarged): uint8 [H, W, 3].

        Raises:
            UnreadableRegion: if a part of the file is damaged.
        """
        return self.overview(max(1.0, max(self.size) / max_side))

    def overview(self, downsample: float) -> Pixels:
        """The whole slide at this many level-0 pixels for each of its own: uint8 [ceil(height / downsample), ceil(width / downsample), 3].

        Made in blocks, so that a large slide with a single level fits in memory.

        Raises:
            UnreadableRegion: if a part of the file is damaged.
        """
        width, height = (max(1, math.ceil(side / downsample - 1e-6)) for side in self.size)
        level = self.level_for(downsample)
        ratio = downsample / self.levels[level].downsample
        rows = max(1, int(_BLOCK / (width * ratio * ratio)))
        result = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, rows):
            part = min(rows, height - top)
            result[top : top + part] = self._resampled(level, 0, top * downsample, width, part, downsample)
        return result

    def close(self) -> None:
        """Closes the file."""
        self._handle.pyramid.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _resampled(self, level: int, x: float, y: float, width: int, height: int, downsample: float) -> Pixels:
        """From pixels of a level to the wanted grid; where the level is damaged, from the next finer one."""
        own = self.levels[level].downsample
        ratio = downsample / own
        left, top = x / own, y / own
        try:
            if abs(ratio - 1) * max(width, height) < 0.05:  # not a twentieth of a pixel off at the far end
                return self._padded(level, round(left), round(top), width, height)
            return self._shrunk(level, left, top, width, height, ratio)
        except UnreadableRegion:
            finer = downsample / self.levels[level - 1].downsample
            if level == 0 or width * height * finer**2 > _RESCUED:
                raise
            return self._resampled(level - 1, x, y, width, height, downsample)

    def _shrunk(self, level: int, left: float, top: float, width: int, height: int, ratio: float) -> Pixels:
        """The box of level pixels that a region covers, with fractions, read with a margin and resampled."""
        margin = math.ceil(_MARGIN * max(1.0, ratio))
        first_x, first_y = math.floor(left) - margin, math.floor(top) - margin
        last_x, last_y = math.ceil(left + width * ratio) + margin, math.ceil(top + height * ratio) + margin
        source = self._padded(level, first_x, first_y, last_x - first_x, last_y - first_y)
        box = (left - first_x, top - first_y, left - first_x + width * ratio, top - first_y + height * ratio)
        return np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BICUBIC, box=box))

    def _padded(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Pixels of a level; white outside it."""
        limits = self.levels[level]
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, limits.width), min(y + height, limits.height)
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            return self._read(level, x, y, width, height)
        canvas = np.full((height, width, 3), WHITE, np.uint8)
        if left < right and top < bottom:
            canvas[top - y : bottom - y, left - x : right - x] = self._read(level, left, top, right - left, bottom - top)
        return canvas

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Pixels inside a level. One error spoils a handle for every thread in it, so each of them tries again with one of its own."""
        with self._lock:
            handle = self._handle
            handle.users += 1
        try:
            return handle.pyramid.read(level, x, y, width, height)
        except UserError:
            raise
        except MemoryError as error:
            raise InputError(f"{self.path}: a region of {width} x {height} pixels does not fit into memory. Ask for less.") from error
        except Exception:
            self._replace(handle)
        finally:
            with self._lock:
                handle.users -= 1
                unused = handle.spoilt and not handle.users
            if unused:
                handle.pyramid.close()
        pyramid = self._opener()
        try:
            return pyramid.read(level, x, y, width, height)
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UnreadableRegion(
                f"{self.path}: cannot be decoded at x {x}, y {y} of level {level} ({reason}). The file is damaged there; copy it again."
            ) from error
        finally:
            pyramid.close()

    def _replace(self, spoilt: _Handle) -> None:
        with self._lock:
            spoilt.spoilt = True
            if self._handle is spoilt:  # else another thread was here first
                self._handle = _Handle(self._opener())


@dataclass
class _Handle:
    """An open file, and how many threads are in it."""

    pyramid: Pyramid
    users: int = 0
    spoilt: bool = False
    """Answers nothing but an error any more; closed when the last thread has left it."""


def _downsample(whole: tuple[int, int], level: tuple[int, int]) -> float:
    """The whole number that gives a level's size from the slide's, up to whole pixels; if there is none, the ratio of the longer sides.

    Sizes alone mislead: 2967 pixels halved are 1483, which looks like a factor of 2.0007 and puts the far end half a pixel off.
    """
    side = 0 if whole[0] >= whole[1] else 1
    ratio = whole[side] / level[side]
    factor = max(1, round(ratio))
    fits = all(factor * (short - 1) < long < factor * (short + 1) for long, short in zip(whole, level, strict=True))
    return float(factor) if fits else max(1.0, ratio)


def _endings(path: Path) -> list[str]:
    lower = [suffix.lower() for suffix in path.suffixes]
    if lower[-2:] in ([".ome", ".tif"], [".ome", ".tiff"]):
        return path.suffixes[-2:]
    return path.suffixes[-1:] if len(path.suffix) <= 8 and not path.suffix[1:].isdigit() else []

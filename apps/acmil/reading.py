"""Reads the tiles of a slide ahead of whoever wants them: neighbours in one go, by many threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from apps.acmil.bags import Tiles
from shared.imaging.slides import Slide, UnreadableRegion

__all__ = ["TileStream", "runs"]

Block = tuple[NDArray[np.intp], NDArray[np.uint8]]
"""Indices [n] of tiles, and their pictures [n, S, S, 3]."""

RUN_PX = 2048
"""Neighbours in a row are read together up to this width: the file's own tiles under them are decoded once, and the calls are fewer."""
AHEAD_PX = 64_000_000
"""Pixels that wait at most, for each slide: 192 MB."""


class TileStream:
    """The tiles of one slide, in order; reading begins at once and goes on while the caller computes.

    Args:
        slide: closed by ``close``.
        tiles: where they lie.
        pool: threads; slides may share one.
    """

    def __init__(self, slide: Slide, tiles: Tiles, *, pool: ThreadPoolExecutor) -> None:
        self.slide, self.tiles = slide, tiles
        self.unreadable: list[str] = []
        """What could not be decoded, one message for each tile; complete when the stream has ended."""
        self._pool = pool
        self._mpp, self._px = tile_geometry(slide, tiles)
        self._runs = iter(runs(tiles, downsample=self._mpp / slide.mpp, px=self._px))
        self._ahead = max(2, AHEAD_PX // (RUN_PX * self._px))
        self._waiting: deque[Future[tuple[Block, list[str]]]] = deque()
        self._fill()

    def __iter__(self) -> Iterator[Block]:
        while self._waiting:
            block, failed = self._waiting.popleft().result()
            self._fill()
            self.unreadable += failed
            if len(block[0]):
                yield block

    def close(self) -> None:
        """Drops what waits, and closes the slide."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.cancel():
                future.exception()
        self.slide.close()

    def _fill(self) -> None:
        while len(self._waiting) < self._ahead and (run := next(self._runs, None)) is not None:
            self._waiting.append(self._pool.submit(self._read, run))

    def _read(self, run: NDArray[np.intp]) -> tuple[Block, list[str]]:
        corners = self.tiles.coordinates[run]
        try:
            return (run, self._cut(corners)), []
        except UnreadableRegion:
            good, pictures, failed = [], [], []
            for index, corner in zip(run, corners, strict=True):
                try:
                    pictures.append(self._cut(corner[None])[0])
                    good.append(index)
                except UnreadableRegion as error:
                    failed.append(str(error))
            px = self._px
            return (np.array(good, dtype=np.intp), np.stack(pictures) if pictures else np.empty((0, px, px, 3), np.uint8)), failed

    def _cut(self, corners: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Neighbours in a row, read in one go: [n, S, S, 3]."""
        px, factor = self._px, self._mpp / self.slide.mpp
        offsets = np.rint((corners[:, 0] - corners[0, 0]) / factor).astype(int)
        strip = self.slide.read_region(int(corners[0, 0]), int(corners[0, 1]), int(offsets[-1]) + px, px, mpp=self._mpp)
        return np.stack([strip[:, offset : offset + px] for offset in offsets])


def tile_geometry(slide: Slide, tiles: Tiles) -> tuple[float, int]:
    """Micrometres per pixel and side of the tiles as they are read.

    CLAM's and TRIDENT's files state the side in level-0 pixels, and no micrometres: then the slide's own count.
    """
    px = tiles.tile_px or tiles.tile_px_level0 or 256
    if tiles.tile_mpp is not None and tiles.mpp is not None:
        return tiles.tile_mpp * (slide.mpp / tiles.mpp), px
    return slide.mpp * (tiles.tile_px_level0 or px) / px, px


def runs(tiles: Tiles, *, downsample: float, px: int) -> Sequence[NDArray[np.intp]]:
    """Indices of tiles that can be cut out of one region exactly: in one row, side by side, whole pixels apart."""
    if not len(tiles):
        return []
    steps = np.diff(tiles.coordinates, axis=0)
    apart = steps[:, 0] / downsample
    joined = (steps[:, 1] == 0) & (apart > 0) & (apart <= px) & (np.abs(apart - np.rint(apart)) < 1e-3)
    groups: list[NDArray[np.intp]] = []
    for group in np.split(np.arange(len(tiles)), np.flatnonzero(~joined) + 1):
        pitch = (tiles.coordinates[group[-1], 0] - tiles.coordinates[group[0], 0]) / downsample / max(1, len(group) - 1)
        each = max(1, int((RUN_PX - px) // max(pitch, 1)) + 1)
        groups += [group[first : first + each] for first in range(0, len(group), each)]
    return groups

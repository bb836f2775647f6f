"""Where tissue is on a slide: outlines with their holes, from an overview.

The method is CLAM's (Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature Biomedical
Engineering 2021, methods): saturation, median filter, threshold, closing, outlines by area. CLAM counts areas in level-0 pixels, which mean
something else on every scanner; here they are in square millimetres, and its own values are presets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.acmil.config_pipeline import TissueConfig
from shared.imaging.slides import Slide

__all__ = ["CLAM_PRESETS", "Areas", "Piece", "Threshold", "find_tissue", "outline", "rasterised", "segment"]

Outline = NDArray[np.int32]
"""[K, 2]: x and y, closed."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A connected piece of tissue."""

    outline: Outline
    holes: tuple[Outline, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """From overview to mask."""

    saturation: int
    median_px: int
    close_px: int
    otsu: bool = False


@dataclass(frozen=True, kw_only=True)
class Areas:
    """Which outlines are kept; areas in pixels of the overview."""

    piece: float
    hole: float
    holes: int | None
    """At most so many in a piece, the largest."""


CLAM_PRESETS: dict[str, tuple[Threshold, tuple[float, float, int]]] = {
    "clam": (Threshold(saturation=8, median_px=7, close_px=4), (100, 16, 8)),
    "clam_bwh_biopsy": (Threshold(saturation=15, median_px=11, close_px=2), (1, 1, 2)),
    "clam_bwh_resection": (Threshold(saturation=15, median_px=11, close_px=4), (100, 16, 8)),
    "clam_tcga": (Threshold(saturation=8, median_px=7, close_px=4), (16, 4, 8)),
}
"""CLAM's: the threshold, and smallest area of a piece and of a hole in squares of 512 level-0 pixels, and most holes."""

_INK_HUES = (18, 119)
"""OpenCV's hues, 0 to 180, from yellow over green to blue; haematoxylin and eosin lie above: both take more green than red."""
_INK_SATURATION, _INK_BLACK = 70, 60
_INK_SHARE = 0.35
"""Ink is painted thinly: what is inked for the most part is grown by as much as the median filter blurs."""


def find_tissue(slide: Slide, config: TissueConfig) -> list[Piece]:
    """The pieces of tissue of a slide, in level-0 pixels; none if it is blank.

    Raises:
        InputError: if the slide's resolution is not known, or it cannot be read.
    """
    if config.preset in CLAM_PRESETS:
        threshold, (piece, hole, holes) = CLAM_PRESETS[config.preset]
        downsample = min((level.downsample for level in slide.levels), key=lambda one: abs(one - 64))
        if slide.size[0] * slide.size[1] / downsample**2 > 1e7:  # no level near: CLAM would give up
            downsample = 64.0
        reference = int(512**2 / downsample**2)
        areas = Areas(piece=piece * reference, hole=hole * reference, holes=holes)
        return outline(segment(slide.overview(downsample), threshold), areas, scale=downsample)
    downsample = max(1.0, config.mpp / slide.mpp)
    per_mm2 = (1000 / (slide.mpp * downsample)) ** 2
    threshold = Threshold(saturation=config.saturation, median_px=config.median_px | 1, close_px=config.close_px, otsu=config.otsu)
    overview = slide.overview(downsample)
    mask = segment(overview, threshold)
    if config.ink:
        mask &= ~_ink(overview, config.median_px | 1)
    areas = Areas(piece=config.min_area_mm2 * per_mm2, hole=config.min_hole_mm2 * per_mm2, holes=None)
    return outline(mask, areas, scale=downsample)


def segment(overview: NDArray[np.uint8], threshold: Threshold) -> NDArray[np.bool_]:
    """Which pixels of an overview, uint8 [H, W, 3], are tissue: bool [H, W]."""
    saturation = cv2.cvtColor(np.ascontiguousarray(overview), cv2.COLOR_RGB2HSV)[..., 1]
    smooth = cv2.medianBlur(saturation, threshold.median_px)
    kind = cv2.THRESH_BINARY + (cv2.THRESH_OTSU if threshold.otsu else 0)
    _, mask = cv2.threshold(smooth, threshold.saturation, 255, kind)
    if threshold.close_px:
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((threshold.close_px, threshold.close_px), np.uint8))
    result: NDArray[np.bool_] = mask > 0
    return result


def outline(mask: NDArray[np.bool_], areas: Areas, *, scale: float = 1.0) -> list[Piece]:
    """The pieces of a mask that are large enough once their holes are taken off, multiplied by ``scale``."""
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return []
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(hierarchy[0][:, 3]):
        if parent >= 0:
            children.setdefault(int(parent), []).append(index)
    pieces = []
    for index in np.flatnonzero(hierarchy[0][:, 3] == -1):
        inside = children.get(int(index), [])
        area = cv2.contourArea(contours[index]) - sum(cv2.contourArea(contours[hole]) for hole in inside)
        if area <= areas.piece or area == 0:
            continue
        largest = sorted((contours[hole] for hole in inside), key=cv2.contourArea, reverse=True)[: areas.holes]
        kept = tuple(_scaled(hole, scale) for hole in largest if cv2.contourArea(hole) > areas.hole)
        pieces.append(Piece(outline=_scaled(contours[index], scale), holes=kept))
    return pieces


def rasterised(pieces: Sequence[Piece], *, shape: tuple[int, int], downsample: float) -> NDArray[np.bool_]:
    """The pieces drawn and filled at ``1 / downsample`` of their scale: bool [H, W]."""
    canvas = np.zeros(shape, np.uint8)
    for piece in pieces:
        cv2.drawContours(canvas, [_scaled(piece.outline, 1 / downsample)], -1, 255, cv2.FILLED)
        for hole in piece.holes:
            cv2.drawContours(canvas, [_scaled(hole, 1 / downsample)], -1, 0, cv2.FILLED)
    result: NDArray[np.bool_] = canvas > 0
    return result


def _scaled(contour: NDArray[np.int32], scale: float) -> Outline:
    return (contour.reshape(-1, 2) * scale).astype(np.int32)


def _ink(overview: NDArray[np.uint8], median_px: int) -> NDArray[np.bool_]:
    hue, saturation, value = np.moveaxis(cv2.cvtColor(np.ascontiguousarray(overview), cv2.COLOR_RGB2HSV), -1, 0)
    coloured = (hue >= _INK_HUES[0]) & (hue <= _INK_HUES[1]) & (saturation >= _INK_SATURATION)
    inked = (coloured | (value < _INK_BLACK)).astype(np.float32)
    core = cv2.boxFilter(inked, -1, (3, 3)) > _INK_SHARE
    grown = cv2.dilate(core.astype(np.uint8), np.ones((median_px, median_px), np.uint8))
    # Grown only over what is coloured like ink at least faintly, so that tissue beside a mark stays.
    faint = (hue >= _INK_HUES[0]) & (hue <= _INK_HUES[1]) & (saturation >= _INK_SATURATION // 4)
    result: NDArray[np.bool_] = (grown > 0) & (faint | core)
    return result

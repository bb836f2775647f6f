"""Masks and probabilities drawn on the image they belong to.

The colours were chosen on the orange, red, pink and black of endoscopic frames: with simulated protanopia, deuteranopia and tritanopia
they stay apart from one another and from mucosa. Each contour carries a dark edge, so that it also reads on specular highlights.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

__all__ = ["AGREEMENT_COLORS", "PREDICTION_COLOR", "contours", "heat", "overlay", "side_by_side"]

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

PREDICTION_COLOR: Color = (0, 229, 255)
"""RGB of a predicted mask."""

AGREEMENT_COLORS: dict[str, Color] = {"found": PREDICTION_COLOR, "missed": (255, 236, 61), "false alarm": (124, 58, 255)}
"""RGB by kind of pixel, for the drawing and for the caller's legend: true positive, false negative, false positive."""

EDGE_COLOR: Color = (12, 12, 16)
SHORT_SIDE_PER_CONTOUR = 180
"""The contour is one pixel wide for each so many pixels of the image's shorter side: it looks the same at every resolution."""
NARROWEST_CONTOUR = 2.0
"""In pixels, one on each side of the border; a narrower line would be a blend with its dark edge."""


def overlay(image: ArrayLike, mask: ArrayLike, *, truth: ArrayLike | None = None, alpha: float = 0.25) -> Pixels:
    """The mask on its image: a contour and a translucent fill.

    Args:
        image: uint8 [H, W, 3], RGB.
        mask: bool [H, W], the prediction.
        truth: bool [H, W]; if given, the colours say where the two agree (``AGREEMENT_COLORS``).
        alpha: opacity of the fill, 0 (contours alone) to 1.

    Returns:
        uint8 [H, W, 3]. Where a mask runs out of the frame its contour stays open.

    Raises:
        ValueError: if a shape or a type is not as above, or ``alpha`` is outside 0 to 1.
    """
    image, predicted = _rgb(image), _binary(mask, "mask")
    _same_size(image, predicted, "mask")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: expected 0 to 1")
    if truth is None:
        regions = [(predicted, PREDICTION_COLOR)]
    else:
        actual = _binary(truth, "truth")
        _same_size(image, actual, "truth")
        colors = AGREEMENT_COLORS
        regions = [
            (predicted & actual, colors["found"]),
            (actual & ~predicted, colors["missed"]),
            (predicted & ~actual, colors["false alarm"]),
        ]
    canvas = image.astype(np.float32)
    for region, color in regions:
        _blend(canvas, color, alpha * region)
    width = max(NARROWEST_CONTOUR, min(image.shape[:2]) / SHORT_SIDE_PER_CONTOUR)
    for region, color in regions:
        _draw_contour(canvas, region, color, width=width)
    return _to_bytes(canvas)


def contours(image: ArrayLike, regions: Sequence[tuple[ArrayLike, Color]], *, width: float = NARROWEST_CONTOUR) -> Pixels:
    """The borders of several regions; nothing is filled, so that the image within stays as it is.

    Args:
        image: uint8 [H, W, 3], RGB.
        regions: bool [H, W] and RGB each, drawn in this order: where borders run together, the last is seen.
        width: of the lines, in pixels.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if a shape or a type is not as above.
    """
    image = _rgb(image)
    canvas = image.astype(np.float32)
    for mask, color in regions:
        region = _binary(mask, "region")
        _same_size(image, region, "region")
        _draw_contour(canvas, region, color, width=width)
    return _to_bytes(canvas)


def heat(image: ArrayLike, probability: ArrayLike, *, colormap: str = "viridis", opacity: float = 0.7) -> Pixels:
    """A map in 0 to 1 over a faded grey copy of its image. The scale is absolute: the same colour means the same value in every picture.

    Args:
        image: uint8 [H, W, 3], RGB.
        probability: float [H, W], each value in 0 to 1: a probability, an uncertainty, an attention map.
        colormap: any Matplotlib name. The default rises evenly in lightness and reads with colour blindness.
        opacity: of the colours where the map is 1; falls with the square root of the value, so that where the map is 0 the image is bare.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if a shape or a type is not as above, a value lies outside 0 to 1 or is not finite, or the colour map is unknown.
    """
    image = _rgb(image)
    values = np.asarray(probability, dtype=np.float32)
    _same_size(image, values, "probability")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"probability runs from {values.min()} to {values.max()}: expected finite values from 0 to 1")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}: expected 0 to 1")
    if colormap not in matplotlib.colormaps:
        raise ValueError(f"unknown colour map {colormap!r}: expected a Matplotlib name such as 'viridis' or 'magma'")
    grey = (image @ np.array([0.299, 0.587, 0.114])).astype(np.float32)
    colors = matplotlib.colormaps[colormap](values)[..., :3].astype(np.float32) * 255
    weight = (opacity * np.sqrt(values))[..., None]
    return _to_bytes(grey[..., None] * (1 - weight) + colors * weight)


def side_by_side(images: Sequence[ArrayLike], *, gap: int = 8, background: Color = (255, 255, 255)) -> Pixels:
    """Pictures in a row, each scaled to the height of the first.

    Args:
        images: uint8 [H, W, 3] or, for grey and for masks, uint8 or bool [H, W]; sizes may differ.
        gap: pixels between neighbours.
        background: RGB of the gap.

    Returns:
        uint8 [H, sum of widths and gaps, 3].

    Raises:
        ValueError: if there is no image, one has another shape or type, or ``gap`` is negative.
    """
    if not images:
        raise ValueError("no images: expected at least one")
    if gap < 0:
        raise ValueError(f"gap is {gap}: expected 0 or more pixels")
    pictures = [_rgb(_grey_to_rgb(image)) for image in images]
    height = pictures[0].shape[0]
    strip = np.empty((height, gap, 3), np.uint8)
    strip[:] = background
    row: list[Pixels] = []
    for picture in pictures:
        if picture.shape[0] != height:
            size = max(1, round(picture.shape[1] * height / picture.shape[0])), height
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
        row += [strip, picture]
    return np.concatenate(row[1:], axis=1)


def _draw_contour(canvas: NDArray[np.float32], region: NDArray[np.bool_], color: Color, *, width: float) -> None:
    """A smooth line on the region's border with a dark edge on both sides, drawn in place.

    The line follows the signed distance to the border, so it is antialiased; the work is limited to the region's bounding box.
    """
    found = ndimage.find_objects(region.astype(np.uint8))
    if not found:
        return
    edge = max(0.75, width / 3)
    margin = int(np.ceil(width + edge)) + 2
    box = tuple(slice(max(0, axis.start - margin), axis.stop + margin) for axis in found[0])
    inside = region[box]
    if inside.all():
        return
    distance = np.where(inside, ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside)).astype(np.float32) - 0.5
    part = canvas[box]
    _blend(part, EDGE_COLOR, 0.6 * np.clip(width / 2 + edge + 0.5 - distance, 0, 1))
    _blend(part, color, np.clip(width / 2 + 0.5 - distance, 0, 1))


def _blend(canvas: NDArray[np.float32], color: Color, weight: NDArray) -> None:
    weight = weight[..., None].astype(np.float32)
    canvas += (np.asarray(color, np.float32) - canvas) * weight


def _to_bytes(canvas: NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _grey_to_rgb(image: ArrayLike) -> NDArray:
    array = np.asarray(image)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    return np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array


def _rgb(image: ArrayLike) -> Pixels:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"image is {array.dtype} {list(array.shape)}: expected uint8 [H, W, 3]")
    return array


def _binary(mask: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.dtype != bool:
        raise ValueError(f"{name} is {array.dtype}: expected bool; threshold it first")
    return array


def _same_size(image: NDArray, array: NDArray, name: str) -> None:
    if array.shape != image.shape[:2]:
        raise ValueError(f"{name} is {list(array.shape)}: expected the image's {list(image.shape[:2])}")

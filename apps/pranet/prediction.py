"""What PraNet answers about one frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage

from shared.errors import UserError
from shared.explain.overlay import heat, overlay
from shared.files import write_json
from shared.imaging import encode_png, write_png

__all__ = ["PolypPrediction"]


@dataclass(frozen=True, kw_only=True)
class PolypPrediction:
    """The polyps of one frame, in the frame's own size."""

    media_types: ClassVar[tuple[str, ...]] = ("image/png",)

    image: NDArray[np.uint8]
    """[H, W, 3] RGB, the frame."""
    probability: NDArray[np.float32]
    """[H, W], 0 to 1: that the pixel is polyp; calibrated if the bundle is."""
    uncertainty: NDArray[np.float32] | None = None
    """[H, W], 0 to 0.5: standard deviation over the flips of test-time augmentation; None without it."""
    confidence: float
    """0 to 1: mean probability of the frame's highest 0.5 % of pixels; the score that decides on detection."""
    threshold: float
    """Probability from which a pixel is polyp."""
    detection_threshold: float | None
    """Confidence from which a frame has a polyp at all; None: every pixel above ``threshold`` counts."""

    @property
    def detected(self) -> bool:
        """Whether the frame is said to show a polyp."""
        return bool(self.mask.any())

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """[H, W]: polyp or not. Empty where the frame is said to show none."""
        if self.detection_threshold is not None and self.confidence < self.detection_threshold:
            return np.zeros(self.probability.shape, dtype=bool)
        return self.probability >= self.threshold

    def summary(self) -> dict[str, Any]:
        """Measurements; positions are (x, y) in pixels from the centre of the top left one, fractions are of the frame's area."""
        height, width = self.mask.shape
        labels, count = ndimage.label(self.mask, structure=np.ones((3, 3)))
        result: dict[str, Any] = {
            "polyp": self.detected,
            "confidence": round(self.confidence, 4),
            "area_fraction": round(float(self.mask.mean()), 6),
            "components": int(count),
            "largest_area_fraction": 0.0,
            "largest_centroid_px": None,
            "largest_box_px": None,
            "largest_equivalent_diameter_px": None,
            "mean_probability": None,
            "mean_uncertainty": None if self.uncertainty is None else round(float(self.uncertainty.mean()), 5),
            "width_px": width,
            "height_px": height,
        }
        if count:
            sizes = np.bincount(labels.ravel())[1:]
            largest = labels == 1 + int(sizes.argmax())
            rows, columns = np.nonzero(largest)
            area = int(sizes.max())
            result |= {
                "largest_area_fraction": round(area / largest.size, 6),
                "largest_centroid_px": [round(float(columns.mean()), 2), round(float(rows.mean()), 2)],
                "largest_box_px": [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
                "largest_equivalent_diameter_px": round(2 * float(np.sqrt(area / np.pi)), 2),
                "mean_probability": round(float(self.probability[self.mask].mean()), 4),
            }
        return result

    def contours(self) -> dict[str, Any]:
        """The mask as COCO writes it: ``polygons``, outer outlines as [x1, y1, x2, y2, ...] in pixels; and ``rle``, which is exact."""
        outlines, _ = cv2.findContours(self.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        rle = coco.encode(np.asfortranarray(self.mask.astype(np.uint8)))
        return {
            "size": list(self.mask.shape),
            "polygons": [outline.reshape(-1).tolist() for outline in outlines if len(outline) >= 3],
            "rle": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
        }

    def overlay(self) -> NDArray[np.uint8]:
        """[H, W, 3] RGB: the frame with the mask over it."""
        return overlay(self.image, self.mask)

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """Writes mask (0, 255), probability (16 bits, 65535 is 1), overlay, contours, and with TTA the uncertainty (65535 is 0.5).

        Raises:
            UserError: if a file cannot be written; no half-written one stays.
        """
        pictures = {"mask": self.mask, "probability": _to_16_bit(self.probability), "overlay": self.overlay()}
        if self.uncertainty is not None:
            pictures["uncertainty"] = _to_16_bit(2 * self.uncertainty)
        names = {kind: f"{stem}_{kind}.png" for kind in pictures}
        for kind, picture in pictures.items():
            write_png(folder / names[kind], picture)
        names["contours"] = f"{stem}_contours.json"
        write_json(folder / names["contours"], self.contours())
        return names

    def figure(self) -> Figure:
        """The frame, the overlay and the probability side by side."""
        panels = {"frame": self.image, "polyp" if self.detected else "no polyp found": self.overlay()}
        panels["probability"] = heat(self.image, self.probability)
        if self.uncertainty is not None:
            panels["uncertainty"] = heat(self.image, 2 * self.uncertainty)
        figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
        for position, (title, picture) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, len(panels), position)
            axes.imshow(picture)
            axes.set_title(title)
            axes.axis("off")
        return figure

    def encode(self, media_type: str) -> bytes:
        """The mask as PNG, 0 and 255."""
        if media_type not in self.media_types:
            raise UserError(f"{media_type} cannot be made; available: {', '.join(self.media_types)}.")
        return encode_png(self.mask)

    def preview(self) -> bytes:
        """The overlay as PNG."""
        return encode_png(self.overlay())


def _to_16_bit(values: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    return np.round(np.clip(values, 0, 1) * 65535).astype(np.uint16)

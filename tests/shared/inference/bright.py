"""The brightness predictor of the service's tests, with results written as apps write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.files import write_bytes
from tests.shared.serving.brightness import BrightnessPrediction, BrightnessPredictor

__all__ = ["BrightPrediction", "BrightPredictor", "write_frame"]


class BrightPrediction(BrightnessPrediction):
    def save(self, folder: Path, stem: str) -> dict[str, str]:
        write_bytes(folder / f"{stem}_mask.png", self.encode("image/png"))
        return {"mask": f"{stem}_mask.png"}


class BrightPredictor(BrightnessPredictor):
    def predict_batch(self, sources: Sequence[Any]) -> list[BrightnessPrediction]:
        return [BrightPrediction(image=one.image, mask=one.mask) for one in super().predict_batch(sources)]


def write_frame(path: Path, value: int, *, height: int = 20) -> None:
    """A frame of one brightness, 0 to 255; one that is all 13 breaks the model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, 30, 3), value, np.uint8)).save(path)

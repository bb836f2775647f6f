"""A whole Predictor without a model: a pixel belongs to the mask if it is bright. Small enough to see what the service does to it."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageSequence, UnidentifiedImageError

from shared.errors import InputError
from shared.inference.protocols import Sample

CARD = """# Brightness

Marks what is bright. **For tests only.** <script>document.title = "broken into"</script>

| setting | value |
| --- | --- |
| threshold | 128 |

More in [the repository](https://example.org/fovea).
"""


@dataclass(frozen=True, kw_only=True)
class BrightnessPrediction:
    media_types: ClassVar[tuple[str, ...]] = ("image/png", "image/tiff")
    image: np.ndarray
    mask: np.ndarray

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        Path(folder, f"{stem}_mask.png").write_bytes(self.encode("image/png"))
        return {"mask": f"{stem}_mask.png"}

    def figure(self) -> Figure:
        figure = Figure()
        figure.subplots().imshow(self.image)
        return figure

    def summary(self) -> dict[str, Any]:
        rows, columns = np.nonzero(self.mask)
        centroid = {"x_px": float(columns.mean()), "y_px": float(rows.mean())} if rows.size else None
        return {
            "found": bool(rows.size),
            "area_fraction": float(self.mask.mean()),
            "area_px": int(rows.size),
            "centroid": centroid,
        }

    def encode(self, media_type: str) -> bytes:
        return _file(self.mask.astype(np.uint8) * 255, media_type.removeprefix("image/").upper())

    def preview(self) -> bytes:
        drawn = self.image.copy()
        drawn[self.mask] = (drawn[self.mask] * 0.4 + np.array([0, 190, 160]) * 0.6).astype(np.uint8)
        return _file(drawn, "PNG")


class BrightnessPredictor:
    """``gate`` holds every batch until it is set; ``batches`` records the size of each; an image that is all 13 breaks the model."""

    suffixes: ClassVar[frozenset[str]] = frozenset({".png", ".gif", ".bmp"})

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.gate = gate
        self.batches: list[int] = []

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto", precision: str = "auto") -> Self:
        return cls()

    @property
    def card(self) -> str:
        return CARD

    @property
    def about(self) -> dict[str, Any]:
        return {"name": "brightness", "version": "1.0", "threshold": 128}

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        try:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        except UnidentifiedImageError as error:
            raise InputError(f"{name}: is no image; expected PNG, GIF or BMP.") from error
        frames = getattr(image, "n_frames", 1)
        if frames == 1:
            yield Sample(id="", read=lambda: _pixels(image, name))
            return
        for number, frame in enumerate(ImageSequence.Iterator(image)):
            copy = frame.convert("RGB")
            yield Sample(id=f"frame_{number:06d}", read=lambda copy=copy: _pixels(copy, name))

    def predict_batch(self, sources: Sequence[Any]) -> list[BrightnessPrediction]:
        self.batches.append(len(sources))
        if self.gate is not None:
            self.gate.wait(timeout=30)
        if any((image == 13).all() for image in sources):
            raise RuntimeError("the model broke on patient_smith.png")
        return [BrightnessPrediction(image=image, mask=image.mean(axis=-1) > 128) for image in sources]

    def predict(self, source: Any) -> BrightnessPrediction:
        return self.predict_batch([source])[0]


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    try:
        return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"{name}: the image is cut short ({error}). Copy it again.") from error


def _file(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()

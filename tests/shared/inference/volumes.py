"""A whole Predictor of volumes without a model: a voxel is in the mask if it is bright. One volume, or four sequences of an examination."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from shared.files import write_bytes
from shared.imaging.volumes import VOLUME_INPUTS, Volume, encode_labels, read_case, read_volume
from shared.inference.protocols import Sample

__all__ = ["BrightCasePredictor", "BrightVolumePrediction", "BrightVolumePredictor"]


@dataclass(frozen=True, kw_only=True)
class BrightVolumePrediction:
    """A mask on the grid of its volume."""

    media_types: ClassVar[tuple[str, ...]] = ("application/gzip", "application/x-nrrd")
    volume: Volume
    mask: np.ndarray

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        write_bytes(folder / f"{stem}_mask.nii.gz", self.encode(self.media_types[0]))
        return {"mask": f"{stem}_mask.nii.gz"}

    def figure(self) -> Figure:
        figure = Figure()
        figure.subplots().imshow(self.mask[:, :, 0])
        return figure

    def summary(self) -> dict[str, Any]:
        voxel_ml = float(np.prod(self.volume.spacing_mm)) / 1000
        return {"found": bool(self.mask.any()), "volume_ml": round(float(self.mask.sum()) * voxel_ml, 4)}

    def encode(self, media_type: str) -> bytes:
        suffix = dict(zip(self.media_types, (".nii.gz", ".nrrd"), strict=True))[media_type]
        return encode_labels(self.mask, like=self.volume, suffix=suffix)

    def preview(self) -> bytes:
        middle = self.mask[:, :, self.mask.shape[2] // 2]
        buffer = io.BytesIO()
        Image.fromarray(middle.T.astype(np.uint8) * 255).resize((40, 50), 0).save(buffer, "PNG")
        return buffer.getvalue()


class BrightVolumePredictor:
    """Takes one volume."""

    suffixes: ClassVar[frozenset[str]] = VOLUME_INPUTS

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto", precision: str = "auto") -> Self:
        return cls()

    @property
    def card(self) -> str:
        return "# Bright voxels\n\n**For tests only.**\n"

    @property
    def about(self) -> dict[str, Any]:
        return {"name": "bright voxels", "version": "1.0"}

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        yield Sample(id="", read=partial(self._read, source, name))

    def predict_batch(self, sources: Sequence[Any]) -> list[BrightVolumePrediction]:
        return [BrightVolumePrediction(volume=one, mask=one.values.reshape(-1, *one.shape).max(axis=0) > 100) for one in sources]

    def predict(self, source: Any) -> BrightVolumePrediction:
        return self.predict_batch([source])[0]

    def _read(self, source: Path | bytes, name: str) -> Volume:
        return read_volume(source, name=name)


class BrightCasePredictor(BrightVolumePredictor):
    """Takes the four sequences of an examination."""

    def _read(self, source: Path | bytes, name: str) -> Volume:
        return read_case(source, name=name)

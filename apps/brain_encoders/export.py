"""A bundle in other formats, checked against the original before it is kept."""

from __future__ import annotations

import torch

from apps.brain_encoders.config import ExportConfig
from apps.brain_encoders.inference import BrainEncoderPredictor
from apps.brain_encoders.preprocessing import MEAN, STD, padded_side
from shared.inference.export import export_network

__all__ = ["export"]


def export(config: ExportConfig) -> None:
    """Writes backbone and readout as one file, and says how far its output is from the bundle's."""
    predictor = BrainEncoderPredictor.load(config.model, device="cpu", precision="fp32")
    settings = predictor.settings
    side = padded_side(settings.backbone.size, settings.backbone.multiple)
    padding = "" if side == settings.backbone.size else f", zeros beyond {settings.backbone.size} x {settings.backbone.size}"
    note = {
        "input": f"RGB, [B, 3, {side}, {side}], value/255, minus {MEAN}, divided by {STD}{padding}",
        "output": f"[B, {sum(settings.hemispheres)}], hemispheres {list(settings.hemispheres)} in order",
        "settings": settings.to_dict(),
    }
    error = export_network(
        predictor.network,
        torch.randn(config.batch_size or 2, 3, side, side, generator=torch.Generator().manual_seed(0)),
        config.output,
        format=config.format,
        note=note,
        free=None if config.batch_size else {0: "batch"},
        names=("image", "response"),
    )
    print(f"{config.output}: input {note['input']}; output {note['output']}; largest difference from the bundle {error:.1e}")

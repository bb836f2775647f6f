"""A bundle in other formats, checked against the original before it is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apps.acmil.config import ExportConfig
from apps.acmil.inference import ACMILPredictor
from shared.inference.export import export_network

__all__ = ["export"]

_EXAMPLE, _OTHER = 120, 77
"""Tiles of the bag that is traced, and of another one that the exported file must read as well."""


class _Answers(nn.Module):
    """Features [N, D] to the classes' probabilities [C] and the attention of each branch [K, N]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.network(features)
        return torch.softmax(answer.logits, dim=-1), answer.attention


def export(config: ExportConfig) -> None:
    """Writes the file, and says how far its output is from the bundle's, on a bag of another size than it was made with."""
    predictor = ACMILPredictor.load(config.model, device="cpu", precision="fp32")
    settings = predictor.settings
    drawn = torch.Generator().manual_seed(0)
    example, other = (torch.randn(count, settings.features, generator=drawn) for count in (_EXAMPLE, _OTHER))
    note = {
        "input": f"float32 [tiles, {settings.features}], features of {settings.encoder or 'the encoder'}",
        "settings": settings.to_dict(),
    }
    error = export_network(
        _Answers(predictor.network).eval(),
        example,
        config.output,
        format=config.format,
        note=note,
        free={0: "tiles"},
        check=other,
        names=("features", "probability", "attention"),
        tolerance=1e-4,
    )
    print(
        f"{config.output}: input {note['input']}; outputs are the probabilities of {', '.join(settings.classes)} and the attention; "
        f"largest difference from the bundle {error:.1e}"
    )

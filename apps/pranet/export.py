"""A bundle in other formats, checked against the original before it is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apps.pranet.config import ExportConfig
from apps.pranet.inference import PraNetPredictor
from apps.pranet.preprocessing import MEAN, STD
from shared.errors import UserError
from shared.inference.export import export_network
from shared.inference.optimise import optimise

__all__ = ["export"]


class _Probability(nn.Module):
    """The network with its calibration: normalised frames [B, 3, S, S] to probabilities [B, 1, S, S]."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.network(image) / self.temperature)


def export(config: ExportConfig) -> None:
    """Writes the file, and says how far its output is from the bundle's."""
    predictor = PraNetPredictor.load(config.model, device="cpu", precision="fp32")
    size = config.size or predictor.settings.size
    if size % 32:
        raise UserError(f"--size {size}: must be a multiple of 32, such as {predictor.settings.size}.")
    model = predictor.settings.build()
    model.load_state_dict(predictor.weights)
    network = _Probability(optimise(model), predictor.settings.temperature).eval().to(memory_format=torch.contiguous_format)
    example = torch.randn(config.batch_size or 2, 3, size, size, generator=torch.Generator().manual_seed(0))
    note = {"input": f"RGB, [B, 3, {size}, {size}], value/255, minus {MEAN}, divided by {STD}", "settings": predictor.settings.to_dict()}
    error = export_network(
        network, example, config.output, format=config.format, note=note, free=None if config.batch_size else {0: "batch"}
    )
    print(f"{config.output}: input {note['input']}; output is the probability; largest difference from the bundle {error:.1e}")

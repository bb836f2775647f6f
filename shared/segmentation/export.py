"""A bundle's network as ONNX or torch.export file, for windows of one size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.config import plain
from shared.errors import UserError
from shared.inference.export import export_network
from shared.inference.optimise import optimise
from shared.segmentation.config import ExportConfig
from shared.segmentation.labels import Labels
from shared.segmentation.predictor import VolumePredictor

__all__ = ["export_volumes"]


class _Probability(nn.Module):
    """Prepared windows [B, C, *size] to probabilities [B, K, *size]."""

    def __init__(self, network: nn.Module, overlapping: bool) -> None:
        super().__init__()
        self.network, self.overlapping = network, overlapping

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(image)
        return torch.sigmoid(logits) if self.overlapping else torch.softmax(logits, dim=1)


def export_volumes(predictor_class: type[VolumePredictor], config: ExportConfig) -> None:
    """Writes the file, and says what goes in and how far its output is from the bundle's."""
    predictor = predictor_class.load(config.model, device="cpu", precision="fp32")
    network = predictor_class.build(predictor.model, Labels(predictor.settings.task))
    network.load_state_dict(predictor.weights)
    size = config.size or predictor.settings.window.size
    task = predictor.settings.task
    probability = _Probability(optimise(network), task.overlapping).eval().to(memory_format=torch.contiguous_format)
    example = torch.randn(2, len(task.modalities), *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            probability(example[:1])
    except ValueError as error:
        raise UserError(f"--size {' '.join(map(str, size))}: {error}") from error
    shape = f"[B, {len(task.modalities)}, {', '.join(map(str, size))}]"
    classes = [*([] if task.overlapping else ["background"]), *task.labels]
    prepared = "axes to the patient's right, front and head, prepared as settings.preprocessing says"
    note = {
        "input": f"{shape}: {', '.join(task.modalities)}; {prepared}",
        "output": f"probabilities of {', '.join(classes)}",
        "settings": {"model": plain(predictor.model), **plain(predictor.settings)},
    }
    difference = export_network(probability, example, config.output, format=config.format, note=note, free={0: "batch"})
    print(f"{config.output}: input {note['input']}; output: {note['output']}; largest difference from the bundle {difference:.1e}")

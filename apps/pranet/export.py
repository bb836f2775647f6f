"""A bundle in other formats, checked against the original before it is kept."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apps.pranet.config import ExportConfig
from apps.pranet.inference import PraNetPredictor
from apps.pranet.preprocessing import MEAN, STD
from shared.errors import UserError
from shared.files import atomic_path
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
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[config.format]
    if config.output.suffix != suffix:
        raise UserError(f"{config.output}: --format {config.format} writes {suffix} files; name it {config.output.with_suffix(suffix)}.")
    model = predictor.settings.build()
    model.load_state_dict(predictor.weights)
    network = _Probability(optimise(model), predictor.settings.temperature).eval().to(memory_format=torch.contiguous_format)
    example = torch.randn(config.batch_size or 2, 3, size, size, generator=torch.Generator().manual_seed(0))
    shapes = None if config.batch_size else {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}
    note = {"input": f"RGB, [B, 3, {size}, {size}], value/255, minus {MEAN}, divided by {STD}", "settings": predictor.settings.to_dict()}
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        expected = network(example)
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
        with atomic_path(config.output) as temporary:
            write = _write_onnx if config.format == "onnx" else _write_torch
            found = write(program, example, temporary, note)
            error = float((found - expected).abs().max())
            if not error < 1e-3:
                raise UserError(f"{config.output}: its output differs from the bundle's by {error:.2g}, so it was not kept.")
    print(f"{config.output}: input {note['input']}; output is the probability; largest difference from the bundle {error:.1e}")


def _write_onnx(program: torch.export.ExportedProgram, example: Tensor, path: Path, note: dict[str, Any]) -> Tensor:
    import onnxruntime

    onnx_program = torch.onnx.export(program, (example,), input_names=["image"], output_names=["probability"], dynamo=True, verbose=False)
    assert onnx_program is not None
    onnx_program.model.metadata_props["fovea"] = json.dumps(note)
    onnx_program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": example.numpy()})[0])


def _write_torch(program: torch.export.ExportedProgram, example: Tensor, path: Path, note: dict[str, Any]) -> Tensor:
    content = io.BytesIO()  # given a path, torch ends the whole process when the disk is full
    torch.export.save(program, content, extra_files={"fovea.json": json.dumps(note)})
    path.write_bytes(content.getbuffer())
    return torch.export.load(path).module()(example)


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the exporter's own progress report."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

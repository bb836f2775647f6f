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

from apps.acmil.config import ExportConfig
from apps.acmil.inference import ACMILPredictor
from shared.errors import UserError
from shared.files import atomic_path

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
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[config.format]
    if config.output.suffix != suffix:
        raise UserError(f"{config.output}: --format {config.format} writes {suffix} files; name it {config.output.with_suffix(suffix)}.")
    settings = predictor.settings
    network = _Answers(predictor.network).eval()
    drawn = torch.Generator().manual_seed(0)
    example, other = (torch.randn(count, settings.features, generator=drawn) for count in (_EXAMPLE, _OTHER))
    note = {
        "input": f"float32 [tiles, {settings.features}], features of {settings.encoder or 'the encoder'}",
        "settings": settings.to_dict(),
    }
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        expected = network(other)
        try:
            program = torch.export.export(network, (example.clone(),), dynamic_shapes=({0: torch.export.Dim("tiles", min=1, max=2**20)},))
        except Exception as error:  # torch.export raises many types
            raise UserError(
                f"{config.model}: a {predictor.about['name']} cannot be exported for bags of any size: what it does depends on their size."
            ) from error
        with atomic_path(config.output) as temporary:
            if config.format == "onnx":
                found = _write_onnx(program, example, other, temporary, note)
            else:
                found = _write_torch(program, other, temporary, note)
            error = max(float((one - true).abs().max()) for one, true in zip(found, expected, strict=True))
            if not error < 1e-4:
                raise UserError(f"{config.output}: its output differs from the bundle's by {error:.2g}, so it was not kept.")
    print(
        f"{config.output}: input {note['input']}; outputs are the probabilities of {', '.join(settings.classes)} and the attention; "
        f"largest difference from the bundle {error:.1e}"
    )


def _write_onnx(
    program: torch.export.ExportedProgram, example: Tensor, other: Tensor, path: Path, note: dict[str, Any]
) -> tuple[Tensor, ...]:
    import onnxruntime

    names = {"input_names": ["features"], "output_names": ["probability", "attention"]}
    onnx_program = torch.onnx.export(program, (example,), **names, dynamo=True, verbose=False)
    assert onnx_program is not None
    onnx_program.model.metadata_props["fovea"] = json.dumps(note)
    onnx_program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(torch.from_numpy(value) for value in session.run(None, {"features": other.numpy()}))


def _write_torch(program: torch.export.ExportedProgram, other: Tensor, path: Path, note: dict[str, Any]) -> tuple[Tensor, ...]:
    content = io.BytesIO()  # given a path, torch ends the whole process when the disk is full
    torch.export.save(program, content, extra_files={"fovea.json": json.dumps(note)})
    path.write_bytes(content.getbuffer())
    return torch.export.load(path).module()(other)


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

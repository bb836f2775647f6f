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
from torch import Tensor

from apps.brain_encoders.config import ExportConfig
from apps.brain_encoders.inference import BrainEncoderPredictor
from apps.brain_encoders.preprocessing import MEAN, STD, padded_side
from shared.errors import UserError
from shared.files import atomic_path

__all__ = ["export"]


def export(config: ExportConfig) -> None:
    """Writes backbone and readout as one file, and says how far its output is from the bundle's."""
    predictor = BrainEncoderPredictor.load(config.model, device="cpu", precision="fp32")
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[config.format]
    if config.output.suffix != suffix:
        raise UserError(f"{config.output}: --format {config.format} writes {suffix} files; name it {config.output.with_suffix(suffix)}.")
    backbone = predictor.settings.backbone
    side = padded_side(backbone.size, backbone.multiple)
    example = torch.randn(config.batch_size or 2, 3, side, side, generator=torch.Generator().manual_seed(0))
    shapes = None if config.batch_size else {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}
    padding = "" if side == backbone.size else f", zeros beyond {backbone.size} x {backbone.size}"
    note = {
        "input": f"RGB, [B, 3, {side}, {side}], value/255, minus {MEAN}, divided by {STD}{padding}",
        "output": f"[B, {sum(predictor.settings.hemispheres)}], hemispheres {list(predictor.settings.hemispheres)} in order",
        "settings": predictor.settings.to_dict(),
    }
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        expected = predictor.network(example)
        program = torch.export.export(predictor.network, (example,), dynamic_shapes=shapes)
        with atomic_path(config.output) as temporary:
            write = _write_onnx if config.format == "onnx" else _write_torch
            found = write(program, example, temporary, note)
            error = float((found - expected).abs().max())
            if not error < 1e-3:
                raise UserError(f"{config.output}: its output differs from the bundle's by {error:.2g}, so it was not kept.")
    print(f"{config.output}: input {note['input']}; output {note['output']}; largest difference from the bundle {error:.1e}")


def _write_onnx(program: torch.export.ExportedProgram, example: Tensor, path: Path, note: dict[str, Any]) -> Tensor:
    import onnxruntime

    onnx_program = torch.onnx.export(program, (example,), input_names=["image"], output_names=["response"], dynamo=True, verbose=False)
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

"""A network as ONNX or torch.export file, checked against the original before it is kept."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.files import atomic_path

__all__ = ["Format", "export_network"]

Format = Literal["onnx", "torch"]
_SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-3
"""Of a probability: a tenth of a percent changes no result that anybody looks at."""


def export_network(
    network: nn.Module,
    example: Tensor,
    path: Path,
    *,
    format: Format,  # noqa: A002 (as the option is called)
    note: Mapping[str, Any],
    free_batch: bool,
) -> float:
    """Writes the file, and returns how far its output for ``example`` is from the network's.

    Args:
        network: from one tensor to one tensor of probabilities, in eval mode.
        example: [B, ...], B at least 2 where the batch is free.
        path: ends in .onnx or .pt2, as the format says.
        format: onnx for ONNX Runtime, OpenVINO and others, with "image" in and "probability" out; torch for torch.export.
        note: what the file says of itself, JSON-ready, under "fovea".
        free_batch: any number of samples, or as many as ``example`` has.

    Raises:
        UserError: if the suffix is another, the file cannot be written, or its output differs by ``TOLERANCE``; then it is not kept.
    """
    suffix = _SUFFIXES[format]
    if path.suffix != suffix:
        raise UserError(f"{path}: --format {format} writes {suffix} files; name it {path.with_suffix(suffix)}.")
    shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},) if free_batch else None
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        expected = network(example)
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
        with atomic_path(path) as temporary:
            write = _write_onnx if format == "onnx" else _write_torch
            found = write(program, example, temporary, note)
            error = float((found - expected).abs().max())
            if not error < TOLERANCE:
                raise UserError(f"{path}: its output differs from the bundle's by {error:.2g}, so it was not kept.")
    return error


def _write_onnx(program: torch.export.ExportedProgram, example: Tensor, path: Path, note: Mapping[str, Any]) -> Tensor:
    import onnxruntime

    onnx_program = torch.onnx.export(program, (example,), input_names=["image"], output_names=["probability"], dynamo=True, verbose=False)
    assert onnx_program is not None
    onnx_program.model.metadata_props["fovea"] = json.dumps(note)
    onnx_program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": example.numpy()})[0])


def _write_torch(program: torch.export.ExportedProgram, example: Tensor, path: Path, note: Mapping[str, Any]) -> Tensor:
    content = io.BytesIO()  # given a path, torch ends the whole process when the disk is full
    torch.export.save(program, content, extra_files={"fovea.json": json.dumps(note)})
    path.write_bytes(content.getbuffer())
    answer: Tensor = torch.export.load(path).module()(example)
    return answer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own progress report."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

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
    free: Mapping[int, str] | None = None,
    check: Tensor | None = None,
    names: tuple[str, ...] = ("image", "probability"),
    tolerance: float = TOLERANCE,
) -> float:
    """Writes the file, and returns how far its outputs are from the network's.

    Args:
        network: from one tensor to one or several, in eval mode.
        example: what it is traced with; at least 2 along every free axis.
        path: ends in .onnx or .pt2, as the format says.
        format: onnx for ONNX Runtime, OpenVINO and others; torch for torch.export.
        note: what the file says of itself, JSON-ready, under "fovea".
        free: axes of the input that may have any extent, with what they count: ``{0: "batch"}``. All others are as in ``example``.
        check: another input, with which the outputs are compared; ``example`` if not given.
        names: of the input and of each output, in ONNX.
        tolerance: of an output, absolutely.

    Raises:
        UserError: if the suffix is another, the network does something else for another extent of a free axis, the file cannot be written,
            or an output differs by ``tolerance``; then it is not kept.
    """
    suffix = _SUFFIXES[format]
    if path.suffix != suffix:
        raise UserError(f"{path}: --format {format} writes {suffix} files; name it {path.with_suffix(suffix)}.")
    check = example if check is None else check
    shapes = ({axis: torch.export.Dim(name, min=1, max=2**20) for axis, name in free.items()},) if free else None
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        expected = _outputs(network(check))
        try:
            program = torch.export.export(network, (example.clone(),), dynamic_shapes=shapes)
        except Exception as error:  # torch.export raises many types
            counted = " and ".join(free.values()) if free else ""
            reason = f"for any number of {counted}: what it does depends on the number" if free else f"({type(error).__name__}: {error})"
            raise UserError(f"{path}: this network cannot be exported {reason}.") from error
        with atomic_path(path) as temporary:
            if format == "onnx":
                found = _write_onnx(program, example, check, temporary, note, names)
            else:
                found = _write_torch(program, check, temporary, note)
            difference = max(float((one - true).abs().max()) for one, true in zip(found, expected, strict=True))
            if not difference < tolerance:
                raise UserError(f"{path}: its output differs from the bundle's by {difference:.2g}, so it was not kept.")
    return difference


def _outputs(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (answer,) if isinstance(answer, Tensor) else tuple(answer)


def _write_onnx(
    program: torch.export.ExportedProgram, example: Tensor, check: Tensor, path: Path, note: Mapping[str, Any], names: tuple[str, ...]
) -> tuple[Tensor, ...]:
    import onnxruntime

    onnx_program = torch.onnx.export(program, (example,), input_names=names[:1], output_names=names[1:], dynamo=True, verbose=False)
    assert onnx_program is not None
    onnx_program.model.metadata_props["fovea"] = json.dumps(note)
    onnx_program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(torch.from_numpy(value) for value in session.run(None, {names[0]: check.numpy()}))


def _write_torch(program: torch.export.ExportedProgram, check: Tensor, path: Path, note: Mapping[str, Any]) -> tuple[Tensor, ...]:
    content = io.BytesIO()  # given a path, torch ends the whole process when the disk is full
    torch.export.save(program, content, extra_files={"fovea.json": json.dumps(note)})
    path.write_bytes(content.getbuffer())
    return _outputs(torch.export.load(path).module()(check))


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

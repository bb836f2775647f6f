"""Attention blocks give the same answers in ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.shared.attention.cases import Case, close, one_of_each_block

USED = {"attn_gate_concat", "cam", "detr_decoder", "gated_mil", "mba", "mhsa", "pam", "rev_mbconv", "reverse", "routing_cross"}
"""By the apps, which export them."""
WINDOWED = {"halo", "lka", "twins_lsa"}


@pytest.mark.parametrize("case", one_of_each_block(USED | WINDOWED))
def test_onnx_gives_the_same_answer(case: Case, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Positional(nn.Module):
        """With everything but the tensors fixed: ONNX has no other inputs."""

        def __init__(self, block: nn.Module, inputs: dict[str, Any]) -> None:
            super().__init__()
            self.block = block
            self.names = [name for name, value in inputs.items() if isinstance(value, Tensor)]
            self.fixed = {name: value for name, value in inputs.items() if not isinstance(value, Tensor)}

        def forward(self, *values: Tensor) -> Any:
            return self.block(**dict(zip(self.names, values, strict=True)), **self.fixed)

    inputs = case.inputs()
    module = Positional(case.build(), inputs).eval()
    values = tuple(inputs[name] for name in module.names)
    path = tmp_path / "block.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, values, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    answers = session.run(None, {name: value.numpy() for name, value in zip(names, values, strict=True)})
    close(tuple(torch.from_numpy(each) for each in answers), module(*values), tolerance=1e-4)

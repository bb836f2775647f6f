"""Every attention block compiles, exports and runs elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.shared.attention.cases import CASES, Case, close

one_case_of_each_block = pytest.mark.parametrize("case", [case for case in CASES if case.rank in (0, 2)], ids=str)
"""Where other ranks take the same path, and tracing takes seconds."""


@one_case_of_each_block
def test_it_compiles_whole_with_sizes_left_open(case: Case) -> None:
    torch._dynamo.reset()
    block = case.build()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
        for grid in (case.grid, tuple(extent + 2 for extent in case.grid)):
            inputs = case.inputs(grid=grid)
            close(compiled(**inputs), block(**inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scse", "mhsa", "twins_lsa", "flatten"])
def test_machine_code_of_it_trains_the_same(name: str) -> None:
    torch._dynamo.reset()
    case = next(case for case in CASES if case.name == name and case.rank in (0, 2))
    block, inputs = case.build(), case.inputs()
    inputs["x"].requires_grad_()
    compiled = torch.compile(block, fullgraph=True)
    for one, other in zip(
        *(torch.autograd.grad(way(**inputs).square().sum(), [inputs["x"], *block.parameters()]) for way in (block, compiled)), strict=True
    ):
        # Fused sums in another order, of squares that reach some tens.
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@one_case_of_each_block
def test_it_exports(case: Case) -> None:
    block, inputs = case.build(), case.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(block, (), inputs)
    close(program.module()(**inputs), block(**inputs))


@one_case_of_each_block
def test_onnx_gives_the_same_answer(case: Case, tmp_path: Any) -> None:
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

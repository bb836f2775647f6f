"""Every attention block compiles and exports."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.shared.attention.cases import CASES, FIRST_OF_THEIR_MODULES, Case, close, one_of_each_block

one_case_of_each_block = pytest.mark.parametrize("case", one_of_each_block(FIRST_OF_THEIR_MODULES))


@one_case_of_each_block
def test_it_compiles_whole(case: Case) -> None:
    torch._dynamo.reset()
    block, inputs = case.build(), case.inputs()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(torch.compile(block, fullgraph=True, dynamic=False, backend="eager")(**inputs), block(**inputs))


@pytest.mark.thorough
@one_case_of_each_block
def test_it_compiles_whole_with_sizes_left_open(case: Case) -> None:
    """Up to two minutes for a block, all of them in torch's algebra of sizes."""
    torch._dynamo.reset()
    block = case.build()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
        for grid in (case.grid, tuple(extent + 2 for extent in case.grid)):
            inputs = case.inputs(grid=grid)
            close(compiled(**inputs), block(**inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mhsa", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("scse", "twins_lsa", "flatten"))])
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

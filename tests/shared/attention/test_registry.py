"""What holds for every attention block, in every number of dimensions that it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shared.attention import cost_of, record
from tests.shared.attention.cases import CASES, Case, answer, close

every_block = pytest.mark.parametrize("case", CASES, ids=str)

# It chooses pairs of tokens, which has no gradient; a loss of its own trains it (``Sparsifiner.connectivity``).
_PREDICTOR = {"token_projection", "token_basis", "query_reduce.weight", "query_reduce.bias", "key_reduce.weight", "key_reduce.bias"}
UNUSED: dict[str, set[str]] = {"sparsifiner": _PREDICTOR, "sparsifiner_published": _PREDICTOR}
"""Parameters that no output depends on, because the published block has them all the same."""

NO_GRADIENT_CHECK: dict[str, str] = {
    "lln": "its deviations are constants to the gradient, as published",
    "lln_published": "its deviations are constants to the gradient, as published",
    "lln_diagonal": "its deviations are constants to the gradient, as published",
    "lln_diagonal_published": "its deviations are constants to the gradient, as published",
}
"""Blocks that are not differentiable everywhere near a random input, and why."""

BATCH_DEPENDENT: dict[str, str] = {
    "lln_published": "deviations are taken over the whole batch",
    "lln_diagonal_published": "deviations are taken over the whole batch",
}
"""Published forms in which one sample changes another's answer, and by what."""


def cast(inputs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: change(value) if isinstance(value, Tensor) and value.is_floating_point() else value for name, value in inputs.items()}


@every_block
def test_it_says_what_it_is(case: Case) -> None:
    entry = case.entry
    assert len(entry.summary) > 20
    assert any(character.isdigit() for character in entry.paper), "the paper's year"
    assert "[B, " in (entry.block.forward.__doc__ or ""), "forward says its shapes"


@every_block
def test_odd_sizes_give_finite_answers_and_the_input_is_left_alone(case: Case) -> None:
    block, inputs = case.build(), case.inputs()
    before = copy.deepcopy(inputs)
    outputs = answer(block(**inputs))
    assert all(output.isfinite().all() for output in outputs)
    assert all(output.shape[0] == 2 for output in outputs)
    for name, value in inputs.items():
        assert not isinstance(value, Tensor) or torch.equal(value, before[name])


@every_block
def test_the_same_twice_is_the_same(case: Case) -> None:
    block = case.build()
    for one, other in zip(answer(block(**case.inputs())), answer(block(**case.inputs())), strict=True):
        assert torch.equal(one, other)


@every_block
def test_a_sample_does_not_change_another(case: Case) -> None:
    if case.name in BATCH_DEPENDENT:
        pytest.skip(BATCH_DEPENDENT[case.name])
    block, inputs = case.build(), case.inputs(batch=3)
    together = answer(block(**inputs))
    alone = answer(
        block(**{name: value[1:2] if isinstance(value, Tensor) and value.shape[:1] == (3,) else value for name, value in inputs.items()})
    )
    close(tuple(output[1:2] for output in together), alone)


@every_block
def test_an_empty_batch_is_answered(case: Case) -> None:
    if case.name in BATCH_DEPENDENT:
        pytest.skip(BATCH_DEPENDENT[case.name])
    block = case.build()
    full, empty = answer(block(**case.inputs(batch=2))), answer(block(**case.inputs(batch=0)))
    assert [tuple(output.shape) for output in empty] == [(0, *output.shape[1:]) for output in full]


@every_block
def test_the_formulas_count_what_torch_counts(case: Case) -> None:
    block, grid = case.build(), case.grid
    expected = cost_of(case.name, grid, **case.settings)
    assert expected.parameters == sum(weight.numel() for weight in block.parameters() if weight.requires_grad)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        block(**case.inputs(batch=1))
    assert expected.macs == counter.get_total_flops() // 2


@every_block
def test_training_reaches_every_parameter(case: Case) -> None:
    block = case.build().train()
    inputs = cast(case.inputs(), lambda x: x.requires_grad_())
    sum((output * torch.randn_like(output)).sum() for output in answer(block(**inputs)) if output.requires_grad).backward()
    unused = {name for name, weight in block.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert unused == UNUSED.get(case.name, set())
    assert all(weight.grad.isfinite().all() for weight in block.parameters() if weight.grad is not None)
    assert all(
        value.grad is not None and value.grad.isfinite().all()
        for value in inputs.values()
        if isinstance(value, Tensor) and value.requires_grad
    )


@every_block
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    if case.name in NO_GRADIENT_CHECK:
        pytest.skip(NO_GRADIENT_CHECK[case.name])
    block = case.build().double()
    small = {1: (5,), 2: (3, 4), 3: (2, 3, 2)}[case.rank or 1]
    inputs = cast(case.inputs(batch=1, grid=small), lambda x: x.double())
    names = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()]
    weights = [weight.detach().clone().requires_grad_() for weight in block.parameters()]
    keys = [name for name, _ in block.named_parameters()]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        given = inputs | dict(zip(names, values[: len(names)], strict=True))
        output = torch.func.functional_call(block, dict(zip(keys, values[len(names) :], strict=True)), (), given)
        return tuple(each for each in answer(output) if each.requires_grad)

    assert torch.autograd.gradcheck(run, (*(inputs[name].requires_grad_() for name in names), *weights), fast_mode=True, atol=1e-4)


@every_block
def test_autocast_stays_near_float32(case: Case) -> None:
    block, inputs = case.build(), case.inputs()
    with torch.no_grad():
        exact = answer(block(**inputs))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = answer(block(**inputs))
    for one, other in zip(exact, rough, strict=True):
        if one.is_floating_point():
            # bfloat16 has 8 bits: 2 ** -8 at each of several operations, relative to the spread of the answer.
            assert (one - other.float()).abs().mean() <= 0.05 * one.std() + 1e-3


@every_block
def test_channels_last_and_strided_inputs_are_the_same(case: Case) -> None:
    block, inputs = case.build(), case.inputs()

    def strided(x: Tensor) -> Tensor:
        return x.transpose(1, -1).contiguous().transpose(1, -1) if x.ndim > 2 else x

    close(block(**inputs), block(**cast(inputs, strided)))


@every_block
def test_a_copy_with_the_same_state_answers_the_same(case: Case) -> None:
    block, other = case.build(), case.build(seed=5)
    other.load_state_dict(copy.deepcopy(block).state_dict())
    close(block(**case.inputs()), other(**case.inputs()), tolerance=0)


@every_block
def test_recording_changes_no_answer_and_leaves_nothing(case: Case) -> None:
    block, inputs = case.build(), case.inputs()
    before = {name: set(vars(module)) for name, module in block.named_modules()}
    plain = block(**inputs)
    with record(block) as maps:
        recorded = block(**inputs)
    close(plain, recorded, tolerance=0)
    for name, module in block.named_modules():
        assert set(vars(module)) == before[name]
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for found in maps.values():
        dense = found.dense()
        assert tuple(dense.shape) == found.shape
        assert dense.isfinite().all()

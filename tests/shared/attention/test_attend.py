"""Fused attention is attention: whatever the widths, the bias, the mask and the memory layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shared.attention import attend, explain_backend, record
from shared.attention.measure import peak_bytes


def explicit(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """The formula, with the map in memory; a query without keys gets zeros."""
    logits = scale * query @ key.mT
    logits = logits if bias is None else logits + bias
    logits = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(torch.softmax(logits, dim=-1)) @ value


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    width=st.integers(1, 9),
    out_width=st.integers(1, 9),
    has_bias=st.booleans(),
    has_mask=st.booleans(),
    scale=st.sampled_from([None, 1.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_it_is_the_formula(batch, heads, queries, keys, width, out_width, has_bias, has_mask, scale, seed) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key, value = drawn(batch, heads, queries, width), drawn(batch, heads, keys, width), drawn(batch, heads, keys, out_width)
    bias = drawn(heads, queries, keys) if has_bias else None
    mask = drawn(queries, keys) > 0 if has_mask else None
    expected = explicit(query, key, value, width**-0.5 if scale is None else scale, bias, mask)
    # Another order of float64 sums.
    torch.testing.assert_close(attend(query, key, value, scale=scale, bias=bias, mask=mask), expected, rtol=1e-10, atol=1e-10)


def test_gradients_are_finite_where_a_query_sees_nothing() -> None:
    x = torch.randn(1, 2, 6, 4, requires_grad=True)
    for mask in (torch.zeros(6, 6, dtype=torch.bool), torch.ones(6, 6, dtype=torch.bool).tril(-1)):
        for bias in (None, torch.randn(6, 6)):
            output = attend(x, x, x, bias=bias, mask=mask)
            assert (output[:, :, 0] == 0).all()
            (gradient,) = torch.autograd.grad(output.sum(), x)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("out_width", [4, 32])
def test_the_map_is_not_held(out_width: int) -> None:
    query, value = torch.randn(1, 1, 2048, 4), torch.randn(1, 1, 2048, out_width)
    held = peak_bytes(lambda: attend(query.mT.contiguous().mT, query, value))
    assert held < 2048 * 2048 * 4 / 4, "a quarter of one map"


def test_the_kernel_and_the_reason_are_told() -> None:
    x = torch.randn(1, 2, 64, 8)
    assert explain_backend(x, x, x) == "flash: fused, no map in memory"
    assert explain_backend(x, x, x[..., :4]).startswith("flash")
    trained = torch.zeros(2, 64, 64).expand(1, 2, 64, 64).clone().requires_grad_()
    assert explain_backend(x, x, x, bias=trained).startswith("math: the map is held in memory, because the bias is trained")


def test_recording_does_not_repeat_the_product() -> None:
    x = torch.randn(1, 2, 16, 8)

    class Attention(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attend(x, x, x)

    def flops(recorded: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            if recorded:
                with record(Attention()) as _:
                    attend(x, x, x)
            else:
                attend(x, x, x)
        return counter.get_total_flops()

    assert flops(recorded=True) == flops(recorded=False)

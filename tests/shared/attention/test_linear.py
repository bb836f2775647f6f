"""Linear attention is attention: its maps are there on request, its sums do not overflow, and its memory does not grow with the map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.attention import cost_of, record
from shared.attention.attend import merge_heads
from shared.attention.linear import linear_attend
from shared.attention.measure import peak_bytes
from tests.shared.attention.random_blocks import random_block, random_tokens

SEQUENCES: dict[str, dict[str, Any]] = {
    "flow": {"heads": 2},
    "flow_causal": {"heads": 2, "chunk": 4},
    "fourier": {"heads": 2, "axes": 0},
    "galerkin": {"heads": 2, "axes": 0},
    "hedgehog": {"heads": 2},
    "lln": {"heads": 2},
}
"""Blocks of tokens that are linear attention from projections to projection, with nothing added."""


class Heads(nn.Module):
    """Linear attention alone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return linear_attend(query, key, value, **self.settings)


def features(*, queries: int = 5, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 3, queries, 4), torch.rand(2, 3, keys, 4), torch.randn(2, 3, keys, 6)


@pytest.mark.parametrize(
    "settings",
    [{}, {"eps": 0.5}, {"normaliser": 0.1}, {"normaliser": torch.rand(2, 3, 5, 1), "offset": torch.randn(2, 3, 5, 1)}],
    ids=["sum", "eps", "number", "offset"],
)
def test_the_map_times_the_values_is_the_answer(settings: dict[str, Any]) -> None:
    query, key, value = features()
    heads = Heads(**settings)
    with record(heads) as maps:
        answer = heads(query, key, value)
    dense = maps[""].dense()
    # float32 sums of 7 terms near 1, in another order.
    torch.testing.assert_close(dense @ value, answer, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps[""].dense(queries=[3], heads=1, keys=slice(2, 4)), dense[:, 1:2, 3:4, 2:4])
    if not settings:
        torch.testing.assert_close(dense.sum(-1), torch.ones(2, 3, 5))


def test_gradients_of_the_map_are_those_of_a_map_that_was_held() -> None:
    query, key, value = (x.double().requires_grad_() for x in features())
    heads = Heads()
    with record(heads, gradients=True) as maps:
        heads(query, key, value).square().sum().backward()
    held = maps[""].dense().detach().requires_grad_()
    (expected,) = torch.autograd.grad((held @ value).square().sum(), held)
    # float64 sums in another order.
    torch.testing.assert_close(maps[""].gradient(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("autocast", [False, True])
def test_sums_over_many_tokens_do_not_overflow_in_half_precision(autocast: bool) -> None:
    """4096 keys of weight 1 and values of 100: their sum is six times what float16 can hold. The mean is not."""
    ones, value = torch.ones(1, 1, 4096, 2, dtype=torch.float16), torch.full((1, 1, 4096, 2), 100.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        answer = linear_attend(ones, ones, value)
    assert answer.dtype == torch.float16
    assert torch.equal(answer, value)


@pytest.mark.parametrize("name", ["hedgehog", "lln"])
def test_weights_sum_to_one_under_autocast(name: str) -> None:
    block = random_block(name, channels=16, heads=2).float()
    x = torch.randn(2, 50, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), record(block) as maps:
        block(x)
        total = maps[""].dense().sum(-1)
    # float32 sums of 50 terms: bfloat16 would be off by 2 ** -8.
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_block_is_its_map_times_its_values(name: str) -> None:
    block, x = random_block(name, channels=16, **SEQUENCES[name]), random_tokens(2, 11, 16)
    with record(block) as maps:
        answer = block(x)
    expected = block.out(merge_heads(maps[""].dense() @ maps[""].value))
    # float64 sums in another order.
    torch.testing.assert_close(answer, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SEQUENCES)
def test_no_map_is_held_and_the_cost_is_linear(name: str) -> None:
    block, x = random_block(name, channels=16, **SEQUENCES[name]).float(), torch.randn(1, 2048, 16)
    with torch.no_grad():
        assert peak_bytes(lambda: block(x)) < 2048 * 2048 * 4 / 4, "a quarter of one head's map"
    once, twice, thrice = (cost_of(name, (count,), channels=16, **SEQUENCES[name]).macs for count in (64, 128, 192))
    assert twice - once == thrice - twice == once


@pytest.mark.parametrize("name", sorted(SEQUENCES.keys() - {"flow_causal"}))
def test_the_order_of_tokens_does_not_matter(name: str) -> None:
    block, x, order = random_block(name, channels=16, **SEQUENCES[name]), random_tokens(2, 11, 16), torch.randperm(11)
    # float64 sums in another order.
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["flow", "fourier", "galerkin", "hedgehog"])
def test_every_token_twice_changes_nothing(name: str) -> None:
    """Weights are shares: the same function, known at twice as many points, is the same function."""
    block, x = random_block(name, channels=16, **SEQUENCES[name]), random_tokens(2, 9, 16)
    # Flow-Attention adds 1e-6 to sums that double.
    torch.testing.assert_close(block(x.repeat(1, 2, 1))[:, :9], block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*SEQUENCES, "lln_diagonal", "flatten", "flatten_window", "inline"])
def test_heads_must_divide_the_channels(name: str) -> None:
    with pytest.raises(ValueError, match=r"heads=3 must divide .*16"):
        random_block(name, channels=16, heads=3)

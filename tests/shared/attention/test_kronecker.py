"""Kronecker attention: a map is its averages along the axes, and answers are summed crosswise."""

from __future__ import annotations

import pytest
import torch

from shared.attention import create, record
from tests.shared.attention.random_blocks import load, random_block, random_tokens

BOTH = pytest.mark.parametrize("name", ["kronecker_qkv", "kronecker_kv"])


def test_rows_and_columns_attend_to_each_other() -> None:
    block, x = random_block("kronecker_qkv", channels=16, heads=1), random_tokens(2, 16, 5, 7)
    lines = torch.cat((x.mean(3), x.mean(2)), dim=-1).mT
    key, value = block.key_value(lines).chunk(2, dim=-1)
    answers = block.out((block.query(lines) @ key.mT).softmax(-1) @ value).mT
    expected = answers[..., :5].unsqueeze(-1) + answers[..., 5:].unsqueeze(-2)
    # float64 sums in another order.
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_positions_attend_to_rows_and_columns() -> None:
    block, x = random_block("kronecker_kv", channels=16, heads=1), random_tokens(2, 16, 5, 7)
    with record(block) as maps:
        answer = block(x)
    key, value = block.key_value(torch.cat((x.mean(3), x.mean(2)), dim=-1).mT).chunk(2, dim=-1)
    weights = (block.query(x.flatten(2).mT) @ key.mT).softmax(-1)
    # float64 sums in another order.
    torch.testing.assert_close(answer, block.out(weights @ value).mT.reshape(x.shape), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(maps[""].dense()[:, 0], weights, rtol=1e-10, atol=1e-10)


def test_on_a_line_both_are_self_attention() -> None:
    x, plain = random_tokens(2, 16, 9), random_block("mhsa", channels=16, heads=2, qkv_bias=False)
    state = plain.state_dict()
    query, key_value = state.pop("qkv.weight").split((16, 32))
    # The usual scale, which these have not, goes into the queries.
    state |= {"query.weight": query * 8**-0.5, "key_value.weight": key_value}
    for name in ("kronecker_qkv", "kronecker_kv"):
        block = load(create(name, channels=16, heads=2).double(), state)
        # float64 sums in another order.
        torch.testing.assert_close(block(x), plain(x.mT).mT, rtol=1e-10, atol=1e-10)


@BOTH
def test_axes_are_alike(name: str) -> None:
    block, x = random_block(name, channels=16, heads=2, head_channels=3), random_tokens(2, 16, 3, 4, 5)
    # float64 sums in another order.
    torch.testing.assert_close(block(x.permute(0, 1, 4, 2, 3)), block(x).permute(0, 1, 4, 2, 3), rtol=1e-10, atol=1e-10)


@BOTH
def test_lines_of_a_map_may_be_exchanged(name: str) -> None:
    block, x, order = random_block(name, channels=16, heads=2), random_tokens(2, 16, 5, 7), torch.randperm(7)
    # float64 sums in another order.
    torch.testing.assert_close(block(x[..., order]), block(x)[..., order], rtol=1e-10, atol=1e-10)


@BOTH
def test_wrong_arguments_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="heads=3 must divide channels=16, or head_channels must be given"):
        create(name, channels=16, heads=3)
    with pytest.raises(ValueError, match="head_channels must be positive, not 0"):
        create(name, channels=16, heads=3, head_channels=0)

"""HiLo: what its high and its low heads are, each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared.attention import attend, create, record
from shared.attention.attend import merge_heads, split_heads
from tests.shared.attention.random_blocks import load, random_block, random_tokens


def test_windows_of_one_token_are_self_attention() -> None:
    x = random_tokens(2, 15, 16)
    block = random_block("hilo", channels=16, heads=4, window=1, qkv_bias=True)
    state = block.state_dict()
    assert not any(name.startswith("high") for name in state)
    ours = {"out.weight": state["low_out.weight"], "out.bias": state["low_out.bias"]}
    for kind in ("weight", "bias"):
        ours[f"qkv.{kind}"] = torch.cat((state[f"low_query.{kind}"], state[f"low_key_value.{kind}"]))
    everywhere = load(random_block("mhsa", channels=16, heads=4), ours)
    # float64 sums in another order.
    torch.testing.assert_close(block(x, grid=(3, 5)), everywhere(x), rtol=1e-10, atol=1e-10)


def test_high_heads_alone_are_local_attention() -> None:
    x = random_tokens(2, 35, 16)
    block = random_block("hilo", channels=16, heads=4, window=2, low_share=0.0)
    local = random_block("twins_lsa", channels=16, heads=4, window=2)
    load(local, {name.removeprefix("high_"): value for name, value in block.state_dict().items()})
    # float64 sums in another order.
    torch.testing.assert_close(block(x, grid=(5, 7)), local(x, grid=(5, 7)), rtol=1e-10, atol=1e-10)


def test_low_heads_see_the_mean_of_what_is_really_in_each_window() -> None:
    x = random_tokens(2, 35, 16)
    block = random_block("hilo", channels=16, heads=4, window=(2, 3), low_share=1.0)
    placed = x.unflatten(1, (5, 7))
    means = [placed[:, row : row + 2, column : column + 3].mean((1, 2)) for row in range(0, 5, 2) for column in range(0, 7, 3)]
    key, value = (split_heads(each, 4) for each in block.low_key_value(torch.stack(means, dim=1)).chunk(2, dim=-1))
    expected = block.low_out(merge_heads(attend(split_heads(block.low_query(x), 4), key, value)))
    # float64 sums in another order.
    torch.testing.assert_close(block(x, grid=(5, 7)), expected, rtol=1e-10, atol=1e-10)


def test_one_window_over_everything_gives_low_heads_one_answer() -> None:
    x = random_tokens(2, 15, 16)
    low = random_block("hilo", channels=16, heads=4, window=(3, 5))(x, grid=(3, 5))[..., 8:]
    # One key has weight 1, whatever the query.
    torch.testing.assert_close(low, low[:, :1].expand_as(low), rtol=1e-10, atol=1e-10)


def test_both_parts_are_recorded_by_name() -> None:
    block = random_block("hilo", channels=16, heads=4, low_share=0.25)
    with record(block) as maps:
        block(random_tokens(2, 35, 16), grid=(5, 7))
    assert {name: found.shape for name, found in maps.items()} == {"high": (2, 3, 35, 35), "low": (2, 1, 35, 12)}
    for found in maps.values():
        sums = found.dense().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_tokens_may_be_turned_around_within_their_windows() -> None:
    block = random_block("hilo", channels=16, heads=4)

    def turned(x: Tensor) -> Tensor:
        return x.unflatten(1, (2, 2, 3, 2)).flip(2, 4).flatten(1, 4)

    x = random_tokens(2, 24, 16)
    # Keys in another order: float64 sums too.
    torch.testing.assert_close(block(turned(x), grid=(4, 6)), turned(block(x, grid=(4, 6))), rtol=1e-10, atol=1e-10)


def test_volumes_of_one_slice_are_images() -> None:
    x = random_tokens(2, 35, 16)
    flat, deep = (random_block("hilo", channels=16, heads=4, window=window) for window in (2, (1, 2, 2)))
    # The same sums, perhaps in another order.
    torch.testing.assert_close(flat(x, grid=(5, 7)), deep(x, grid=(1, 5, 7)), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide channels=16"):
        create("hilo", channels=16, heads=3)
    with pytest.raises(ValueError, match=r"low_share must be from 0 to 1, not 1\.5"):
        create("hilo", channels=16, low_share=1.5)
    with pytest.raises(ValueError, match=r"window must be positive, .* not 0"):
        create("hilo", channels=16, window=0)
    with pytest.raises(ValueError, match=r"12 tokens do not fill a grid of \(3, 5\)"):
        random_block("hilo", channels=16)(random_tokens(1, 12, 16), grid=(3, 5))

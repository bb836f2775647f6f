"""Heads that share keys and values."""

from __future__ import annotations

import pytest
import torch

from shared.attention import create, record


def test_with_as_many_key_heads_it_is_multi_head_attention_weights_included() -> None:
    torch.manual_seed(0)
    block, known = create("gqa", channels=16, heads=4, key_heads=4).double(), create("mhsa", channels=16, heads=4).double()
    known.load_state_dict(block.state_dict())
    x, mask = torch.randn(2, 9, 16, dtype=torch.float64), torch.rand(2, 1, 1, 9) < 0.7
    assert torch.equal(block(x, mask), known(x, mask))


@pytest.mark.parametrize("key_heads", [1, 2])
def test_sharing_is_multi_head_attention_with_repeated_weights(key_heads: int) -> None:
    torch.manual_seed(0)
    block, known = create("gqa", channels=16, heads=4, key_heads=key_heads).double(), create("mhsa", channels=16, heads=4).double()
    parts = block.qkv.weight.split(block.widths), block.qkv.bias.split(block.widths)
    whole = [
        torch.cat(
            [part[0], *(each.unflatten(0, (key_heads, -1)).repeat_interleave(4 // key_heads, dim=0).flatten(0, 1) for each in part[1:])]
        )
        for part in parts
    ]
    known.load_state_dict({"qkv.weight": whole[0], "qkv.bias": whole[1], "out.weight": block.out.weight, "out.bias": block.out.bias})
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x), known(x), rtol=1e-12, atol=1e-12)


def test_multi_query_attention_has_one_key_head_and_all_maps() -> None:
    block = create("mqa", channels=16, heads=4)
    assert block.qkv.out_features == 16 + 4 + 4
    with record(block) as maps:
        block(torch.randn(2, 9, 16))
    assert maps[""].dense().shape == (2, 4, 9, 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"heads": 3}, "heads=3 must divide channels=16"), ({"heads": 4, "key_heads": 3}, "key_heads=3 must divide heads=4")],
)
def test_wrong_settings_are_named(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("gqa", channels=16, **settings)

"""Latents that read, think and write."""

from __future__ import annotations

import pytest
import torch

from shared.attention import cost_of, create, record


def test_tokens_have_no_order_and_latents_follow_theirs() -> None:
    torch.manual_seed(0)
    block = create("latent_cross", channels=16, latent_channels=24, heads=4, depth=2).double()
    x, latents = torch.randn(2, 9, 16, dtype=torch.float64), torch.randn(2, 3, 24, dtype=torch.float64)
    tokens, few = torch.randperm(9), torch.tensor([2, 0, 1])
    written, thought = block(x, latents)
    turned = block(x[:, tokens], latents[:, few])
    torch.testing.assert_close(turned[0], written[:, tokens], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(turned[1], thought[:, few], rtol=1e-11, atol=1e-11)


def test_each_attention_is_recorded_by_name() -> None:
    block = create("latent_cross", channels=16, depth=2)
    with record(block) as maps:
        block(torch.randn(2, 9, 16), torch.randn(2, 3, 16))
    shapes = {name: found.shape[2:] for name, found in maps.items()}
    assert shapes == {"read.attention": (3, 9), "think.0.attention": (3, 3), "think.1.attention": (3, 3), "write.attention": (9, 3)}


def test_cost_grows_with_the_number_of_tokens_alone() -> None:
    few, more, most = (cost_of("latent_cross", (n,), channels=16).macs for n in (100, 200, 300))
    assert most - more == more - few


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"depth": 0}, "depth=0"), ({"expansion": 0}, "expansion=0"), ({"latent_channels": 20}, "heads=8 must divide channels=20")],
)
def test_wrong_settings_are_named(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("latent_cross", channels=16, **settings)

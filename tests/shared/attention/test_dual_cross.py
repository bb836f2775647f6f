"""Telling tokens as queries, and another image as a distraction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.attention import create, record
from shared.attention.dual_cross import telling_tokens
from shared.explain.relevance import rollout


def test_tokens_that_ask_get_what_they_would_get_among_all() -> None:
    torch.manual_seed(0)
    block, x = create("glca", channels=16, heads=4).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    everyone = block(x, torch.arange(9).expand(2, 9))
    chosen = torch.tensor([[3, 1], [8, 0]])
    torch.testing.assert_close(block(x, chosen), everyone.take_along_dim(chosen.unsqueeze(-1), 1), rtol=1e-12, atol=1e-12)


def test_the_rollout_of_a_network_says_which_tokens_ask() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(*(create("mhsa", channels=16, heads=4) for _ in range(3))), torch.randn(2, 9, 16)
    with record(network) as maps:
        network(x)
    row = rollout(maps.values())[:, 0]
    chosen = telling_tokens(row, 3)
    assert chosen.shape == (2, 3)
    torch.testing.assert_close(row.gather(1, chosen), row[:, 1:].sort(descending=True).values[:, :3])
    assert (chosen > 0).all()


def test_the_class_token_never_asks_and_too_many_are_refused() -> None:
    assert telling_tokens(torch.tensor([[0.9, 0.1, 0.5]]), 2).tolist() == [[2, 1]]
    with pytest.raises(ValueError, match="count=3 must be from 1 to 2"):
        telling_tokens(torch.rand(1, 3), 3)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_without_a_distraction_it_is_multi_head_attention(qkv_bias: bool) -> None:
    torch.manual_seed(0)
    settings = {"channels": 16, "heads": 4, "qkv_bias": qkv_bias}
    block, known = create("pwca", **settings).double(), create("mhsa", **settings).double()
    known.load_state_dict(block.state_dict())
    x, other = torch.randn(2, 2, 9, 16, dtype=torch.float64)
    assert torch.equal(block(x), known(x))
    both = torch.cat([x, other], dim=1)
    torch.testing.assert_close(block(x, other), known(both)[:, :9], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["glca", "pwca"])
def test_wrong_heads_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="heads=3 must divide channels=16"):
        create(name, channels=16, heads=3)

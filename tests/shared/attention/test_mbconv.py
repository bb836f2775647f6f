"""Reversible bottlenecks: they can be run backwards, cost the memory of their output, and are what they are without all that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.attention import create, record
from shared.attention.mbconv import ReversibleMBConv
from shared.layers.reversible import ReversibleSequence
from tests.shared.attention.depth import give_depth
from tests.shared.attention.random_blocks import random_block, random_tokens

SIZES = {1: (9,), 2: (5, 7), 3: (3, 5, 4)}


def kept(run: nn.Module, x: Tensor) -> int:
    """Numbers kept for the gradient, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in run.parameters()}
    found: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes() // value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        answer = run(x)
    del answer
    return sum(found.values())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"groups": 4, "slope": 0.0, "expansion": 3}, {"reduction": 4, "kernel": 5}])
def test_it_runs_backwards(rank: int, changes: dict[str, Any]) -> None:
    block, x = random_block("rev_mbconv", channels=16, rank=rank, **changes), random_tokens(2, 16, *SIZES[rank])
    torch.testing.assert_close(block.inverse(block(x)), x)


def test_a_row_of_them_keeps_one_output() -> None:
    x = torch.randn(1, 16, 4, 6, 5, requires_grad=True)
    for depth in (1, 4):
        row = ReversibleSequence(ReversibleMBConv(channels=16).pair for _ in range(depth))
        assert kept(row, x) == x.numel()


def test_the_ordinary_way_keeps_what_the_papers_say() -> None:
    """2 + 4 times the expansion for each number of the output, with a half of the input, which is a view that keeps the whole."""
    block, x = ReversibleMBConv(channels=16, expansion=6), torch.randn(1, 16, 8, 8, 8, requires_grad=True)

    class Ordinary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = block.pair

        def forward(self, value: Tensor) -> Tensor:
            return self.pair.plain(value)

    # Means and deviations of the norms come on top: less than a hundredth here.
    assert kept(Ordinary(), x) == pytest.approx(26.5 * x.numel(), rel=0.01)


def test_a_volume_of_depth_one_is_a_picture() -> None:
    flat, deep = (random_block("rev_mbconv", channels=16, reduction=4, rank=rank) for rank in (2, 3))
    x = random_tokens(2, 16, 5, 7)
    torch.testing.assert_close(give_depth(flat, deep)(x.unsqueeze(2)).squeeze(2), flat(x))


def test_squeezes_are_recorded_once_with_their_gradients() -> None:
    block, x = random_block("rev_mbconv", channels=16, reduction=4), random_tokens(1, 16, 4, 3, 5)
    with record(block, gradients=True) as maps:
        block(x).square().sum().backward()
    assert sorted(maps) == ["pair.f.squeeze", "pair.g.squeeze"]
    assert all(found.gradient().any() for found in maps.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 15}, "channels=15 must be even"),
        ({"channels": 0}, "channels=0 must be even, and at least 2"),
        ({"channels": 16, "expansion": 0}, "expansion=0"),
        ({"channels": 16, "groups": 3}, "groups=3 must divide the 8 channels of a half"),
        ({"channels": 16, "groups": 0}, "groups=0"),
        ({"channels": 16, "slope": -0.1}, "slope=-0.1 must not be negative"),
        ({"channels": 16, "kernel": 4}, "kernel must be odd"),
        ({"channels": 16, "rank": 4}, "rank must be 1, 2 or 3, not 4"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("rev_mbconv", **settings)

"""Galerkin and Fourier attention: functions known at points, wherever these lie."""

from __future__ import annotations

import pytest
import torch

from shared.attention import create
from tests.shared.attention.random_blocks import random_block, random_tokens

BOTH = pytest.mark.parametrize("name", ["fourier", "galerkin"])


@BOTH
def test_points_move_with_their_coordinates(name: str) -> None:
    block, x, places = random_block(name, channels=16, axes=3), random_tokens(2, 9, 16), random_tokens(2, 9, 3, seed=2)
    order = torch.randperm(9)
    # float64 sums in another order.
    torch.testing.assert_close(block(x[:, order], places[:, order]), block(x, places)[:, order], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(block(x, places[:, order]), block(x, places)), "places matter"


@BOTH
def test_heads_are_normalised_each_by_itself(name: str) -> None:
    """Keys and values of a Galerkin attention, queries and keys of a Fourier one, may be scaled and shifted without effect."""
    block, x, places = random_block(name, channels=16, heads=2), random_tokens(1, 9, 16), random_tokens(1, 9, 2, seed=2)
    before = block(x, places)
    with torch.no_grad():
        for layer in (block.key, block.value if name == "galerkin" else block.query):
            layer.weight.mul_(3)
            layer.bias.mul_(3).add_(torch.tensor([1.0] * 8 + [2.0] * 8))
    # LayerNorm adds 1e-5 to a variance that grows ninefold.
    torch.testing.assert_close(block(x, places), before, rtol=1e-3, atol=1e-3)


@BOTH
def test_training_starts_near_a_hundredth_of_the_identity(name: str) -> None:
    block = create(name, channels=64)
    for layer in (block.query, block.key, block.value):
        torch.testing.assert_close(layer.weight, 0.01 * torch.eye(64), rtol=0, atol=3e-5)
        assert not layer.bias.any()


@BOTH
def test_wrong_arguments_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="axes must not be negative, but is -1"):
        create(name, channels=16, axes=-1)
    with pytest.raises(ValueError, match=r"coordinates must be \[B, N, 2\], not 3 for each point"):
        create(name, channels=16)(torch.zeros(1, 5, 16), torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match=r"coordinates must be \[B, N, 2\], not 0 for each point"):
        create(name, channels=16)(torch.zeros(1, 5, 16))

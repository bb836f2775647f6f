"""Mixture of heads: who hears which head, on any grid."""

from __future__ import annotations

import math

import pytest
import torch

from shared.attention import create, record


def built(*, rank: int = 2, **settings: int) -> torch.nn.Module:
    torch.manual_seed(0)
    block = create("moh", channels=32, heads=8, rank=rank, **settings).double()
    with torch.no_grad():
        block.route.weight.mul_(4)
    return block


def test_shared_heads_are_heard_by_all_and_of_the_others_the_best_few() -> None:
    block, x = built(shared_heads=2, routed_heads=3), torch.randn(2, 20, 32, dtype=torch.float64)
    gates = block.gates(x)
    assert (gates[..., :2] > 0).all()
    assert torch.equal((gates[..., 2:] > 0).sum(-1), torch.full((2, 20), 3))
    taken = gates[..., 2:] > 0
    scores = block.route(x)
    assert (scores.masked_fill(~taken, math.inf).amin(-1) >= scores.masked_fill(taken, -math.inf).amax(-1)).all()
    # Two balance gates sum to 2; they multiply gates that sum to the number of shared heads, and of routed heads.
    balance = 2 * block.balance(x).softmax(-1)
    torch.testing.assert_close(gates[..., :2].sum(-1), 2 * balance[..., 0])
    torch.testing.assert_close(gates[..., 2:].sum(-1), 3 * balance[..., 1])


def test_a_head_that_a_token_does_not_take_cannot_change_it() -> None:
    block, x = built(), torch.randn(1, 12, 32, dtype=torch.float64)
    gate = block.gates(x)[0]
    before = block(x, grid=(3, 4))
    with torch.no_grad():
        block.qkv.weight[64 + 4 * 7 :] += 1
    changed = (block(x, grid=(3, 4)) - before).abs().amax(-1)[0] > 0
    assert torch.equal(changed, gate[:, 7] > 0)
    assert changed.any()
    assert not changed.all()


def test_gates_are_trained_by_the_answer() -> None:
    block, x = built(), torch.randn(2, 12, 32, dtype=torch.float64)
    block(x, grid=(12, 1)).square().sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in (block.route, block.share, block.balance))


def test_the_balance_loss_is_smallest_when_all_heads_are_taken_alike() -> None:
    block, x = built(shared_heads=2, routed_heads=2), torch.randn(4, 500, 32, dtype=torch.float64)
    # Each head is taken by a share r / E of the tokens, with probability 1 / E: the sum over E heads is r / E.
    assert block.balance_loss(x).item() == pytest.approx(2 / 6, rel=0.05)
    with torch.no_grad():
        block.route.weight.copy_(0.1 * block.route.weight)
        block.route.weight[0] += 3 * x.mean((0, 1)).sign()
    lopsided = block.balance_loss(x + 2 * x.mean((0, 1)).sign())
    # All take the first head, with probability near 1.
    assert lopsided.item() > 0.9
    lopsided.backward()
    assert block.route.weight.grad.abs().sum() > 0


def test_the_bias_depends_on_relative_place_alone() -> None:
    bias = built().bias((4, 5)).unflatten(2, (4, 5)).unflatten(1, (4, 5))
    assert bias.shape == (8, 4, 5, 4, 5)
    torch.testing.assert_close(bias[:, :-1, :-2, :-1, :-2], bias[:, 1:, 2:, 1:, 2:])
    assert not torch.allclose(bias[:, 0, 0, 0, 1], bias[:, 0, 1, 0, 0]), "to the left is not to the right"


def test_a_volume_of_one_slice_is_an_image() -> None:
    volume, image = built(rank=3), built(rank=2)
    state = volume.state_dict()
    image.load_state_dict(state | {"bias_hidden.weight": state["bias_hidden.weight"][:, 1:]})
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    torch.testing.assert_close(volume(x, grid=(1, 3, 4)), image(x, grid=(3, 4)), rtol=1e-12, atol=1e-12)


def test_map_and_gates_are_recorded() -> None:
    block, x = built(), torch.randn(2, 12, 32, dtype=torch.float64)
    with record(block) as maps:
        block(x, grid=(3, 4))
    torch.testing.assert_close(maps[""].dense().sum(-1), torch.ones(2, 8, 12, dtype=torch.float64))
    assert torch.equal(maps["gate"].dense(), block.gates(x).mT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "heads=5 must divide channels=32"),
        ({"shared_heads": 0}, "shared_heads must be positive, not 0"),
        ({"shared_heads": 4, "routed_heads": 5}, "routed_heads=5 must be from 1 to heads - shared_heads = 4"),
        ({"routed_heads": 0}, "routed_heads=0"),
        ({"rank": 4}, "rank must be 1, 2 or 3, not 4"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("moh", channels=32, **settings)


def test_a_grid_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="12 tokens do not fill a grid of"):
        built()(torch.randn(1, 12, 32, dtype=torch.float64), grid=(3, 5))

"""Agent attention: two attentions with few tokens between them, and biases that fit any grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared.attention import create, record
from shared.attention.agent import AgentAttention, AgentBias
from shared.layers import resize
from tests.shared.attention.random_blocks import load, random_block, random_tokens


def settings(**changed: object) -> dict[str, object]:
    return {"channels": 16, "heads": 2, "agents": 3, "size": (6, 8)} | changed


def local(block: AgentAttention, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """What the convolution of the values adds, [B, N, C]."""
    reduced, reduced_grid = block.reduce(x, grid)
    value = block.key_value(reduced).chunk(2, dim=-1)[1]
    return block.local(resize(value.mT.unflatten(2, reduced_grid), grid)).flatten(2).mT


@pytest.mark.parametrize(("grid", "reduction"), [((6, 8), 1), ((5, 7), 1), ((6, 8), 2), ((5, 7), (2, 3))])
def test_the_two_maps_together_are_one_over_all_tokens(grid: tuple[int, int], reduction: int | tuple[int, int]) -> None:
    block = random_block("agent", **settings(reduction=reduction))
    x = random_tokens(2, grid[0] * grid[1], 16)
    with record(block) as maps:
        found = block(x, grid=grid)
    gather, spread = maps["gather"], maps["spread"]
    assert gather.shape[:3] == (2, 2, 9)
    assert spread.shape == (2, 2, grid[0] * grid[1], 9)
    reduced_grid = block.reduce(x, grid)[1]
    for each, bias in ((gather, block.gather_bias(reduced_grid)), (spread, block.spread_bias(grid).mT)):
        torch.testing.assert_close(each.logits(), each.query @ each.key.mT / 8**0.5 + bias)
    whole = spread.dense() @ gather.dense()
    torch.testing.assert_close(whole.sum(-1), torch.ones_like(whole.sum(-1)))
    product = (whole @ gather.value).transpose(1, 2).flatten(2)
    # float64 sums in another order.
    torch.testing.assert_close(found, block.out(product + local(block, x, grid)), rtol=1e-10, atol=1e-10)


def test_a_single_agent_tells_every_token_the_same() -> None:
    block = random_block("agent", **settings(agents=1))
    x = random_tokens(2, 48, 16)
    with record(block) as maps:
        block(x, grid=(6, 8))
    assert (maps["spread"].dense() == 1).all()
    assert maps["gather"].shape == (2, 2, 1, 48)


def test_as_many_agents_as_places_are_the_queries_themselves() -> None:
    block = random_block("agent", **settings(agents=(6, 8)))
    for weight in (*block.gather_bias.parameters(), *block.spread_bias.parameters()):
        nn.init.zeros_(weight)
    x = random_tokens(2, 48, 16)
    with record(block) as maps:
        block(x, grid=(6, 8))
    query, key = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (block.query(x), block.key_value(x)[..., :16]))
    for found, other in ((maps["gather"], key), (maps["spread"], query)):
        # float64 sums in another order.
        torch.testing.assert_close(found.dense(), torch.softmax(query @ other.mT / 8**0.5, dim=-1), rtol=1e-10, atol=1e-12)


def test_without_biases_maps_turn_with_the_image() -> None:
    block = random_block("agent", **settings(agents=2))
    for weight in (*block.gather_bias.parameters(), *block.spread_bias.parameters()):
        nn.init.zeros_(weight)
    x = random_tokens(1, 6, 8, 16)
    attended = []
    for image in (x, x.flip(1, 2)):
        with record(block) as maps:
            block(image.flatten(1, 2), grid=(6, 8))
        attended.append((maps["spread"].dense() @ maps["gather"].dense() @ maps["gather"].value).unflatten(2, (6, 8)))
    # Agents and keys in another order: float64 sums too.
    torch.testing.assert_close(attended[1], attended[0].flip(2, 3), rtol=1e-10, atol=1e-10)


def test_biases_are_exact_at_their_own_size() -> None:
    bias = AgentBias(heads=2, agents=5, size=(7, 4)).double()
    found = bias((7, 4)).unflatten(2, (7, 4))
    table = resize(bias.table, (7, 4))
    for row, column in ((0, 0), (6, 1), (3, 3)):
        expected = table[..., row, column] + bias.axes[0][..., row] + bias.axes[1][..., column]
        torch.testing.assert_close(found[..., row, column], expected)


def test_biases_keep_their_meaning_at_another_size() -> None:
    """Interpolated to twice as many places and averaged in pairs, a bias that changes evenly is what it was."""
    bias = AgentBias(heads=1, agents=1, size=(4, 6)).double()
    with torch.no_grad():
        bias.table.fill_(0.5)
        bias.axes[0].copy_(torch.arange(4.0))
        bias.axes[1].copy_(-2 * torch.arange(6.0))
    found, twice = bias((4, 6)).reshape(4, 6), bias((8, 12)).reshape(4, 2, 6, 2).mean((1, 3))
    # At the edges there is nothing to interpolate with.
    torch.testing.assert_close(twice[1:-1, 1:-1], found[1:-1, 1:-1])


def test_volumes_of_one_slice_are_images() -> None:
    image = random_block("agent", **settings(reduction=2))
    volume = random_block("agent", **settings(agents=(1, 3, 3), size=(1, 6, 8), reduction=(1, 2, 2), rank=3))
    state = image.state_dict()
    ours = {}
    for name, value in volume.state_dict().items():
        if ".axes." in name:
            head, _, axis = name.rpartition(".")
            ours[name] = torch.zeros_like(value) if axis == "0" else state[f"{head}.{int(axis) - 1}"]
        elif name.endswith("bias.table") or name == "local.weight":
            # One slice is at the middle of the table, and of the convolution's window.
            ours[name] = value.clone()
            ours[name][:, :, value.shape[2] // 2] = state[name]
        else:
            ours[name] = state[name].reshape(value.shape)
    load(volume, ours)
    x = random_tokens(2, 35, 16)
    # float64 sums in another order.
    torch.testing.assert_close(image(x, grid=(5, 7)), volume(x, grid=(1, 5, 7)), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide channels=16"):
        create("agent", channels=16, heads=3)
    with pytest.raises(ValueError, match=r"agents must be positive, .* not 0"):
        create("agent", channels=16, agents=0)
    with pytest.raises(ValueError, match=r"size must be positive, .* each of 2 axes, not \(8,\)"):
        create("agent", channels=16, size=(8,))
    with pytest.raises(ValueError, match=r"reduction must be positive, .* not 0"):
        create("agent", channels=16, reduction=0)
    with pytest.raises(ValueError, match="rank must be 1, 2 or 3, not 4"):
        create("agent", channels=16, rank=4)
    with pytest.raises(ValueError, match=r"12 tokens do not fill a grid of \(3, 5\)"):
        random_block("agent", **settings())(random_tokens(1, 12, 16), grid=(3, 5))

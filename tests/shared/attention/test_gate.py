"""Attention gates let through what their map says, and compute it where and from what the paper says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import create, load_published, record
from tests.shared.attention.depth import give_depth
from tests.shared.attention.random_blocks import random_block, random_tokens

GATES = ["attn_gate", "attn_gate_softmax", "attn_gate_additive", "attn_gate_concat"]
SETTINGS: dict[str, Any] = {"channels": 6, "gate_channels": 5, "inner_channels": 4}


def gate(name: str, **changes: Any) -> nn.Module:
    return random_block(name, **SETTINGS | changes)


def features(*size: int, channels: int = 6) -> Tensor:
    return random_tokens(2, channels, *size, seed=channels)


def recorded(block: nn.Module, x: Tensor, context: Tensor) -> Tensor:
    with record(block) as maps:
        block(x, context)
    return maps[""].dense()


@pytest.mark.parametrize("name", GATES)
def test_a_volume_of_depth_one_is_a_picture(name: str) -> None:
    strided = name in GATES[:2]
    flat, deep = gate(name), gate(name, rank=3, **({"stride": (1, 2, 2)} if strided else {}))
    give_depth(flat, deep)
    x, context = features(8, 6), features(4, 3, channels=5)
    torch.testing.assert_close(deep(x.unsqueeze(2), context.unsqueeze(2)).squeeze(2), flat(x, context))


@pytest.mark.parametrize("name", GATES)
def test_a_constant_gating_signal_is_the_same_at_every_size(name: str) -> None:
    block, x = gate(name), features(8, 6)
    colour = features(1, 1, channels=5)
    torch.testing.assert_close(block(x, colour.expand(-1, -1, 3, 5)), block(x, colour.expand(-1, -1, 8, 6)))


@pytest.mark.parametrize("name", GATES[:2])
def test_the_answer_is_the_gated_input_mixed(name: str) -> None:
    block, x, context = gate(name), features(8, 6), features(4, 3, channels=5)
    torch.testing.assert_close(block(x, context), block.out(x * recorded(block, x, context)))


@pytest.mark.parametrize("name", GATES[2:])
def test_the_answer_is_the_gated_input(name: str) -> None:
    block, x, context = gate(name), features(8, 6), features(4, 3, channels=5)
    found = recorded(block, x, context)
    assert found.shape == (2, 1, 8, 6)
    torch.testing.assert_close(block(x, context), x * found)


def test_a_wide_open_gate_changes_nothing_but_the_mixing() -> None:
    block, x = gate("attn_gate"), features(8, 6)
    # The sigmoid of 100 is 1 in float64.
    nn.init.constant_(block.scores.score.bias, 100.0)
    assert torch.equal(block(x, features(4, 3, channels=5)), block.out(x))


def test_places_compete_in_the_softmax_gate() -> None:
    block, x, context = gate("attn_gate_softmax", stride=1), features(8, 6), features(4, 3, channels=5)
    found = recorded(block, x, context)
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2).double())
    coarse = recorded(gate("attn_gate_softmax"), x, context)
    # Of 4 times as many places, the map has the mean.
    torch.testing.assert_close(coarse.sum((1, 2, 3)), torch.full((2,), 4.0).double())


def test_the_last_places_of_an_odd_size_are_gated_but_not_asked() -> None:
    block, x, context = gate("attn_gate"), features(9, 6), features(5, 3, channels=5)
    changed = x.clone()
    changed[:, :, -1] += 1
    assert torch.equal(recorded(block, x, context), recorded(block, changed, context))
    assert not torch.equal(block(x, context)[:, :, -1], block(changed, context)[:, :, -1])


@pytest.mark.parametrize("rank", [2, 3])
def test_the_additive_gate_is_the_one_of_monai(rank: int) -> None:
    attentionunet = pytest.importorskip("monai.networks.nets.attentionunet")
    torch.manual_seed(0)
    theirs = attentionunet.AttentionBlock(rank, f_int=4, f_g=5, f_l=6).double()
    ours = gate("attn_gate_additive", rank=rank)
    size = (4, 5, 3)[:rank]
    x, context = features(*size), features(*size, channels=5)
    for _ in range(3):
        theirs(context, x)
    theirs.eval()
    load_published("attn_gate_additive", ours, theirs.state_dict())
    torch.testing.assert_close(ours(x, context), theirs(context, x))


def test_the_concatenating_gate_is_that_of_agu_net() -> None:
    """As its specification says, with Keras' epsilon."""
    block, x, context = gate("attn_gate_concat", momentum=0.5), features(4, 5), features(4, 5, channels=5)
    block.train()(x, context)
    block.eval()

    def normalised(layer: nn.Module, value: Tensor) -> Tensor:
        value = F.conv2d(value, layer.conv.weight)
        mean, variance = (each.reshape(-1, 1, 1) for each in (layer.norm.running_mean, layer.norm.running_var))
        return (value - mean) / (variance + 1e-3).sqrt() * layer.norm.weight.reshape(-1, 1, 1) + layer.norm.bias.reshape(-1, 1, 1)

    both = torch.cat([normalised(block.gate, context), normalised(block.skip, x)], dim=1).relu()
    torch.testing.assert_close(recorded(block, x, context), normalised(block.score, both).sigmoid())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels=0"),
        ({"gate_channels": 0}, "gate_channels=0"),
        ({"inner_channels": 0}, "inner_channels=0"),
        ({"rank": 4}, "rank must be 1, 2 or 3, not 4"),
    ],
)
@pytest.mark.parametrize("name", GATES)
def test_wrong_settings_are_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **SETTINGS | changes)


@pytest.mark.parametrize("stride", [0, (2, 2, 2)])
def test_a_wrong_stride_is_named(stride: Any) -> None:
    with pytest.raises(ValueError, match="stride must be positive, one number or one for each of 2 axes"):
        create("attn_gate", **SETTINGS, stride=stride)

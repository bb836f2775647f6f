"""The residual attention module: a mask for every place, from an hourglass of any depth, at any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from shared.attention import create, load_published, record
from tests.shared.attention.depth import give_depth
from tests.shared.attention.random_blocks import random_block, random_tokens


@pytest.mark.parametrize("poolings", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 9), (16, 8)])
def test_every_size_and_depth_is_answered(poolings: int, size: tuple[int, int]) -> None:
    block, x = random_block("residual_attention", channels=8, poolings=poolings), random_tokens(2, 8, *size)
    with record(block) as maps:
        assert block(x).shape == x.shape
    mask = maps[""].dense()
    assert mask.shape == x.shape
    assert ((mask > 0) & (mask < 1)).all()


def test_the_trunk_is_multiplied_by_one_plus_the_mask() -> None:
    block, x = random_block("residual_attention", channels=8), random_tokens(2, 8, 7, 9)
    with record(block) as maps:
        answer = block(x)
    trunk = block.trunk(block.first(x))
    torch.testing.assert_close(answer, block.last((1 + maps[""].dense()) * trunk))


def test_an_idle_mask_is_a_half() -> None:
    block, x = random_block("residual_attention", channels=8), random_tokens(2, 8, 7, 9)
    nn.init.zeros_(block.mask[-1].weight)
    torch.testing.assert_close(block(x), block.last(1.5 * block.trunk(block.first(x))))


def test_a_volume_of_depth_one_is_a_picture() -> None:
    flat, deep = (random_block("residual_attention", channels=8, rank=rank) for rank in (2, 3))
    x = random_tokens(2, 8, 7, 9)
    torch.testing.assert_close(give_depth(flat, deep)(x.unsqueeze(2)).squeeze(2), flat(x))


@pytest.mark.parametrize(
    ("poolings", "stages"),
    [
        (1, ["softmax1_blocks.0", "softmax1_blocks.1"]),
        (2, ["softmax1_blocks", "skip1_connection_residual_block", "softmax2_blocks.0", "softmax2_blocks.1", "softmax3_blocks"]),
    ],
)
def test_the_port_s_smaller_stages_can_be_loaded(poolings: int, stages: list[str]) -> None:
    """By their names; the largest one's numbers are held by its fixture."""
    block = create("residual_attention", channels=8, poolings=poolings)
    bottleneck = {"norm1": "bn1", "norm2": "bn2", "norm3": "bn3", "narrow": "conv1", "conv": "conv2", "widen": "conv3"}
    theirs = {}
    for stage in ["first_residual_blocks", "trunk_branches.0", "trunk_branches.1", *stages, "last_blocks"]:
        for name, value in block.first.state_dict().items():
            layer, kind = name.split(".")
            theirs[f"{stage}.{bottleneck[layer]}.{kind}"] = torch.rand_like(value.float())
        theirs[f"{stage}.conv4.weight"] = torch.rand(8, 8, 1, 1)
    theirs |= {f"softmax{2 * poolings}_blocks.{name}": torch.rand_like(value.float()) for name, value in block.mask.state_dict().items()}
    load_published("residual_attention", block, theirs)
    assert torch.equal(block.last.widen.weight, theirs["last_blocks.conv3.weight"])
    assert torch.equal(block.down[-1][1].conv.weight, theirs[f"softmax{poolings}_blocks.1.conv2.weight"])
    if poolings == 2:
        assert torch.equal(block.up[0].conv.weight, theirs["softmax3_blocks.conv2.weight"])
        assert torch.equal(block.past[0].conv.weight, theirs["skip1_connection_residual_block.conv2.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 3}, "channels=3 must be at least 4"),
        ({"channels": 8, "poolings": 0}, "poolings=0 at least 1"),
        ({"channels": 8, "rank": 4}, "rank must be 1, 2 or 3, not 4"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("residual_attention", **settings)

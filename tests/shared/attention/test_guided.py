"""Dual layers, the semantic module and guided attention: their parts do what the paper says, at any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from shared.attention import create, record
from shared.attention.guided import GuidedAttention, SemanticModule
from tests.shared.attention.depth import give_depth
from tests.shared.attention.random_blocks import random_block, random_tokens


@pytest.mark.parametrize("name", ["dual_layer", "dual_layer_channel"])
def test_a_volume_of_depth_one_is_a_picture(name: str) -> None:
    flat, deep = (random_block(name, channels=16, rank=rank) for rank in (2, 3))
    give_depth(flat, deep)
    x = random_tokens(2, 16, 5, 4)
    torch.testing.assert_close(deep(x.unsqueeze(2)).squeeze(2), flat(x))


@pytest.mark.parametrize("name", ["dual_layer", "dual_layer_channel"])
def test_a_new_dual_layer_is_its_convolutions(name: str) -> None:
    block, x = create(name, channels=16).eval(), torch.randn(2, 16, 5, 4)
    assert torch.equal(block(x), block.after_slope(block.after(block.before_slope(block.before(x)))))


def test_position_attends_positions_and_channel_attends_channels() -> None:
    x = torch.randn(2, 32, 5, 4)
    for name, shape in (("dual_layer", (2, 1, 20, 20)), ("dual_layer_channel", (2, 1, 8, 8))):
        with record(block := create(name, channels=32, out_channels=8)) as maps:
            block.eval()(x)
        assert maps["attention"].shape == shape


@pytest.mark.parametrize("size", [(1,), (2,), (3,), (5,), (8,), (1, 6), (7, 3), (4, 4), (3, 2, 5)])
def test_the_semantic_module_answers_at_every_size(size: tuple[int, ...]) -> None:
    block = SemanticModule(channels=2, rank=len(size)).eval()
    code, decoded = block(torch.randn(3, 2, *size))
    quarter = torch.tensor([-(-extent // 4) for extent in size]).prod()
    assert code.shape == (3, 8 * quarter)
    assert decoded.shape == (3, 2, *size)


def test_what_lies_past_the_end_changes_nothing_far_from_it() -> None:
    """Sizes that 4 does not divide are not stretched: the answer stays where it was."""
    block, x = random_block("semantic", channels=2, rank=1), random_tokens(1, 2, 64)
    whole, shorter = block(x)[1], block(x[..., :61])[1]
    # The coarsest place that sees the end reaches 16 back: two 3-convolutions there, two at half size, two at the whole, each way.
    torch.testing.assert_close(shorter[..., :32], whole[..., :32])


def test_scales_may_share_one_semantic_module() -> None:
    shared = SemanticModule(channels=16)
    scales = nn.ModuleList(GuidedAttention(channels=8, semantic=shared) for _ in range(4))
    count = sum(weight.numel() for weight in scales.parameters())
    own = sum(weight.numel() for weight in GuidedAttention(channels=8).parameters())
    semantic = sum(weight.numel() for weight in shared.parameters())
    assert count == 4 * (own - semantic) + semantic


def test_a_step_tells_what_its_semantic_module_said() -> None:
    block = random_block("guided", channels=8)
    x, context = random_tokens(2, 2, 8, 6, 7)
    step = block.step(x, context)
    code, decoded = block.semantic(torch.cat([x, context], dim=1))
    assert torch.equal(step.attention, block(x, context))
    assert torch.equal(step.code, code)
    assert torch.equal(step.decoded, decoded)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dual_layer", {"channels": 1}, "channels=1, out_channels=0"),
        ("dual_layer", {"channels": 8}, "channels=4 must be at least reduction=8"),
        ("dual_layer", {"channels": 16, "rank": 0}, "rank must be 1, 2 or 3, not 0"),
        ("semantic", {"channels": 0}, "channels must be positive, not 0"),
        ("guided", {"channels": 4}, "channels=4 must be at least reduction=8"),
    ],
)
def test_wrong_settings_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **settings)

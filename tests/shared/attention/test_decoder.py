"""Queries that read an image, and pointers to objects."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.attention import create, load_published, record

readers = pytest.mark.parametrize("name", ["detr_decoder", "routing_cross", "routing_cross_pre"])


def built(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return create(name, **({"channels": 16, "heads": 4, "inner_channels": 24} | settings)).double()


def sample() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return tuple(torch.randn(2, n, 16, dtype=torch.float64) for n in (5, 9, 9))


@readers
def test_padding_that_is_masked_is_as_if_it_were_not_there(name: str) -> None:
    block, (x, context, position) = built(name), sample()
    more = 50 * torch.randn(2, 4, 16, dtype=torch.float64)
    real = (torch.arange(13) < 9).expand(2, 13)
    padded = block(x, torch.cat([context, more], 1), position=torch.cat([position, more], 1), mask=real)
    torch.testing.assert_close(padded, block(x, context, position=position), rtol=1e-11, atol=1e-11)


@readers
def test_queries_and_places_have_no_order(name: str) -> None:
    block, (x, context, position) = built(name), sample()
    queries, places = torch.randperm(5), torch.randperm(9)
    turned = block(x[:, queries], context[:, places], position=position[:, places])
    torch.testing.assert_close(turned, block(x, context, position=position)[:, queries], rtol=1e-11, atol=1e-11)


def test_queries_of_a_brain_do_not_see_one_another_and_those_of_a_detector_do() -> None:
    x, context, _ = sample()
    for name, seen in (("detr_decoder", True), ("routing_cross", False), ("routing_cross_pre", False)):
        block = built(name)
        alone, together = block(x[:, :1], context), block(x, context)[:, :1]
        assert torch.allclose(alone, together, rtol=1e-10, atol=1e-10) != seen


def test_the_detector_layer_is_that_of_torch_with_positions_added() -> None:
    torch.manual_seed(0)
    known = nn.TransformerDecoderLayer(16, 4, 24, dropout=0.0, batch_first=True).double()
    block = built("detr_decoder")
    load_published("detr_decoder", block, known.state_dict())
    x, context, _ = sample()
    torch.testing.assert_close(block(x, context), known(x, context), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["routing_cross", "routing_cross_pre"])
def test_a_target_of_zeros_is_the_default_and_layers_can_follow_one_another(name: str) -> None:
    block, (x, context, _) = built(name), sample()
    first = block(x, context)
    torch.testing.assert_close(first, block(x, context, target=torch.zeros_like(x)), rtol=0, atol=0)
    assert not torch.allclose(block(x, context, target=first), first)


def test_the_map_of_a_region_is_the_mean_of_its_heads() -> None:
    block, (x, context, _) = built("routing_cross"), sample()
    with record(block) as maps:
        block(x, context)
    assert list(maps) == ["attention"]
    torch.testing.assert_close(maps["attention"].mean(), maps["attention"].dense().mean(1))
    torch.testing.assert_close(maps["attention"].mean().sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_weights_start_as_those_of_torch() -> None:
    torch.manual_seed(0)
    attention = create("routing_cross", channels=256, heads=4).attention
    # Uniform up to sqrt(6 / (C + 3C)): the three projections are one matrix to torch.
    bound = math.sqrt(6 / (4 * 256))
    for layer in (attention.query, attention.key, attention.value):
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    assert 0.99 * math.sqrt(6 / 512) < attention.out.weight.abs().max() <= math.sqrt(6 / 512)


def test_the_end_is_the_last_object_with_a_score_of_zero() -> None:
    block, (x, context, _) = create("object_pointer", channels=16).double(), sample()
    scores = block(x, context)
    assert scores.shape == (2, 5, 10)
    assert not scores[..., -1].any()
    torch.testing.assert_close(scores[..., :-1], block.query(x) @ block.key(context).mT / 4)


def test_several_heads_are_mixed() -> None:
    torch.manual_seed(0)
    block, (x, context, _) = create("object_pointer", channels=16, heads=3).double(), sample()
    one = create("object_pointer", channels=16).double()
    total = 0
    for head in range(3):
        rows = slice(16 * head, 16 * head + 16)
        state = {f"{layer}.{kind}": getattr(getattr(block, layer), kind)[rows] for layer in ("query", "key") for kind in ("weight", "bias")}
        one.load_state_dict(state)
        total = total + block.mix.weight[0, head] * one(x, context)
    torch.testing.assert_close(block(x, context), total + block.mix.bias)


@pytest.mark.parametrize("heads", [1, 2])
def test_objects_that_only_fill_up_are_never_pointed_at(heads: int) -> None:
    block, (x, context, _) = create("object_pointer", channels=16, heads=heads).double(), sample()
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, 6:] = False
    with record(block) as maps:
        scores = block(x, context, real)
    assert (scores[1, :, 6:9] == -math.inf).all()
    assert scores[1, :, 9].isfinite().all(), "the end stays"
    torch.testing.assert_close(scores[1:, :, [0, 1, 2, 3, 4, 5, 9]], block(x[1:], context[1:, :6]), rtol=1e-12, atol=1e-12)
    assert maps[""].shape == (2, 1, 5, 10)
    assert not maps[""].dense()[1, ..., 6:9].any()


@pytest.mark.parametrize("name", ["detr_decoder", "routing_cross"])
def test_wrong_heads_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="heads=3 must divide channels=16"):
        built(name, heads=3)


def test_a_pointer_without_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="heads=0"):
        create("object_pointer", channels=16, heads=0)

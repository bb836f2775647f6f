"""RTNet's blocks compute their formulas, and every choice that the formulas leave open is a setting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import create, record
from tests.shared.attention.depth import give_depth
from tests.shared.attention.random_blocks import random_block, random_tokens


def head(layer: nn.Module, asking: Tensor, asked: Tensor, residual: Tensor, scale: float) -> Tensor:
    """As the formulas stand, with the whole map in memory."""
    query, key, value = layer.query(asking).flatten(2), layer.key(asked).flatten(2), layer.value(asked).flatten(2)
    weights = torch.softmax(scale * query.mT @ key, dim=-1)
    return residual + layer.out((weights @ value.mT).mT.reshape(asking.shape))


@pytest.mark.parametrize("query", ["x", "context"])
@pytest.mark.parametrize("residual", ["x", "context"])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_relation_is_its_formulas(query: str, residual: str, scale: float | None) -> None:
    block = random_block("relation", channels=6, cross_query=query, cross_residual=residual, scale=scale)
    x, context = random_tokens(2, 2, 6, 5, 4)
    scale = scale or 6**-0.5
    asking, asked = (x, context) if query == "x" else (context, x)
    own = head(block.self_head, x, x, x, scale)
    crossed = head(block.cross_head, asking, asked, x if residual == "x" else context, scale)
    torch.testing.assert_close(block(x, context), block.fuse(torch.cat([own, crossed], dim=1)))


def test_keys_may_be_pooled() -> None:
    block = random_block("relation", channels=6, pooling=2)
    x, context = random_tokens(2, 2, 6, 4, 6)
    own = head(block.self_head, x, F.avg_pool2d(x, 2), x, 6**-0.5)
    crossed = head(block.cross_head, x, F.avg_pool2d(context, 2), x, 6**-0.5)
    torch.testing.assert_close(block(x, context), block.fuse(torch.cat([own, crossed], dim=1)))


def test_pooled_keys_of_an_odd_size_are_rounded_up() -> None:
    block, (x, context) = random_block("relation", channels=6, pooling=2), random_tokens(2, 2, 6, 5, 7)
    with record(block) as maps:
        block(x, context)
    assert {name: found.shape for name, found in maps.items()} == {"self_head": (2, 1, 35, 12), "cross_head": (2, 1, 35, 12)}


def test_global_context_is_its_formulas() -> None:
    block, x = random_block("global_context", channels=6), random_tokens(2, 6, 5, 4)
    query = block.query(x).mean((2, 3))
    weights = torch.softmax((block.key(x) * query[..., None, None]).sum(1).flatten(1), dim=-1)
    context = (block.value(x).flatten(2) * weights[:, None]).sum(-1)
    torch.testing.assert_close(block(x), x + block.out(context[..., None, None]))


def test_a_new_global_context_changes_nothing() -> None:
    x = torch.randn(2, 6, 5, 4)
    assert torch.equal(create("global_context", channels=6)(x), x)


def test_a_new_relation_only_fuses() -> None:
    block, x = create("relation", channels=6), torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(block(x, torch.randn(2, 6, 5, 4)), block.fuse(torch.cat([x, x], dim=1)))


def test_a_volume_of_depth_one_is_a_picture() -> None:
    x, context = random_tokens(2, 2, 6, 5, 4)
    flat, deep = (random_block("relation", channels=6, rank=rank) for rank in (2, 3))
    torch.testing.assert_close(give_depth(flat, deep)(x.unsqueeze(2), context.unsqueeze(2)).squeeze(2), flat(x, context))
    flat, deep = (random_block("global_context", channels=6, rank=rank) for rank in (2, 3))
    torch.testing.assert_close(give_depth(flat, deep)(x.unsqueeze(2)).squeeze(2), flat(x))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("relation", {"channels": 0}, "channels=0"),
        ("relation", {"channels": 4, "pooling": 0}, "pooling=0"),
        ("relation", {"channels": 4, "cross_query": "y"}, "cross_query must be"),
        ("relation", {"channels": 4, "rank": 4}, "rank must be 1, 2 or 3, not 4"),
        ("global_context", {"channels": 0}, "channels=0"),
    ],
)
def test_wrong_settings_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **settings)

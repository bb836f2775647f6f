"""Blocks of queries look at their own block and at a margin around it."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.attention import record
from shared.attention.halo import HaloAttention

# The answers differ in the order of float64 sums alone.
EXACT = {"rtol": 0, "atol": 1e-12}
GRIDS = {1: (11,), 2: (7, 9), 3: (3, 5, 4)}


def block(rank: int = 2, **changes: Any) -> HaloAttention:
    torch.manual_seed(0)
    return HaloAttention(**{"channels": 8, "heads": 2, "block": 4, "halo": 1, "rank": rank, **changes}).double()


def places(grid: tuple[int, ...]) -> Tensor:
    """[N, axes]."""
    return torch.tensor(list(product(*(range(extent) for extent in grid))))


def explicit(attention: HaloAttention, x: Tensor) -> Tensor:
    """Every query with all keys, a mask and its relative positions: [B, h, queries, e], for odd sizes and strides too."""
    grid, step = tuple(x.shape[2:]), attention.step
    query = attention.query(x).flatten(2).unflatten(1, (2, -1)).mT
    key, value = attention.key_value(x).flatten(2).unflatten(1, (2, -1)).mT.tensor_split([attention.width], dim=-1)
    asked, seen = step * places(tuple(-(-extent // step) for extent in grid)), places(grid)
    logits, mask = attention.width**-0.5 * query @ key.mT, torch.ones(len(asked), len(seen), dtype=torch.bool)
    for axis, (side, margin, table) in enumerate(zip(attention.block, attention.halo, attention.bias_tables, strict=True)):
        i, j = asked[:, axis].unsqueeze(1), seen[:, axis]
        start = i // side * side
        mask &= (j >= start - margin) & (j < start + side + margin)
        # The window begins a margin before the block: an offset of 0 is at the margin's side of the table's middle.
        entry = (j - i + margin + side + 2 * margin - 1).clamp(0, len(table) - 1)
        logits = logits + torch.einsum("bhnd,nmd->bhnm", query, table[entry])
    return logits.masked_fill(~mask, -math.inf).softmax(-1) @ value


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"halo": 3, "block": 2}, {"stride": 2}, {"out_channels": 12, "head_channels": 3, "qkv_bias": True}], ids=str
)
def test_each_query_sees_its_block_and_the_margin_within_the_map(rank: int, changes: dict[str, Any]) -> None:
    attention = block(rank, **changes)
    x = torch.randn(2, 8, *GRIDS[rank]).double()
    answer = attention(x)
    torch.testing.assert_close(answer.flatten(2), explicit(attention, x).mT.flatten(1, 2), **EXACT)


def test_sides_may_differ_by_axis() -> None:
    attention = block(block=(2, 4), halo=(3, 0))
    x = torch.randn(2, 8, 7, 9).double()
    torch.testing.assert_close(attention(x).flatten(2), explicit(attention, x).mT.flatten(1, 2), **EXACT)


@pytest.mark.parametrize("settings", [{"block": 16, "halo": 0}, {"block": 3, "halo": 16}])
def test_a_window_of_the_whole_map_is_global_attention(settings: dict[str, int]) -> None:
    attention = block(**settings)
    for table in attention.bias_tables:
        torch.nn.init.zeros_(table)
    x = torch.randn(2, 8, 7, 9).double()
    key, value = attention.key_value(x).flatten(2).unflatten(1, (2, -1)).mT.chunk(2, dim=-1)
    everywhere = F.scaled_dot_product_attention(attention.query(x).flatten(2).unflatten(1, (2, -1)).mT, key, value)
    torch.testing.assert_close(attention(x).flatten(2), everywhere.mT.flatten(1, 2), **EXACT)


def test_a_stride_asks_for_some_of_the_answers() -> None:
    x = torch.randn(2, 8, 9, 10).double()
    full, strided, averaged = block(), block(stride=2), block(stride=2, average=True)
    for other in (strided, averaged):
        other.load_state_dict(full.state_dict())
    torch.testing.assert_close(strided(x), full(x)[..., ::2, ::2], **EXACT)
    torch.testing.assert_close(averaged(x), F.avg_pool2d(full(x), 2, ceil_mode=True), **EXACT)


def test_published_offsets_of_a_strided_block_are_others() -> None:
    x = torch.randn(2, 8, 8, 8).double()
    sound, published = block(stride=2), block(stride=2, count_strides=True)
    assert not torch.allclose(sound(x), published(x))
    # Of the first query of each block they are the same.
    torch.testing.assert_close(sound(x)[..., ::2, ::2], published(x)[..., ::2, ::2], **EXACT)


def test_published_padding_is_a_key_of_zeros() -> None:
    """In the middle of the map both forms agree; at its borders zeros take weight, and answers are smaller by what they take."""
    attention, published = block(), block(mask_padding=False)
    x = torch.randn(1, 8, 12, 12).double()
    torch.testing.assert_close(attention(x)[..., 4:8, 4:8], published(x)[..., 4:8, 4:8], **EXACT)
    assert not torch.allclose(attention(x), published(x))
    with record(published) as maps:
        published(x)
    total = maps[""].dense().sum(-1).unflatten(-1, (12, 12))
    torch.testing.assert_close(total[..., 4:8, 4:8], torch.ones_like(total[..., 4:8, 4:8]), **EXACT)
    assert (total[..., 0, 0] < 1).all()


def test_a_corner_changes_its_own_block() -> None:
    """Another implementation masks the wrong side, and a change within a corner block does not reach that block's answers."""
    attention = block()
    x = torch.randn(1, 8, 8, 8).double()
    other = x.clone()
    other[..., 0, 0] += 1
    changed = (attention(x) != attention(other)).any(1)[0]
    assert changed[:4, :4].all()
    assert not changed[5:].any()
    assert not changed[:, 5:].any()


def test_a_volume_one_slice_thick_is_an_image() -> None:
    """The table along the depth then adds the same number to all logits of a query."""
    flat, thick = block(), block(3, block=(2, 4, 4), halo=(1, 1, 1))
    for name in ("query", "key_value"):
        getattr(thick, name).weight.data = getattr(flat, name).weight.data.unsqueeze(-1)
    for one, other in zip(thick.bias_tables[1:], flat.bias_tables, strict=True):
        one.data = other.data
    x = torch.randn(2, 8, 7, 9).double()
    torch.testing.assert_close(thick(x.unsqueeze(2)).squeeze(2), flat(x), **EXACT)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_map_is_that_of_the_whole_grid(stride: int) -> None:
    attention = block(stride=stride)
    x = torch.randn(2, 8, 7, 9).double()
    with record(attention) as maps:
        answer = attention(x)
    value = attention.key_value(x).flatten(2).unflatten(1, (2, -1)).mT[..., attention.width :]
    dense = maps[""].dense()
    torch.testing.assert_close((dense @ value).mT.flatten(1, 2), answer.flatten(2), **EXACT)
    torch.testing.assert_close(dense.sum(-1), torch.ones_like(dense[..., 0]), **EXACT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads=3 must divide out_channels=8"),
        ({"block": 0}, "block must be positive"),
        ({"halo": -1}, "halo must not be negative"),
        ({"halo": (1, 1, 1)}, "halo must not be negative, one number or one for each of 2 axes"),
        ({"stride": 3}, "stride=3 must divide block=4"),
        ({"stride": 0}, "stride=0"),
        ({"head_channels": 0}, "head_channels=0"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block(**changes)

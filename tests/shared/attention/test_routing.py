"""Each region chooses the few regions that its positions look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.attention import record, regions
from shared.attention.routing import RoutingAttention

# The answers differ in the order of float64 sums alone.
EXACT = {"rtol": 0, "atol": 1e-12}
GRIDS = {1: (12,), 2: (6, 9), 3: (6, 3, 3)}
ODD = {1: (11,), 2: (7, 8), 3: (4, 5, 3)}


def block(rank: int = 2, **changes: Any) -> RoutingAttention:
    torch.manual_seed(0)
    return RoutingAttention(**{"channels": 8, "heads": 2, "regions": 3, "topk": 2, "local_kernel": 0, "rank": rank, **changes}).double()


def features(*grid: int) -> Tensor:
    return torch.randn(2, 8, *grid, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def projected(attention: RoutingAttention, x: Tensor) -> list[Tensor]:
    """Queries, keys and values, [B, N, C]."""
    return list(attention.qkv(x.flatten(2).mT).split([attention.width, attention.width, 8], dim=-1))


def attended(attention: RoutingAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention among all positions, those that a mask [B, 1, N, N] leaves; with the block's own projections."""
    heads = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in projected(attention, x))
    answer = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=attention.scale).transpose(1, 2).flatten(2)
    return attention.out(answer).mT.reshape(x.shape)


def region_of(grid: tuple[int, ...], count: int) -> Tensor:
    """[N]: in which region each position is, if so many regions of equal side, the last maybe smaller, lie along each axis."""
    at = torch.cartesian_prod(*(torch.arange(extent) // -(-extent // count) for extent in grid)).reshape(-1, len(grid))
    return torch.unique(at, dim=0, return_inverse=True)[1]


def chosen_mask(attention: RoutingAttention, x: Tensor, topk: int) -> Tensor:
    """[B, 1, N, N]: the published routing, region by region."""
    query, key, _ = projected(attention, x)
    region = region_of(tuple(x.shape[2:]), 3)
    total = int(region.max()) + 1
    mask = torch.zeros(2, 1, len(region), len(region), dtype=torch.bool)
    for sample in range(2):
        means = [torch.stack([each[sample, region == r].mean(0) for r in range(total)]) for each in (query, key)]
        best = (means[0] @ means[1].T).topk(min(topk, total)).indices
        for r in range(total):
            mask[sample, 0] |= (region == r).unsqueeze(1) & torch.isin(region, best[r])
    return mask


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("grids", [GRIDS, ODD], ids=["even", "odd"])
def test_positions_see_the_regions_most_like_theirs(rank: int, grids: dict[int, tuple[int, ...]]) -> None:
    attention, x = block(rank), features(*grids[rank])
    expected = attended(attention, x, chosen_mask(attention, x, 2))
    torch.testing.assert_close(attention(x), expected, **EXACT)


@pytest.mark.parametrize("topk", [27, None])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_all_regions_are_dense_attention(rank: int, topk: int | None) -> None:
    """Also where regions do not divide the grid: padding is seen by nobody."""
    attention, x = block(rank, topk=topk), features(*ODD[rank])
    torch.testing.assert_close(attention(x), attended(attention, x), **EXACT)


def test_logits_are_scaled_by_the_whole_width_or_by_a_heads() -> None:
    assert block().scale == 8**-0.5
    assert block(scale="head").scale == 4**-0.5
    assert block(scale="head", key_channels=32).scale == 16**-0.5


def test_more_regions_than_places_leave_none_empty() -> None:
    """Seven regions asked of eight places are four of two, and any number of them can be chosen."""
    attention, x = block(1, regions=7, topk=20), features(8)
    with record(attention) as maps:
        attention(x)
    assert maps["routing"].shape == (2, 1, 4, 4)
    torch.testing.assert_close(attention(x), attended(attention, x), **EXACT)


def test_published_padding_takes_part() -> None:
    attention, published = block(regions=4), block(regions=4, mask_padding=False)
    divided, odd = features(8, 8), features(7, 6)
    torch.testing.assert_close(attention(divided), published(divided), **EXACT)
    assert not torch.allclose(attention(odd), published(odd))
    # It answers as if the map were larger, and nothing were there.
    torch.testing.assert_close(published(odd), attention(F.pad(odd, (0, 2, 0, 1)))[..., :7, :6], **EXACT)


def test_pooled_keys_do_not_count_padding() -> None:
    """Where all positions are alike, every average is what they are."""
    x = torch.randn(2, 8, 1, 1).double().expand(2, 8, 7, 5)
    pooled = block(pool=2)
    torch.testing.assert_close(pooled(x), block()(x), **EXACT)
    published = block(pool=2, mask_padding=False)
    published.load_state_dict(pooled.state_dict())
    assert not torch.allclose(published(x), pooled(x))


def test_keys_pooled_to_their_number_are_the_keys() -> None:
    x = features(6, 9)[..., :6]
    torch.testing.assert_close(block(pool=2)(x), block()(x), **EXACT)


def test_whole_regions_may_change_places() -> None:
    attention, x = block(), features(6, 9)
    torch.testing.assert_close(attention(x.roll((2, 6), (2, 3))), attention(x).roll((2, 6), (2, 3)), **EXACT)


def test_a_volume_one_slice_thick_is_an_image() -> None:
    flat, thick = block(), block(3, regions=(1, 3, 3))
    x = features(7, 8)
    torch.testing.assert_close(thick(x.unsqueeze(2)).squeeze(2), flat(x), **EXACT)


def test_the_values_are_convolved_on_the_map_alone() -> None:
    """The convolution sees no padding of regions, only its own zeros."""
    attention, x = block(local_kernel=3), features(7, 8)
    plain = block()
    plain.load_state_dict({name: value for name, value in attention.state_dict().items() if not name.startswith("local")})
    assert attention.local is not None
    local = attention.local(projected(attention, x)[2].mT.reshape(x.shape))
    expected = plain(x) + (local.movedim(1, -1) @ attention.out.weight.T).movedim(-1, 1)
    torch.testing.assert_close(attention(x), expected, **EXACT)


@pytest.mark.parametrize("pool", [None, 2])
def test_the_map_is_that_of_the_whole_grid(pool: int | None) -> None:
    attention, x = block(pool=pool), features(7, 8)
    with record(attention) as maps:
        attention(x)
    dense, routes = maps[""].dense(), maps["routing"].dense()
    torch.testing.assert_close(dense.sum(-1), torch.ones_like(dense[..., 0]), **EXACT)
    assert ((routes > 0).sum(-1) == 2).all()
    torch.testing.assert_close(routes.sum(-1), torch.ones_like(routes[..., 0]), **EXACT)
    if pool is None:
        assert torch.equal(dense > 0, chosen_mask(attention, x, 2).expand_as(dense))
        value = projected(attention, x)[2].unflatten(-1, (2, -1)).transpose(1, 2)
        answer = attention.out((dense @ value).transpose(1, 2).flatten(2)).mT.reshape(x.shape)
        torch.testing.assert_close(answer, attention(x), **EXACT)
    else:
        # Two cells for each of three regions along each axis, but the last region of seven rows is one row: one cell, seen twice.
        assert dense.shape == (2, 2, 56, 36)


def test_gradients_reach_the_router_where_they_are_let_through() -> None:
    x = features(6, 9)
    for differentiable in (False, True):
        attention = block(soft=True, learned_routing=True, differentiable=differentiable)
        attention(x).square().sum().backward()
        assert (attention.router.weight.grad is not None) or not differentiable
        assert bool(differentiable and attention.router.weight.grad.any()) == differentiable


@pytest.mark.parametrize("kept", [0, 2**30], ids=["run again", "kept"])
def test_rounds_change_neither_answers_nor_gradients(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    attention, x = block(soft=True, differentiable=True), features(7, 8).requires_grad_()

    def run() -> tuple[Tensor, ...]:
        answer = attention(x)
        return answer, *torch.autograd.grad(answer.square().sum(), (x, attention.qkv.weight))

    whole = run()
    monkeypatch.setattr(regions, "CHUNK_BYTES", 1)
    monkeypatch.setattr(regions, "KEPT_BYTES", kept)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads=3 must divide channels=8 and key_channels=8"),
        ({"key_channels": 9}, "heads=2 must divide channels=8 and key_channels=9"),
        ({"topk": 0}, "topk=0"),
        ({"topk": -2}, "topk=-2"),
        ({"pool": 0}, "pool=0"),
        ({"regions": 0}, "regions must be positive"),
        ({"topk": None, "pool": 2}, "topk=None has none"),
        ({"topk": None, "soft": True}, "topk=None has none"),
        ({"scale": "width"}, "scale must be embedding or head, not 'width'"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block(**changes)

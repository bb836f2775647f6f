"""ContMix: weighted sums of moved windows, exactly and without copies; the static filter merges; small maps work."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.attention import create, record
from shared.attention.window_sums import relative_bias, weigh_neighbours
from tests.shared.attention.random_blocks import random_block, random_tokens

GRIDS = {1: (7,), 2: (6, 5), 3: (5, 3, 4)}
SMALL: dict[str, Any] = {"channels": 16, "kernel": 5, "small_kernel": 3, "pooled": 3, "branches": ((3, 1), (3, 2)), "expansion": 2}


def window(place: tuple[int, ...], grid: tuple[int, ...], kernel: int) -> list[tuple[int, ...]]:
    """The places that a place sees, one after the other: around it, or moved inside at a border."""
    starts = [min(max(at - kernel // 2, 0), extent - kernel) for at, extent in zip(place, grid, strict=True)]
    return list(itertools.product(*(range(start, start + kernel) for start in starts)))


def one_by_one(weights: Tensor, values: Tensor, kernel: int) -> Tensor:
    grid = tuple(values.shape[3:])
    total = torch.zeros_like(values)
    for place in itertools.product(*(range(extent) for extent in grid)):
        seen = [values[(..., *other)] for other in window(place, grid, kernel)]
        total[(..., *place)] = sum(weights[(slice(None), slice(None), tap, None, *place)] * each for tap, each in enumerate(seen))
    return total


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3])
def test_sums_and_their_gradients_are_those_of_each_place_s_window(rank: int, kernel: int) -> None:
    grid = GRIDS[rank]
    weights, values = random_tokens(2, 2, kernel**rank, *grid).requires_grad_(), random_tokens(2, 2, 3, *grid, seed=2).requires_grad_()
    ours, theirs = weigh_neighbours(weights, values, rank), one_by_one(weights, values, kernel)
    torch.testing.assert_close(ours, theirs)
    cotangent = random_tokens(*ours.shape, seed=3)
    for one, other in zip(*(torch.autograd.grad((each * cotangent).sum(), (weights, values)) for each in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        assert torch.equal(weigh_neighbours(weights, values, rank), ours)


def test_a_window_as_large_as_the_map_is_all_of_it() -> None:
    weights, values = random_tokens(2, 3, 25, 5, 5), random_tokens(2, 3, 4, 5, 5, seed=2)
    whole = torch.einsum("bhtn,bhct->bhcn", weights.flatten(3), values.flatten(3))
    torch.testing.assert_close(weigh_neighbours(weights, values, 2).flatten(3), whole)


def test_nothing_but_weights_and_values_is_kept_for_the_gradient() -> None:
    weights, values = torch.randn(1, 2, 49, 16, 16, requires_grad=True), torch.randn(1, 2, 8, 16, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.numel()) or value, lambda value: value):
        weigh_neighbours(weights, values, 2)
    # And where the windows of 16 rows and of 16 columns begin.
    assert sum(kept) == weights.numel() + values.numel() + 16 + 16


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_bias_is_looked_up_by_how_far_away_a_place_is(rank: int) -> None:
    grid, kernel = GRIDS[rank], 3
    table = random_tokens(2, *(2 * kernel - 1 for _ in grid))
    bias = relative_bias(table, grid, kernel)
    for place in itertools.product(*(range(extent) for extent in grid)):
        for tap, other in enumerate(window(place, grid, kernel)):
            away = tuple(there - here + kernel - 1 for here, there in zip(place, other, strict=True))
            assert torch.equal(bias[(slice(None), tap, *place)], table[(slice(None), *away)])


@pytest.mark.parametrize("rank", [1, 2])
def test_merging_the_static_filter_changes_no_answer(rank: int) -> None:
    block = random_block("contmix", **SMALL, rank=rank)
    x = random_tokens(4, 16, *GRIDS[rank])
    block.train()(x)
    before, count = block.eval()(x), len(block.state_dict())
    block.reparam()
    torch.testing.assert_close(block(x), before)
    assert len(block.state_dict()) < count
    assert isinstance(block.position, nn.Conv1d if rank == 1 else nn.Conv2d)
    block.reparam()
    torch.testing.assert_close(block(x), before)


def test_each_place_s_kernels_sum_to_one() -> None:
    block = random_block("contmix", **SMALL)
    with record(block) as maps:
        block(random_tokens(2, 16, 6, 7))
    assert {name: found.shape for name, found in maps.items()} == {"small": (2, 4, 42, 9), "large": (2, 4, 42, 25)}
    for found in maps.values():
        torch.testing.assert_close(found.dense().sum(-1), torch.ones(2, 4, 42).double())


def test_a_map_smaller_than_the_kernel_is_enlarged_only_to_be_mixed() -> None:
    block, x = random_block("contmix", **SMALL), random_tokens(2, 16, 3, 4)
    with record(block) as maps:
        assert block(x).shape == x.shape
    # 3 by 4 as 5 by 6: the short side is the kernel's.
    assert maps["large"].shape == (2, 4, 30, 25)


@pytest.mark.parametrize("extent", [4, 9])
def test_compiling_for_training_gives_the_same_gradients(extent: int) -> None:
    """One map is enlarged, the other is not."""
    torch._dynamo.reset()
    block, x = random_block("contmix", **SMALL, rank=1), random_tokens(2, 16, extent).requires_grad_()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    one, other = (torch.autograd.grad(run(x).square().sum(), x)[0] for run in (compiled, block))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 12}, "channels=12 must be a multiple of 4 \\* heads, with heads=2"),
        ({"channels": 16, "heads": 0}, "heads=0"),
        ({"channels": 16, "kernel": 5}, "a kernel of 3 and a dilation of 3 reaches further than kernel=5"),
        ({"channels": 16, "kernel": 8}, "kernel=8 and small_kernel=5 must be odd"),
        ({"channels": 16, "small_kernel": 9}, "kernel=7 and small_kernel=9"),
        ({"channels": 16, "pooled": 0}, "pooled=0"),
        ({"channels": 16, "rank": 4}, "rank must be 1, 2 or 3, not 4"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("contmix", **settings)

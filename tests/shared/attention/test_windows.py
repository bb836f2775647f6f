"""Attention within windows is attention with a mask: in any dimension, at any size, and the recorded maps say so."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.attention import SoftmaxMap, attend, record
from shared.attention.windows import (
    crop,
    grid_of,
    join_windows,
    merge_grid,
    pad_to_multiple,
    padded_grid,
    per_axis,
    split_grid,
    split_windows,
    window_attend,
)
from tests.shared.attention.random_blocks import random_tokens


def membership(grid: tuple[int, ...], window: tuple[int, ...], *, strided: bool) -> tuple[Tensor, Tensor]:
    """Of each place of the grid, in order: the number of its window, and its place within it. By counting, place by place."""
    windows, inner = [], []
    for place in itertools.product(*(range(extent) for extent in grid)):
        number = position = 0
        for coordinate, extent, side in zip(place, grid, window, strict=True):
            count = math.ceil(extent / side)
            outside, inside = (coordinate % count, coordinate // count) if strided else (coordinate // side, coordinate % side)
            number, position = number * count + outside, position * side + inside
        windows.append(number)
        inner.append(position)
    return torch.tensor(windows), torch.tensor(inner)


def explicit_logits(query: Tensor, key: Tensor, window: tuple[int, ...], *, strided: bool, scale: float, bias: Tensor | None) -> Tensor:
    """[B, h, N, N] of query and key [B, h, *grid, d]: minus infinity between windows."""
    number, inner = membership(tuple(query.shape[2:-1]), window, strided=strided)
    logits = scale * query.flatten(2, -2) @ key.flatten(2, -2).mT
    if bias is not None:
        logits = logits + bias[:, inner[:, None], inner[None]]
    return logits.masked_fill(number[:, None] != number[None], -math.inf)


class Windowed(nn.Module):
    """Queries, keys and values are its input, that there is something to record."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return window_attend(query, key, value, **self.settings)


CASES = [
    (grid, window, strided)
    for grid, window in (((11,), (4,)), ((7, 9), (4, 3)), ((3, 5, 4), (2, 2, 3)), ((2, 3), (4, 4)), ((8, 6), (4, 3)))
    for strided in (False, True)
]
every_case = pytest.mark.parametrize(("grid", "window", "strided"), CASES)


def recorded(grid: tuple[int, ...], window: tuple[int, ...], strided: bool) -> tuple[SoftmaxMap, Tensor, Tensor, Tensor]:
    """The map of a windowed attention, its output, the explicit map, and the explicit logits."""
    query, key, value = random_tokens(3, 2, 2, *grid, 4).unbind()
    bias = random_tokens(2, math.prod(window), math.prod(window), seed=2)
    model = Windowed(window=window, strided=strided, bias=bias)
    with record(model) as maps:
        output = model(query, key, value)
    logits = explicit_logits(query, key, window, strided=strided, scale=0.5, bias=bias)
    return maps[""], output, torch.softmax(logits, dim=-1), logits


@settings(max_examples=60, deadline=None)
@given(
    shape=st.integers(1, 3).flatmap(lambda rank: st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=rank, max_size=rank)),
    batch=st.integers(0, 2),
    strided=st.booleans(),
    has_bias=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
)
def test_it_is_attention_under_a_mask(shape: list[tuple[int, int]], batch: int, strided: bool, has_bias: bool, scale: float | None) -> None:
    grid, window = tuple(extent for extent, _ in shape), tuple(side for _, side in shape)
    query, key, value = random_tokens(3, batch, 2, *grid, 4).unbind()
    bias = random_tokens(2, math.prod(window), math.prod(window), seed=2) if has_bias else None
    logits = explicit_logits(query, key, window, strided=strided, scale=scale or 0.5, bias=bias)
    expected = (torch.softmax(logits, dim=-1) @ value.flatten(2, -2)).reshape(value.shape)
    found = window_attend(query, key, value, window=window, strided=strided, scale=scale, bias=bias)
    # float64 sums in another order.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_window_as_large_as_the_grid_or_larger_is_attention_to_all() -> None:
    query, key, value = random_tokens(3, 2, 2, 3, 5, 4).unbind()
    expected = attend(*(x.flatten(2, -2) for x in (query, key, value))).reshape(value.shape)
    for window, strided in itertools.product(((3, 5), (4, 7)), (False, True)):
        # Masked keys have no part in float64 sums, only in their order.
        torch.testing.assert_close(window_attend(query, key, value, window=window, strided=strided), expected, rtol=1e-10, atol=1e-10)


def test_a_window_of_one_gives_the_values() -> None:
    query, key, value = random_tokens(3, 2, 2, 3, 5, 4).unbind()
    assert torch.equal(window_attend(query, key, value, window=(1, 1)), value)


def test_values_may_have_another_width() -> None:
    query, key = random_tokens(2, 2, 2, 3, 5, 4).unbind()
    value = random_tokens(2, 2, 3, 5, 7, seed=3)
    logits = explicit_logits(query, key, (2, 2), strided=False, scale=0.5, bias=None)
    expected = (torch.softmax(logits, dim=-1) @ value.flatten(2, -2)).reshape(value.shape)
    # float64 sums in another order.
    torch.testing.assert_close(window_attend(query, key, value, window=(2, 2)), expected, rtol=1e-10, atol=1e-10)


@every_case
def test_recorded_maps_are_the_explicit_ones_at_the_places_of_the_whole_grid(grid, window, strided) -> None:
    found, output, expected, logits = recorded(grid, window, strided)
    places = math.prod(grid)
    assert found.shape == (2, 2, places, places)
    dense = found.dense()
    # float64 sums in another order.
    torch.testing.assert_close(dense, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.logits(), logits, rtol=1e-10, atol=1e-12)
    assert ((dense == 0) == (logits == -math.inf)).all(), "what is outside the window is exactly 0"
    value = random_tokens(3, 2, 2, *grid, 4)[2].flatten(2, -2)
    torch.testing.assert_close(dense @ value, output.flatten(2, -2), rtol=1e-10, atol=1e-10)


@every_case
def test_some_queries_heads_and_keys_of_a_windowed_map(grid, window, strided) -> None:
    found, _, expected, logits = recorded(grid, window, strided)
    near = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found.dense(queries=0), expected[:, :, :1], **near)
    torch.testing.assert_close(found.dense(queries=[4, -1], heads=1), expected[:, 1:, [4, -1]], **near)
    torch.testing.assert_close(found.dense(queries=slice(1, 5), keys=[0, 5]), expected[:, :, 1:5][..., [0, 5]], **near)
    torch.testing.assert_close(found.logits(queries=[2, 0], heads=0), logits[:, :1, [2, 0]], **near)
    torch.testing.assert_close(found.mean(), expected.mean(1), **near)
    torch.testing.assert_close(torch.cat([found.dense(queries=rows) for rows in found.tiles()], dim=2), expected, **near)


@every_case
def test_the_sparse_form_holds_the_same_weights_and_says_whose_they_are(grid, window, strided) -> None:
    found, _, expected, _ = recorded(grid, window, strided)
    weights, keys = found.sparse()
    places = math.prod(grid)
    assert weights.shape == (2, 2, places, math.prod(window))
    assert keys.shape == (places, math.prod(window))
    assert (weights[:, :, keys < 0] == 0).all(), "padding has no weight"
    for query in range(places):
        seen = keys[query][keys[query] >= 0]
        assert len(set(seen.tolist())) == len(seen)
        assert query in seen
        # float64 sums in another order.
        torch.testing.assert_close(weights[:, :, query, keys[query] >= 0], expected[:, :, query, seen], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sparse(heads=1)[0], weights[:, 1:])


@every_case
def test_the_gradient_of_a_windowed_map_is_that_of_a_map_that_was_held(grid, window, strided) -> None:
    tensors = [x.clone().requires_grad_() for x in random_tokens(3, 2, 2, *grid, 4)]
    weight = random_tokens(2, 2, *grid, 4, seed=4)
    model = Windowed(window=window, strided=strided)
    with record(model, gradients=True) as maps:
        (model(*tensors).pow(2) * weight).sum().backward()

    query, key, value = tensors
    logits = explicit_logits(query, key, window, strided=strided, scale=0.5, bias=None)
    held = torch.softmax(logits, dim=-1).detach().requires_grad_()
    ((held @ value.detach().flatten(2, -2)).reshape(value.shape).pow(2) * weight).sum().backward()
    # A windowed map has no weights between windows, so that no gradient reaches them.
    expected = held.grad.masked_fill(logits == -math.inf, 0)
    # float64 sums in another order.
    torch.testing.assert_close(maps[""].gradient(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(maps[""].gradient(queries=[1, -1], heads=0), expected[:, :1, [1, -1]], rtol=1e-9, atol=1e-12)


def test_padding_that_the_caller_wants_seen_is_seen_and_cut_off() -> None:
    grid, window = (5, 6), (4, 4)
    query, key, value = (pad_to_multiple(x, window, value=0.7) for x in random_tokens(3, 2, 2, *grid, 4).unbind())
    model = Windowed(window=window, grid=grid)
    with record(model) as maps:
        output = model(query, key, value)
    weights = torch.softmax(explicit_logits(query, key, window, strided=False, scale=0.5, bias=None), dim=-1)
    real = pad_to_multiple(torch.ones(*grid, 1, dtype=torch.bool), window, value=False).flatten()
    expected = weights @ value.flatten(2, -2)
    # float64 sums in another order.
    torch.testing.assert_close(output.flatten(2, -2), expected[:, :, real], rtol=1e-10, atol=1e-10)
    assert maps[""].shape == (2, 2, 30, 30)
    torch.testing.assert_close(maps[""].dense(), weights[:, :, real][..., real], rtol=1e-10, atol=1e-12)
    sums = maps[""].dense().sum(-1).unflatten(-1, grid)
    assert (sums[..., 4:, :] < 1).all(), "these windows gave some of their weight to padding"
    torch.testing.assert_close(sums[..., :4, :4], torch.ones_like(sums[..., :4, :4]))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.integers(1, 3).flatmap(lambda rank: st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=rank, max_size=rank)),
    batch=st.integers(0, 2),
    strided=st.booleans(),
)
def test_windows_are_cut_and_joined_without_loss(shape: list[tuple[int, int]], batch: int, strided: bool) -> None:
    grid, window = tuple(extent for extent, _ in shape), tuple(side for _, side in shape)
    x = random_tokens(batch, 2, *grid, 3)
    padded = pad_to_multiple(x, window)
    assert padded.shape[2:-1] == padded_grid(grid, window)
    windows = split_windows(padded, window, strided=strided)
    assert windows.shape[1:] == (2, math.prod(window), 3)
    assert torch.equal(crop(join_windows(windows, padded.shape[2:-1], window, strided=strided), grid), x)


def test_tokens_and_heads_on_a_grid_and_back() -> None:
    x = random_tokens(2, 15, 6)
    placed = split_grid(x.unflatten(1, (3, 5)), 3)
    assert placed.shape == (2, 3, 3, 5, 2)
    assert torch.equal(placed[1, 2, 1, 4], x[1, 9, 4:])
    assert torch.equal(merge_grid(placed).flatten(1, 2), x)


def test_nothing_is_copied_where_nothing_is_padded() -> None:
    x = random_tokens(1, 4, 6, 2)
    assert pad_to_multiple(x, (2, 3)) is x


def test_wrong_sizes_are_named() -> None:
    assert per_axis(3, 2) == (3, 3)
    assert per_axis([3, 4], 2) == (3, 4)
    with pytest.raises(ValueError, match=r"window must be positive, one number or one for each of 2 axes, not \(3, 4, 5\)"):
        per_axis((3, 4, 5), 2)
    with pytest.raises(ValueError, match="reduction must be positive, one number or one for each of 2 axes, not 0"):
        per_axis(0, 2, name="reduction")
    x = random_tokens(1, 12, 2)
    assert grid_of(x, [3, 4]) == (3, 4)
    with pytest.raises(ValueError, match=r"12 tokens do not fill a grid of \(3, 5\)"):
        grid_of(x, (3, 5))
    with pytest.raises(ValueError, match=r"grid must have 3 axes, not \(3, 4\)"):
        grid_of(x, (3, 4), rank=3)

"""Every token sees the keys around it, whatever does the work."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.attention import record, regions
from shared.attention.neighborhood import CircularAttention, NeighborhoodAttention, circular_attend, neighborhood_attend
from shared.attention.neighborhood_tiles import TILE, Axis, Neighborhood

# The answers differ in the order of float64 sums alone.
EXACT = {"rtol": 0, "atol": 1e-12}
# float32 sums of tens of terms of size 1.
SINGLE = {"rtol": 0, "atol": 1e-5}


def sees(extent: int, kernel: int, dilation: int, stride: int, causal: bool) -> Tensor:
    """[extent, extent]: the published windows along one axis, one query at a time."""
    mask = torch.zeros(extent, extent, dtype=torch.bool)
    left, right = kernel // 2, kernel // 2 - 1 + kernel % 2
    for i in range(extent):
        group, j = i % dilation, i // dilation
        members = math.ceil((extent - group) / dilation)
        if causal:
            leader = min(j // stride * stride + stride - 1, members - 1)
            seen = range(max(leader - kernel + 1, 0), j + 1)
        elif kernel >= members:
            seen = range(members)
        else:
            centre = min(j // stride * stride + stride // 2, members - 1)
            start = max(centre - left, 0) - max(0, centre + right + 1 - members)
            seen = range(start, start + kernel)
        for k in seen:
            mask[i, group + dilation * k] = True
    return mask


def places(grid: tuple[int, ...]) -> Tensor:
    """[N, axes]."""
    return torch.tensor(list(product(*(range(extent) for extent in grid))))


def explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Equation 1 of the attention paper with all keys and a mask [N, N], in float64."""
    grid = query.shape[2:-1]
    query, key, value = (x.flatten(2, -2).double() for x in (query, key, value))
    logits = query @ key.mT * query.shape[-1] ** -0.5 + bias
    return (logits.masked_fill(~mask, -math.inf).softmax(-1) @ value).unflatten(2, grid)


def neighbourhoods(grid: tuple[int, ...], axes: list[dict[str, Any]]) -> Tensor:
    mask = torch.ones(1, 1, dtype=torch.bool)
    for extent, axis in zip(grid, axes, strict=True):
        each = sees(extent, **axis)
        mask = (mask[:, None, :, None] & each[None, :, None, :]).flatten(2).flatten(0, 1)
    return mask


def entries(bias: Tensor, grid: tuple[int, ...], axes: list[dict[str, Any]]) -> Tensor:
    """[h, N, N]: the bias of each pair; of pairs of other groups or beyond the table, something."""
    at = places(grid)
    offsets = (at.unsqueeze(0) - at.unsqueeze(1)) // torch.tensor([axis["dilation"] for axis in axes])
    index = [(offsets[..., i] + axis["kernel"] - 1).clamp(0, 2 * axis["kernel"] - 2) for i, axis in enumerate(axes)]
    return bias[(slice(None), *index)]


def heads(grid: tuple[int, ...], *, width: int = 4, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2, *grid, width, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def by_name(axes: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [axis[name] for axis in axes] for name in axes[0]}


@st.composite
def requests(draw: st.DrawFn, *, natten: bool = False) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    """A grid, and what is asked along each axis. NATTEN takes no kernel of 1, and none that exceeds its axis."""
    rank = draw(st.integers(1, 3))
    grid = tuple(draw(st.integers(2 if natten else 1, {1: 40, 2: 12, 3: 6}[rank])) for _ in range(rank))
    axes = []
    for extent in grid:
        kernel = draw(st.integers(2, min(9, extent))) if natten else draw(st.integers(1, 9))
        dilation = draw(st.integers(1, extent // kernel if natten else 4))
        axes.append({"kernel": kernel, "dilation": dilation, "stride": draw(st.integers(1, kernel)), "causal": draw(st.booleans())})
    return grid, axes


@settings(max_examples=80, deadline=None)
@given(requests(), st.booleans(), st.integers(1, 9))
def test_tiles_are_the_published_windows(request: tuple, biased: bool, tile: int) -> None:
    grid, axes = request
    query, key, value = heads(grid)
    bias = torch.randn(2, *(2 * axis["kernel"] - 1 for axis in axes), dtype=torch.float64) if biased else None
    expected = explicit(query, key, value, neighbourhoods(grid, axes), 0.0 if bias is None else entries(bias, grid, axes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TILE, len(grid), tile)
        answer = neighborhood_attend(query, key, value, **by_name(axes), bias=bias, backend="tiles")
    torch.testing.assert_close(answer, expected, **EXACT)


@pytest.mark.parametrize(
    ("grid", "axes", "biased"),
    [
        ((300,), [{"kernel": 7, "dilation": 3, "stride": 2, "causal": True}], False),
        (
            (20, 37),
            [{"kernel": 5, "dilation": 2, "stride": 1, "causal": False}, {"kernel": 7, "dilation": 1, "stride": 3, "causal": True}],
            True,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same(grid: tuple[int, ...], axes: list[dict[str, Any]], biased: bool) -> None:
    """More tokens than one of its blocks, so that some blocks are skipped."""
    query, key, value = heads(grid, dtype=torch.float32, batch=1)
    bias = torch.randn(2, *(2 * axis["kernel"] - 1 for axis in axes)) if biased else None
    one, other = (neighborhood_attend(query, key, value, **by_name(axes), bias=bias, backend=name) for name in ("tiles", "flex"))
    torch.testing.assert_close(one, other, **SINGLE)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_has_discs_too() -> None:
    query, key, value = heads((7, 6, 9), dtype=torch.float32, batch=1)
    one, other = (circular_attend(query, key, value, radius=2.5, backend=name) for name in ("tiles", "flex"))
    torch.testing.assert_close(one, other, **SINGLE)


@pytest.mark.skipif(find_spec("natten") is None, reason="NATTEN is not installed")
@settings(max_examples=10, deadline=None)
@given(requests(natten=True))
def test_natten_gives_the_same(request: tuple) -> None:
    grid, axes = request
    query, key, value = heads(grid, width=16, dtype=torch.float32)
    one, other = (neighborhood_attend(query, key, value, **by_name(axes), backend=name) for name in ("tiles", "natten"))
    torch.testing.assert_close(one, other, **SINGLE)


@pytest.mark.parametrize("kept", [0, 2**30], ids=["run again", "kept"])
def test_rounds_change_neither_answers_nor_gradients(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    inputs = [x.requires_grad_() for x in heads((19, 10))]
    bias = torch.randn(2, 9, 9, dtype=torch.float64, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        answer = neighborhood_attend(*inputs, kernel=5, bias=bias)
        return answer, *torch.autograd.grad((answer * answer.detach().cos()).sum(), (*inputs, bias))

    whole = run()
    monkeypatch.setattr(regions, "CHUNK_BYTES", 1)
    monkeypatch.setattr(regions, "KEPT_BYTES", kept)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize(("grid", "most"), [((4096,), 2), ((64, 64), 4), ((16, 16, 16), 16)])
def test_keys_are_copied_per_tile_and_not_per_query(grid: tuple[int, ...], most: int) -> None:
    near = Neighborhood(axes=tuple(Axis(extent=extent, kernel=7) for extent in grid))
    tiles, _, keys = near.tiling()
    # One copy for each query would be 7, 49 and 343 times the keys.
    assert tiles * keys <= most * math.prod(grid)


@pytest.mark.parametrize("kernel", [(6, 5), (7, 5), (99, 99)])
def test_a_window_of_the_whole_grid_is_global_attention(kernel: tuple[int, int]) -> None:
    query, key, value = heads((6, 5))
    everything = F.scaled_dot_product_attention(*(x.flatten(2, 3) for x in (query, key, value)))
    torch.testing.assert_close(neighborhood_attend(query, key, value, kernel=kernel).flatten(2, 3), everything, **EXACT)
    torch.testing.assert_close(circular_attend(query, key, value, radius=99).flatten(2, 3), everything, **EXACT)


@pytest.mark.parametrize(("rank", "grid"), [(1, (9,)), (2, (5, 4)), (3, (3, 4, 2))])
@pytest.mark.parametrize(
    "block",
    [
        lambda rank: NeighborhoodAttention(channels=8, heads=2, kernel=1, rank=rank),
        lambda rank: CircularAttention(channels=8, heads=2, radius=1),
    ],
)
def test_who_sees_only_itself_answers_with_its_value(rank: int, grid: tuple[int, ...], block: Any) -> None:
    attention = block(rank).double()
    x = torch.randn(2, 8, *grid).double()
    expected = attention.out(attention.qkv(x.movedim(1, -1))[..., -8:]).movedim(-1, 1)
    torch.testing.assert_close(attention(x), expected, **EXACT)


@pytest.mark.parametrize("dilation", [1, 2])
def test_away_from_the_borders_it_shifts_with_its_input(dilation: int) -> None:
    torch.manual_seed(0)
    attention = NeighborhoodAttention(channels=8, heads=2, kernel=3, dilation=dilation).double()
    x = torch.randn(1, 8, 16, 15).double()
    moved = attention(x.roll((2, 4), (2, 3)))[..., 6:-4, 8:-4]
    torch.testing.assert_close(moved, attention(x)[..., 4:-6, 4:-8], **EXACT)


def test_a_volume_one_slice_thick_is_an_image() -> None:
    query, key, value = heads((7, 8))
    flat = neighborhood_attend(query, key, value, kernel=3, stride=2)
    for depth_kernel in (2, 5):
        thick = neighborhood_attend(*(x.unsqueeze(2) for x in (query, key, value)), kernel=(depth_kernel, 3, 3), stride=(1, 2, 2))
        torch.testing.assert_close(thick.squeeze(2), flat, **EXACT)
    thick = circular_attend(*(x.unsqueeze(3) for x in (query, key, value)), radius=2.5)
    torch.testing.assert_close(thick.squeeze(3), circular_attend(query, key, value, radius=2.5), **EXACT)


@pytest.mark.parametrize("radius", [1.5, 2, 3.7])
@pytest.mark.parametrize("grid", [(40,), (9, 11), (5, 6, 4)])
def test_a_disc_holds_what_is_nearer_than_its_radius(radius: float, grid: tuple[int, ...]) -> None:
    query, key, value = heads(grid)
    distance = torch.cdist(places(grid).double(), places(grid).double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(circular_attend(query, key, value, radius=radius), explicit(query, key, value, distance < radius), **EXACT)


class Bare(nn.Module):
    """The operator, as something that can be recorded."""

    def __init__(self, **asked: Any) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return neighborhood_attend(query, key, value, **self.asked)


@pytest.mark.parametrize("backend", ["auto", "flex"])
def test_the_map_is_that_of_the_whole_grid(backend: str) -> None:
    grid, axes = (
        (9, 10),
        [{"kernel": 3, "dilation": 2, "stride": 1, "causal": False}, {"kernel": 4, "dilation": 1, "stride": 2, "causal": True}],
    )
    query, key, value = heads(grid)
    block = Bare(**by_name(axes), backend=backend)
    with record(block) as maps:
        answer = block(query, key, value)
    dense = maps[""].dense()
    assert torch.equal(dense > 0, neighbourhoods(grid, axes).expand_as(dense))
    torch.testing.assert_close(dense @ value.flatten(2, 3), answer.flatten(2, 3), **EXACT)
    weights, keys = maps[""].sparse()
    assert weights.shape[-1] == keys.shape[-1] < dense.shape[-1]
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), **EXACT)


def test_published_weights_have_a_table_by_offset() -> None:
    block = NeighborhoodAttention(channels=8, heads=2, kernel=(3, 5))
    assert block.bias_table is not None
    assert block.bias_table.shape == (2, 5, 9)
    assert NeighborhoodAttention(channels=8, heads=2, relative_bias=False).bias_table is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kernel": 0}, "kernel must be positive"),
        ({"kernel": (3, 3, 3)}, "kernel must be positive"),
        ({"kernel": 3, "stride": 4}, "stride=4 must not exceed kernel=3"),
        ({"kernel": 3, "dilation": 0}, "dilation must be positive"),
        ({"kernel": 3, "causal": (True,)}, "causal must be one value"),
        ({"kernel": 3, "bias": torch.zeros(2, 5, 4)}, r"bias must be \[2, 5, 5\]"),
        ({"kernel": 3, "backend": "cutlass"}, "backend must be auto, tiles, natten or flex, not 'cutlass'"),
        ({"kernel": 3, "backend": "natten", "bias": torch.zeros(2, 5, 5)}, "'natten' cannot do this: it has no bias"),
        ({"kernel": 3, "dilation": 3, "backend": "natten"}, r"kernel x dilation exceeds the axis: \[\(3, 3, 8\)"),
        ({"kernel": 1, "backend": "natten"}, "a kernel is 1"),
        ({"kernel": 3, "backend": "natten"}, "the data type is torch.float64"),
    ],
)
def test_wrong_arguments_are_named(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighborhood_attend(*heads((8, 8)), **asked)


def test_a_backend_that_cannot_train_here_says_so() -> None:
    inputs = [x.requires_grad_() for x in heads((8, 8), dtype=torch.float32, width=16)]
    for backend in ("natten", "flex"):
        with pytest.raises(ValueError, match=f"{backend}' cannot do this: it has no gradients on a CPU"):
            neighborhood_attend(*inputs, kernel=3, backend=backend)


def test_other_wrong_arguments_are_named() -> None:
    query, key, value = heads((8, 8))
    with pytest.raises(ValueError, match="must share a grid"):
        neighborhood_attend(query, key[:, :, :7], value, kernel=3)
    with pytest.raises(ValueError, match="1, 2 or 3 spatial axes, not 0"):
        neighborhood_attend(query[:, :, 0, 0], key[:, :, 0, 0], value[:, :, 0, 0], kernel=3)
    with pytest.raises(ValueError, match="radius must be positive, not 0"):
        circular_attend(query, key, value, radius=0)
    with pytest.raises(ValueError, match="heads=3 must divide channels=8"):
        NeighborhoodAttention(channels=8, heads=3)
    with pytest.raises(ValueError, match="radius must be positive, not -1"):
        CircularAttention(channels=8, radius=-1)

"""Separable attention gates by one vector for each place in a patch; uniform attention adds the mean."""

from __future__ import annotations

import pytest
import torch

from shared.attention import create, load_published, record
from tests.shared.attention.random_blocks import load, random_block, random_tokens


@pytest.mark.parametrize("patch", [1, 2, (3, 2)])
def test_each_place_in_a_patch_has_its_softmax_over_the_patches(patch: int | tuple[int, int]) -> None:
    block, x = random_block("separable", channels=8, patch=patch), random_tokens(2, 8, 5, 7)
    with record(block) as maps:
        answer = block(x)
    query, key, value = block.qkv(x.movedim(1, -1)).split((1, 8, 8), dim=-1)
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    expected, weights = torch.zeros_like(value), torch.zeros_like(query)
    for row in range(rows):
        for column in range(columns):
            here = (slice(None), slice(row, None, rows), slice(column, None, columns))
            weights[here] = query[here].flatten(1).softmax(-1).reshape(query[here].shape)
            expected[here] = value[here].relu() * (weights[here] * key[here]).sum((1, 2), keepdim=True)
    # float64 sums in another order.
    torch.testing.assert_close(answer, block.out(expected).movedim(-1, 1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(maps[""].dense(), weights.movedim(-1, 1), rtol=1e-10, atol=1e-10)


def test_a_patch_larger_than_the_map_leaves_each_position_alone() -> None:
    block, x = random_block("separable", channels=8, patch=9), random_tokens(2, 8, 3, 4).requires_grad_()
    answer = block(x)
    _, key, value = block.qkv(x.movedim(1, -1)).split((1, 8, 8), dim=-1)
    # A softmax of one number is 1. float64 rounding.
    torch.testing.assert_close(answer, block.out(value.relu() * key).movedim(-1, 1), rtol=1e-10, atol=1e-10)
    answer.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all(), "places of the patch that are all padding have no softmax"


def test_a_shift_by_whole_patches_shifts_the_answer() -> None:
    block, x = random_block("separable", channels=8, patch=2), random_tokens(1, 8, 4, 6)
    # float64 sums in another order.
    torch.testing.assert_close(block(x.roll((2, 4), (2, 3))), block(x).roll((2, 4), (2, 3)), rtol=1e-10, atol=1e-10)


def test_volumes_of_one_slice_are_images() -> None:
    x = random_tokens(2, 8, 5, 7)
    flat = random_block("separable", channels=8, patch=2)
    for patch in (2, (1, 2, 2)):
        deep = load(create("separable", channels=8, patch=patch).double(), flat.state_dict())
        torch.testing.assert_close(deep(x.unsqueeze(2)).squeeze(2), flat(x), rtol=1e-10, atol=1e-10)


def test_a_context_of_another_size_gives_query_and_keys() -> None:
    block, x, context = random_block("separable", channels=8), random_tokens(2, 8, 5, 7), random_tokens(2, 8, 4, 3, seed=2)
    with record(block) as maps:
        assert block(x, context).shape == x.shape
    assert maps[""].shape == (2, 1, 4, 3)
    torch.testing.assert_close(block(x, x), block(x), rtol=1e-10, atol=1e-10)


def test_names_of_others_libraries_load() -> None:
    state = {"qkv_proj.weight": torch.randn(17, 8, 1, 1), "qkv_proj.bias": torch.randn(17)}
    state |= {"out_proj.weight": torch.randn(8, 8, 1, 1), "out_proj.bias": torch.randn(8)}
    timm = pytest.importorskip("timm.models.mobilevit").LinearSelfAttention(8).eval()
    timm.load_state_dict(state)
    block = create("separable", channels=8)
    load_published("separable", block, state)
    x = torch.randn(2, 8, 6, 10)
    folded = x.unflatten(2, (3, 2)).unflatten(4, (5, 2)).permute(0, 1, 3, 5, 2, 4).reshape(2, 8, 4, 15)
    expected = timm(folded).reshape(2, 8, 2, 2, 3, 5).permute(0, 1, 4, 2, 5, 3).reshape(x.shape)
    # float32 sums of 15 terms, in another order.
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_uniform_attention_is_the_mean_and_its_map_says_so() -> None:
    block, x = create("uniform", channels=3), random_tokens(2, 3, 4, 5).requires_grad_()
    with record(block, gradients=True) as maps:
        answer = block(x)
        answer.square().sum().backward()
    # float64 sums in another order.
    torch.testing.assert_close(answer, x + x.mean((2, 3), keepdim=True), rtol=1e-10, atol=1e-10)
    assert (maps[""].dense() == 1 / 20).all()
    assert maps[""].shape == (2, 1, 20, 20)
    expected = 2 * answer.flatten(2).mT @ x.flatten(2)
    torch.testing.assert_close(maps[""].gradient()[:, 0], expected, rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_named() -> None:
    for name in ("separable", "uniform"):
        with pytest.raises(ValueError, match="channels must be positive, not 0"):
            create(name, channels=0)
    with pytest.raises(ValueError, match=r"patch must be positive, .* not 0"):
        create("separable", channels=8, patch=0)
    with pytest.raises(ValueError, match=r"patch must be positive, .* 2 axes, not \(1, 2, 2\)"):
        create("separable", channels=8, patch=(1, 2, 2))(torch.zeros(1, 8, 4, 4))

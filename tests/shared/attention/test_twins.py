"""Twins: local attention is attention within each window, global attention is attention to every patch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared.attention import create, load_published, record
from tests.shared.attention.random_blocks import load, random_block, random_tokens


def test_one_window_over_the_whole_grid_is_self_attention() -> None:
    x = random_tokens(2, 12, 16)
    everywhere = random_block("mhsa", channels=16, heads=2)
    for window in ((3, 4), 5):
        local = load(random_block("twins_lsa", channels=16, heads=2, window=window, qkv_bias=True), everywhere.state_dict())
        # float64 sums in another order.
        torch.testing.assert_close(local(x, grid=(3, 4)), everywhere(x), rtol=1e-10, atol=1e-10)


def test_each_window_is_self_attention_by_itself_and_the_last_ones_are_smaller() -> None:
    x = random_tokens(2, 35, 16)
    everywhere = random_block("mhsa", channels=16, heads=2)
    local = load(random_block("twins_lsa", channels=16, heads=2, window=(2, 3), qkv_bias=True), everywhere.state_dict())
    found, placed = local(x, grid=(5, 7)).unflatten(1, (5, 7)), x.unflatten(1, (5, 7))
    for row in range(0, 5, 2):
        for column in range(0, 7, 3):
            window = placed[:, row : row + 2, column : column + 3]
            expected = everywhere(window.flatten(1, 2)).unflatten(1, window.shape[1:3])
            # float64 sums in another order.
            torch.testing.assert_close(found[:, row : row + 2, column : column + 3], expected, rtol=1e-10, atol=1e-10)


def test_a_shift_by_whole_windows_shifts_the_answer() -> None:
    block = random_block("twins_lsa", channels=16, heads=2, window=3)
    x = random_tokens(1, 6, 9, 16)
    moved = block(x.roll((3, 6), dims=(1, 2)).flatten(1, 2), grid=(6, 9))
    expected = block(x.flatten(1, 2), grid=(6, 9)).unflatten(1, (6, 9)).roll((3, 6), dims=(1, 2)).flatten(1, 2)
    # The same sums, perhaps in another order.
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-10)


def test_volumes_of_one_slice_are_images() -> None:
    x = random_tokens(2, 35, 16)
    flat, deep = (random_block("twins_lsa", channels=16, heads=2, window=window) for window in ((2, 3), (1, 2, 3)))
    # The same sums, perhaps in another order.
    torch.testing.assert_close(flat(x, grid=(5, 7)), deep(x, grid=(1, 5, 7)), rtol=1e-10, atol=1e-10)

    flat = random_block("twins_gsa", channels=16, heads=2, reduction=2)
    deep = random_block("twins_gsa", channels=16, heads=2, reduction=(1, 2, 2), rank=3)
    load(deep, {name: value.unsqueeze(2) if value.ndim == 4 else value for name, value in flat.state_dict().items()})
    torch.testing.assert_close(flat(x, grid=(5, 7)), deep(x, grid=(1, 5, 7)), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grid", [(8, 8), (7, 9)])
def test_timms_padding_is_there_by_name(grid: tuple[int, int]) -> None:
    twins = pytest.importorskip("timm.models.twins")
    x = random_tokens(2, grid[0] * grid[1], 16)
    theirs = twins.LocallyGroupedAttn(16, num_heads=2, ws=4).double().eval()
    nn.init.normal_(theirs.qkv.bias)
    answers = {}
    for name in ("twins_lsa", "twins_lsa_timm"):
        block = create(name, channels=16, heads=2, window=4, qkv_bias=True).double()
        load_published(name, block, theirs.state_dict())
        answers[name] = block(x, grid=grid)
    # float64 sums in another order.
    torch.testing.assert_close(answers["twins_lsa_timm"], theirs(x, grid), rtol=1e-10, atol=1e-10)
    assert torch.allclose(answers["twins_lsa"], answers["twins_lsa_timm"]) == (grid == (8, 8)), "where windows fit there is no padding"


def test_without_reduction_global_attention_is_self_attention() -> None:
    x = random_tokens(2, 15, 16)
    subsampled = random_block("twins_gsa", channels=16, heads=2, qkv_bias=True)
    everywhere = random_block("mhsa", channels=16, heads=2)
    state = subsampled.state_dict()
    for kind in ("weight", "bias"):
        state[f"qkv.{kind}"] = torch.cat((state.pop(f"query.{kind}"), state.pop(f"key_value.{kind}")))
    # float64 sums in another order.
    torch.testing.assert_close(subsampled(x, grid=(3, 5)), load(everywhere, state)(x), rtol=1e-10, atol=1e-10)


def test_the_far_end_is_seen_and_the_published_form_leaves_it_out() -> None:
    x = random_tokens(1, 35, 16)
    changed = x.clone()
    changed[:, -1] += 1
    for name, seen in (("twins_gsa", True), ("twins_gsa_published", False)):
        block = random_block(name, channels=16, heads=2, reduction=2)
        with record(block) as maps:
            before = block(x, grid=(5, 7))
        assert maps[""].shape == (1, 2, 35, 12 if seen else 6)
        assert torch.equal(before[:, 0], block(changed, grid=(5, 7))[:, 0]) != seen


def test_sizes_that_divide_are_the_same_in_both_forms() -> None:
    x = random_tokens(2, 24, 16)
    one = random_block("twins_gsa", channels=16, heads=2, reduction=2)
    other = load(random_block("twins_gsa_published", channels=16, heads=2, reduction=2), one.state_dict())
    assert torch.equal(one(x, grid=(4, 6)), other(x, grid=(4, 6)))


def test_patches_may_be_turned_around_but_not_mixed() -> None:
    """A patch is a key whatever its place: exchanging whole patches moves the answers with their queries."""
    block = random_block("twins_gsa", channels=16, heads=2, reduction=2)

    def turned(x: Tensor) -> Tensor:
        return x.unflatten(1, (4, 6)).roll((2, 4), dims=(1, 2)).flatten(1, 2)

    x = random_tokens(2, 24, 16)
    # Keys in another order: float64 sums too.
    torch.testing.assert_close(block(turned(x), grid=(4, 6)), turned(block(x, grid=(4, 6))), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_named() -> None:
    for name in ("twins_lsa", "twins_gsa"):
        with pytest.raises(ValueError, match="heads=3 must divide channels=16"):
            create(name, channels=16, heads=3)
    with pytest.raises(ValueError, match=r"window must be positive, .* not 0"):
        create("twins_lsa", channels=16, window=0)
    with pytest.raises(ValueError, match=r"reduction must be positive, .* not \(2, 2, 2\)"):
        create("twins_gsa", channels=16, reduction=(2, 2, 2))
    with pytest.raises(ValueError, match="rank must be 1, 2 or 3, not 4"):
        create("twins_gsa", channels=16, rank=4)
    x = random_tokens(1, 12, 16)
    with pytest.raises(ValueError, match=r"12 tokens do not fill a grid of \(3, 5\)"):
        random_block("twins_lsa", channels=16)(x, grid=(3, 5))
    with pytest.raises(ValueError, match=r"one for each of 2 axes, not \(2, 2, 2\)"):
        random_block("twins_lsa", channels=16, window=(2, 2, 2))(x, grid=(3, 4))
    with pytest.raises(ValueError, match=r"grid must have 2 axes, not \(12,\)"):
        random_block("twins_gsa", channels=16)(x, grid=(12,))

"""Focused linear attention: large channels are sharpened, windows are small global attentions, tables fit any grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.attention import create, record
from shared.attention.flatten import _Focus
from shared.layers import resize
from tests.shared.attention.depth import give_depth
from tests.shared.attention.random_blocks import load, random_block, random_tokens


def globally(window: nn.Module, table: tuple[int, ...]) -> nn.Module:
    """The global form with the weights of a window's, whose table is cut to a smaller one."""
    state = {name: value for name, value in window.state_dict().items() if not name.startswith("qkv")}
    for kind in ("weight", "bias"):
        query, key, value = window.state_dict()[f"qkv.{kind}"].chunk(3)
        state |= {f"query.{kind}": query, f"key_value.{kind}": torch.cat((key, value))}
    state["table"] = state["table"][:, :, : table[0], : table[1]]
    return load(create("flatten", channels=16, heads=2, table=table).double(), state)


def test_focusing_sharpens_the_direction_and_keeps_the_length() -> None:
    focus, x = _Focus(16, 3.0).double(), random_tokens(2, 5, 16)
    positive = (x.relu() + 1e-6) / torch.nn.functional.softplus(torch.zeros(1, dtype=torch.float64))
    sharp = focus(x)
    # float64 rounding of a few operations.
    torch.testing.assert_close(sharp.norm(dim=-1), positive.norm(dim=-1), rtol=1e-10, atol=1e-10)
    assert torch.equal(sharp.argmax(-1), positive.argmax(-1))
    assert (sharp.amax(-1) / sharp.norm(dim=-1) > positive.amax(-1) / positive.norm(dim=-1)).all()
    expected = positive.norm(dim=-1, keepdim=True) * positive**3 / (positive**3).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sharp, expected, rtol=1e-10, atol=1e-10)


def test_focusing_what_no_channel_lets_through_does_not_underflow() -> None:
    """All channels negative leaves 1e-6 of each: its eighth power is no number in float32."""
    focus = _Focus(16, 8.0)
    x = torch.full((1, 1, 16), -1.0, requires_grad=True)
    sharp = focus(x)
    sharp.sum().backward()
    torch.testing.assert_close(sharp.norm(), torch.tensor(4e-6 / 0.6931), rtol=1e-3, atol=0)
    assert all(value.grad is not None and value.grad.isfinite().all() for value in (x, focus.scale))


def test_one_window_over_the_whole_grid_is_global() -> None:
    x = random_tokens(2, 20, 16)
    window = random_block("flatten_window", channels=16, heads=2, window=(4, 5))
    # float64 sums in another order.
    torch.testing.assert_close(window(x, grid=(4, 5)), globally(window, (4, 5))(x, grid=(4, 5)), rtol=1e-10, atol=1e-10)


def test_a_window_that_hangs_over_is_a_smaller_window() -> None:
    x = random_tokens(2, 35, 16)
    window = random_block("flatten_window", channels=16, heads=2, window=(2, 3))
    found, placed = window(x, grid=(5, 7)).unflatten(1, (5, 7)), x.unflatten(1, (5, 7))
    for row in range(0, 5, 2):
        for column in range(0, 7, 3):
            inside = placed[:, row : row + 2, column : column + 3]
            sides = tuple(inside.shape[1:3])
            expected = globally(window, sides)(inside.flatten(1, 2), grid=sides).unflatten(1, sides)
            # float64 sums in another order.
            torch.testing.assert_close(found[:, row : row + 2, column : column + 3], expected, rtol=1e-10, atol=1e-10)


def test_a_windows_map_lies_on_the_whole_grid() -> None:
    block = random_block("flatten_window", channels=16, heads=2, window=(2, 3))
    with record(block) as maps:
        block(random_tokens(2, 35, 16), grid=(5, 7))
    dense = maps[""].dense()
    assert dense.shape == (2, 2, 35, 35)
    rows, columns = torch.arange(35) // 7 // 2, torch.arange(35) % 7 // 3
    together = (rows[:, None] == rows) & (columns[:, None] == columns)
    assert ((dense > 0) == together).all()
    # 1e-6 is added to the mean before the division, which tells where a head's features are all small: focusing sees all heads at once.
    assert (dense.sum(-1) < 1 + 1e-10).all()
    assert dense.sum(-1).median() > 0.999


def test_the_map_and_the_convolution_of_the_values_make_the_answer() -> None:
    block, x = random_block("flatten", channels=16, heads=2, kernel=1), random_tokens(2, 20, 16)
    with record(block) as maps:
        answer = block(x, grid=(4, 5))
    value = maps[""].value
    local = value * block.local.weight[:, 0, 0, 0] + block.local.bias
    expected = block.out((maps[""].dense() @ value + local).transpose(1, 2).flatten(2))
    # float64 sums in another order.
    torch.testing.assert_close(answer, expected, rtol=1e-10, atol=1e-10)


def test_a_table_of_another_grid_is_interpolated() -> None:
    x = random_tokens(1, 48, 16)
    small = random_block("flatten", channels=16, heads=2, table=(3, 4))
    state = small.state_dict()
    state["table"] = resize(state["table"], (6, 8))
    exact = load(random_block("flatten", channels=16, heads=2, table=(6, 8)), state)
    assert torch.equal(small(x, grid=(6, 8)), exact(x, grid=(6, 8)))


def test_published_values_are_stretched_across_rows() -> None:
    """On a line that is no fault; in an image it is. The far end that patches do not fill is left out."""
    settings = {"channels": 16, "heads": 2, "reduction": 2, "table": 3}
    for rank, grid, same in ((1, (12,), True), (2, (4, 6), False)):
        sound = random_block("flatten", **settings, rank=rank)
        published = load(random_block("flatten_published", **settings, rank=rank), sound.state_dict())
        x = random_tokens(1, torch.Size(grid).numel(), 16)
        assert torch.allclose(sound(x, grid=grid), published(x, grid=grid)) == same
    with record(published) as maps:
        published(random_tokens(1, 35, 16), grid=(5, 7))
    assert maps[""].shape == (1, 2, 35, 6)


def test_volumes_of_one_slice_are_images() -> None:
    x = random_tokens(2, 35, 16)
    flat = random_block("flatten", channels=16, heads=2, table=(2, 3), reduction=2)
    deep = random_block("flatten", channels=16, heads=2, table=(1, 2, 3), reduction=(1, 2, 2), rank=3)
    # The same sums, perhaps in another order.
    torch.testing.assert_close(flat(x, grid=(5, 7)), give_depth(flat, deep)(x, grid=(1, 5, 7)), rtol=1e-10, atol=1e-10)

    flat = random_block("flatten_window", channels=16, heads=2, window=(2, 3))
    deep = random_block("flatten_window", channels=16, heads=2, window=(1, 2, 3), rank=3)
    torch.testing.assert_close(flat(x, grid=(5, 7)), give_depth(flat, deep)(x, grid=(1, 5, 7)), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"window must be positive, .* not 0"):
        create("flatten_window", channels=16, window=0)
    with pytest.raises(ValueError, match=r"table must be positive, .* not \(3,\)"):
        create("flatten", channels=16, table=(3,))
    with pytest.raises(ValueError, match=r"reduction must be positive, .* not 0"):
        create("flatten", channels=16, reduction=0)
    with pytest.raises(ValueError, match="kernel must be odd in each of 2 axes, not 4"):
        create("flatten", channels=16, kernel=4)
    for name in ("flatten", "flatten_window"):
        with pytest.raises(ValueError, match=r"12 tokens do not fill a grid of \(3, 5\)"):
            create(name, channels=16)(torch.zeros(1, 12, 16), grid=(3, 5))
        with pytest.raises(ValueError, match=r"grid must have 2 axes, not \(12,\)"):
            create(name, channels=16)(torch.zeros(1, 12, 16), grid=(12,))

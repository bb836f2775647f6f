"""InLine attention: weights sum to 1 by subtraction, and every sample is convolved with kernels of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shared.attention import create, record
from tests.shared.attention.random_blocks import load, random_block, random_tokens


@pytest.mark.parametrize("class_token", [False, True])
def test_the_map_and_the_convolution_of_the_values_make_the_answer(class_token: bool) -> None:
    block = random_block("inline", channels=16, heads=2, class_token=class_token)
    x = random_tokens(2, 20 + class_token, 16)
    with record(block) as maps:
        answer = block(x, grid=(4, 5))
    dense, value = maps[""].dense(), maps[""].value
    attended = (dense @ value).transpose(1, 2).flatten(2)
    values = value.transpose(1, 2).flatten(2)[:, int(class_token) :].mT.unflatten(-1, (4, 5))
    kernels = block.kernels(x.mean(1).unsqueeze(-1)).reshape(2, 16, 1, 3, 3)
    local = torch.stack([F.conv2d(sample, kernel, padding=1, groups=16) for sample, kernel in zip(values, kernels, strict=True)])
    attended[:, int(class_token) :] += local.flatten(2).mT
    # float64 sums in another order.
    torch.testing.assert_close(answer, block.out(attended), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dense.sum(-1), torch.ones(dense.shape[:-1], dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_queries_that_point_the_same_way_look_differently() -> None:
    """Division would take away the length of a query; subtraction keeps it. That is what the block is for."""
    block = random_block("inline", channels=16, heads=2, qkv_bias=False)
    x = random_tokens(1, 12, 16)
    x[:, 1] = 2 * x[:, 0]
    with record(block) as maps:
        block(x, grid=(3, 4))
    one, other = maps[""].dense(queries=[0, 1]).unbind(2)
    # Twice the query is twice the deviation from the mean of 1/12.
    torch.testing.assert_close(2 * (one - 1 / 12), other - 1 / 12, rtol=1e-10, atol=1e-10)


def test_volumes_of_one_slice_are_images() -> None:
    flat, deep = random_block("inline", channels=16, heads=2), random_block("inline", channels=16, heads=2, rank=3)
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        # 27 taps for each channel, of which the middle nine lie in the slice.
        state[name] = state[name].unflatten(0, (16, 27)) if name.startswith("kernels.2") else value
        if name.startswith("kernels.2"):
            state[name][:, 9:18] = value.unflatten(0, (16, 9))
            state[name] = state[name].flatten(0, 1)
    x = random_tokens(2, 20, 16)
    # The same sums, perhaps in another order.
    torch.testing.assert_close(load(deep, state)(x, grid=(1, 4, 5)), flat(x, grid=(4, 5)), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="rank must be 1, 2 or 3, not 4"):
        create("inline", channels=16, rank=4)
    with pytest.raises(ValueError, match=r"12 tokens do not fill a grid of \(3, 5\)"):
        create("inline", channels=16)(torch.zeros(1, 12, 16), grid=(3, 5))
    with pytest.raises(ValueError, match=r"14 tokens do not fill a grid of \(3, 5\)"):
        create("inline", channels=16, class_token=True)(torch.zeros(1, 15, 16), grid=(3, 5))
    with pytest.raises(ValueError, match=r"grid must have 2 axes, not \(12,\)"):
        create("inline", channels=16)(torch.zeros(1, 12, 16), grid=(12,))

"""Pooling keeps every place of every size, and means the same in one, two and three dimensions."""

import pytest
import torch

from shared.layers.pooling import average_pool, average_pool_to, max_pool

SIZES = {1: (7,), 2: (7, 5), 3: (7, 5, 3)}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_sizes_are_halved_and_rounded_up(rank: int) -> None:
    x = torch.randn(2, 3, *SIZES[rank])
    half = tuple(-(-extent // 2) for extent in SIZES[rank])
    for pooled in (max_pool(x, 2), max_pool(x, 3, stride=2, padding=1), average_pool(x, 2)):
        assert pooled.shape == (2, 3, *half)


def test_a_window_that_reaches_over_the_end_pools_what_there_is() -> None:
    x = torch.tensor([[[1.0, 3.0, -4.0, -2.0, -5.0]]])
    assert max_pool(x, 2).tolist() == [[[3.0, -2.0, -5.0]]]
    assert average_pool(x, 2).tolist() == [[[2.0, -3.0, -5.0]]]
    assert max_pool(x, 3, stride=2, padding=1).tolist() == [[[3.0, 3.0, -2.0]]]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pooling_to_a_size_keeps_a_constant(rank: int) -> None:
    assert torch.equal(average_pool_to(torch.ones(2, 3, *SIZES[rank]), (2,) * rank), torch.ones(2, 3, *(2,) * rank))

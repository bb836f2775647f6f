"""Shifting moves some channels by one, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.attention.shift import Shift, ShiftBlock

SIZES = {1: (9,), 2: (5, 7), 3: (3, 5, 4)}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def as_convolution(x: Tensor, group: int) -> Tensor:
    """Each channel's window of 3 holds a single 1: in the middle, or beside it."""
    rank = x.ndim - 2
    weight = torch.zeros(x.shape[1], 1, *[3] * rank, dtype=x.dtype)
    for channel in range(x.shape[1]):
        place = [1] * rank
        direction = channel // group
        if direction < 2 * rank:
            # The last axis comes first; what moves towards the beginning comes from the end.
            place[rank - 1 - direction // 2] = 0 if direction % 2 else 2
        weight[(channel, 0, *place)] = 1.0
    return CONV[rank](x, weight, padding=1, groups=x.shape[1])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_it_is_a_depthwise_convolution_that_costs_nothing(rank: int, group: int) -> None:
    x = torch.randn(2, 13, *SIZES[rank])
    assert torch.equal(Shift(channels=13, division=13 // group)(x), as_convolution(x, group))


def test_in_an_image_the_groups_go_left_right_up_and_down() -> None:
    x = torch.zeros(1, 6, 3, 3)
    x[:, :, 1, 1] = 1.0
    places = Shift(channels=6, division=6)(x)[0].nonzero()[:, 1:].tolist()
    assert places == [[1, 0], [1, 2], [0, 1], [2, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_along_an_axis_of_one_everything_that_moves_is_lost(rank: int) -> None:
    x = torch.ones(1, 12, *[1] * rank)
    assert Shift(channels=12)(x).sum() == 12 - 2 * rank


def test_with_its_perceptron_at_zero_a_block_only_shifts() -> None:
    torch.manual_seed(0)
    made, x = ShiftBlock(channels=12), torch.randn(2, 12, 5, 7)
    torch.nn.init.zeros_(made.contract.weight)
    torch.nn.init.zeros_(made.contract.bias)
    assert torch.equal(made(x), made.shift(x))


@pytest.mark.parametrize("division", [0, 13])
def test_a_group_must_hold_a_channel(division: int) -> None:
    with pytest.raises(ValueError, match=f"division={division} must be between 1 and channels=12"):
        Shift(channels=12, division=division)


def test_too_few_channels_for_all_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="6 directions of 4 channels each are more than the 16 channels"):
        Shift(channels=16, division=4)(torch.zeros(1, 16, 3, 3, 3))
    with pytest.raises(ValueError, match="expansion must be positive, not 0"):
        ShiftBlock(channels=12, expansion=0)

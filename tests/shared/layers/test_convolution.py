"""Convolutions and resizing mean the same in one, two and three dimensions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.layers import ConvNorm, conv, interpolation_mode, resize

SIZES = {1: (9,), 2: (9, 7), 3: (9, 7, 5)}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 2), (7, 3)])
def test_a_convolution_keeps_the_size(rank: int, kernel: int, dilation: int) -> None:
    x = torch.rand(2, 3, *SIZES[rank])
    assert conv(3, 4, kernel=kernel, dilation=dilation, rank=rank)(x).shape == (2, 4, *SIZES[rank])


def test_a_convolution_with_a_side_for_each_axis_keeps_the_size() -> None:
    assert conv(3, 4, kernel=(1, 7), dilation=2)(torch.rand(1, 3, 9, 7)).shape == (1, 4, 9, 7)


def test_a_stride_of_two_halves_the_size() -> None:
    assert conv(3, 4, kernel=3, stride=2)(torch.rand(1, 3, 8, 6)).shape == (1, 4, 4, 3)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_groups_keep_channels_apart(rank: int) -> None:
    x = torch.rand(1, 4, *SIZES[rank])
    depthwise = conv(4, 4, kernel=3, groups=4, rank=rank)
    changed = (depthwise(x) != depthwise(torch.cat([x[:, :3], 1 + x[:, 3:]], dim=1))).flatten(2).any(-1)
    assert changed.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize(("kernel", "rank"), [(2, 2), ((3, 4), 2), ((3, 3), 3), (3, 4), (3, 0)])
def test_what_cannot_keep_the_size_is_refused(kernel: int | tuple[int, ...], rank: int) -> None:
    with pytest.raises(ValueError, match=r"kernel must be odd|rank must be"):
        conv(3, 4, kernel=kernel, rank=rank)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_norm_is_a_convolution_without_bias_then_batch_norm_and_no_activation(rank: int) -> None:
    block = ConvNorm(3, 4, kernel=3, rank=rank).eval()
    assert set(block.state_dict()) == {
        "conv.weight",
        *(f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }
    nn.init.normal_(block.norm.bias)
    x = torch.randn(2, 3, *SIZES[rank])
    assert torch.equal(block(x), block.norm(block.conv(x)))
    assert (block(x) < 0).any()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_resizing_is_linear(rank: int) -> None:
    """A ramp stays a ramp between the first and the last centre."""
    ramp = torch.arange(4.0).reshape(1, 1, 4, *[1] * (rank - 1)).expand(1, 1, *[4] * rank)
    larger = resize(ramp, [8] * rank)[0, 0].flatten(1)[:, 0] if rank > 1 else resize(ramp, [8])[0, 0]
    assert torch.allclose(larger, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert interpolation_mode(ramp) == {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]


def test_resizing_says_which_corners_it_aligns() -> None:
    x = torch.rand(1, 2, 4, 5)
    for aligned in (False, True):
        expected = F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=aligned)
        assert torch.equal(resize(x, (7, 9), align_corners=aligned), expected)


def test_resizing_to_the_same_size_does_nothing() -> None:
    x = torch.rand(1, 2, 4, 5)
    assert resize(x, x.shape[2:]) is x

"""What a discriminator looks at, at the size of a mask."""

import pytest
import torch
import torch.nn.functional as F

from shared.attention import record
from shared.attention.discriminator import DiscriminatorAttention

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@pytest.mark.parametrize(
    ("size", "coarser"), [((17,), (4,)), ((16, 16), (4, 4)), ((9, 21), (5, 3)), ((6, 7, 8), (2, 4, 3)), ((4, 4), (9, 9))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_mean_feature_is_brought_to_any_size(size: tuple[int, ...], coarser: tuple[int, ...], channels: int) -> None:
    torch.manual_seed(0)
    mask, features = torch.randn(2, channels, *size), torch.randn(2, 12, *coarser)
    made = DiscriminatorAttention(channels=channels)
    with record(made) as maps:
        answer = made(mask, features)
    expected = F.interpolate(features, size=size, mode=MODES[len(size)]).mean(1, keepdim=True)
    # The mean of what is interpolated against what is interpolated of the mean: float32 rounding.
    assert torch.allclose(maps[""].dense(), expected, rtol=0, atol=1e-6)
    assert torch.equal(answer, mask * maps[""].dense())


def test_it_is_not_squashed() -> None:
    mask = torch.rand(1, 1, 8, 6)
    assert torch.equal(DiscriminatorAttention(channels=1)(mask, torch.full((1, 4, 2, 2), -7.0)), -7 * mask)


def test_features_without_their_gradient_leave_the_discriminator_alone() -> None:
    mask, features = torch.rand(1, 1, 8, 6, requires_grad=True), torch.rand(1, 4, 2, 2, requires_grad=True)
    DiscriminatorAttention(channels=1)(mask, features.detach()).sum().backward()
    assert mask.grad is not None
    assert features.grad is None


def test_channels_must_be_positive() -> None:
    with pytest.raises(ValueError, match="channels must be positive, not 0"):
        DiscriminatorAttention(channels=0)

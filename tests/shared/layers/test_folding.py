"""Convolutions and the norms after them can be made one, and change no answer."""

import pytest
import torch
from torch import nn

from shared.layers import ConvNorm, conv
from shared.layers.folding import fold_bias, merge_norm


def published() -> nn.Sequential:
    """As much published code has it: with a bias before the norm."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).double()
    for _ in range(3):
        made(torch.randn(4, 3, 6, 6).double())
    nn.init.normal_(made[1].weight)
    nn.init.normal_(made[1].bias)
    return made


@pytest.mark.parametrize("training", [False, True])
def test_a_bias_before_a_norm_is_not_missed(training: bool) -> None:
    theirs, ours, x = published(), ConvNorm(3, 4, kernel=3).double(), torch.randn(4, 3, 6, 6).double()
    state = fold_bias(theirs.state_dict(), conv="0", norm="1")
    ours.load_state_dict({name.replace("0.", "conv.").replace("1.", "norm."): value for name, value in state.items()})
    torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    # After a step of training too.
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_folding_leaves_the_state_it_was_given_alone() -> None:
    state = published().state_dict()
    mean = state["1.running_mean"].clone()
    fold_bias(state, conv="0", norm="1")
    assert torch.equal(state["1.running_mean"], mean)
    assert "0.bias" in state


def test_a_merged_norm_is_in_the_convolution() -> None:
    layer, x = ConvNorm(3, 4, kernel=3).double(), torch.randn(4, 3, 6, 6).double()
    layer(x)
    one = conv(3, 4, kernel=3).double()
    weight, bias = merge_norm(layer.conv.weight, layer.norm)
    one.load_state_dict({"weight": weight, "bias": bias})
    torch.testing.assert_close(one(x), layer.eval()(x))

"""Large kernels: how far the gate sees, and what a block does with it."""

import pytest
import torch
from torch import Tensor, nn

from shared.attention import cost_of, create, record
from shared.attention.large_kernel import LargeKernelAttention, VisualAttentionBlock
from tests.shared.attention.depth import give_depth


def gate_of(made: nn.Module, x: Tensor) -> Tensor:
    with record(made) as maps:
        made(x)
    return next(iter(maps.values())).dense()


@pytest.mark.parametrize(("kernel", "dilation", "width"), [(21, 3, 23), (7, 2, None), (9, 3, 11), (5, 1, 5), (35, 5, 39)])
def test_the_gate_sees_at_least_the_kernel(kernel: int, dilation: int, width: int | None) -> None:
    """A window of 2 r - 1 and one of K / r, r apart, together are r K / r + r - 1 wide: a little over K."""
    torch.manual_seed(0)
    if width is None:
        with pytest.raises(ValueError, match="kernel=7 with dilation=2 makes a dilated window of side 4, which must be odd"):
            LargeKernelAttention(channels=2, kernel=kernel, dilation=dilation)
        return
    made, x = LargeKernelAttention(channels=2, kernel=kernel, dilation=dilation, rank=1).double(), torch.randn(1, 2, 61).double()
    other = x.clone()
    other[:, :, 30] += 1.0
    changed = (gate_of(made, x) != gate_of(made, other)).any(1)[0].nonzero()[:, 0]
    assert changed.tolist() == list(range(30 - width // 2, 31 + width // 2))
    assert width >= kernel


def test_the_gate_is_linear_and_may_be_negative() -> None:
    torch.manual_seed(0)
    made, x = create("lka", channels=4).double(), torch.randn(2, 4, 8, 9).double()
    gate, none = gate_of(made, x), gate_of(made, torch.zeros_like(x))
    assert (gate < 0).any()
    # float64 rounding of sums in another order.
    assert torch.allclose(gate_of(made, 3 * x) - none, 3 * (gate - none), rtol=0, atol=1e-13)
    assert torch.equal(made(x), x * gate)


@pytest.mark.parametrize("name", ["lka", "lka_projected", "van"])
def test_one_slice_is_an_image(name: str) -> None:
    torch.manual_seed(0)
    flat, x = create(name, channels=4).double().eval(), torch.randn(2, 4, 8, 9).double()
    deep = give_depth(flat, create(name, channels=4, rank=3).double())
    assert torch.allclose(deep(x.unsqueeze(2)).squeeze(2), flat(x), rtol=0, atol=1e-13)


def test_a_new_block_changes_little_and_without_its_scales_nothing() -> None:
    torch.manual_seed(0)
    made, x = VisualAttentionBlock(channels=8).double(), torch.randn(2, 8, 9, 9).double()
    # Both branches are scaled by 0.01; what they scale is normalised, so that it is of the order of 1.
    assert (made(x) - x).std() < 0.1
    nn.init.zeros_(made.attention_scale)
    nn.init.zeros_(made.expand_scale)
    assert torch.equal(made(x), x)


def test_a_new_block_has_the_published_initial_weights() -> None:
    """Of variance 2 / (outputs times window / groups), without biases."""
    torch.manual_seed(0)
    made = VisualAttentionBlock(channels=64)
    for layer, fan in ((made.attention.gate.far, 49), (made.attention.project, 64), (made.expand, 256), (made.contract, 64)):
        # Of over 3000 normal numbers each, the standard deviation is known to 1.3 per cent; four times that.
        assert layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
        assert not layer.bias.any()


def test_the_published_gate_has_so_many_weights() -> None:
    # Windows of 25 and 49, a bias for each of three layers, and the mixing of channels.
    assert cost_of("lka", (8, 8), channels=32).parameters == 32**2 + 77 * 32
    assert cost_of("lka", (4, 8, 8), channels=32, rank=3).macs == (32**2 + (5**3 + 7**3) * 32) * 256


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [("lka", {"dilation": 0}, "dilation=0"), ("lka_projected", {"kernel": 0}, "kernel=0"), ("van", {"expansion": 0}, "not 0")],
)
def test_wrong_settings_are_refused(name: str, wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        create(name, channels=4, **wrong)

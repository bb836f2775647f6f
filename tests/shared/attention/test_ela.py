"""Efficient local attention looks along one axis at a time."""

import pytest
import torch
from torch import Tensor

from shared.attention import cost_of, record
from shared.attention.ela import EfficientLocalAttention

SIZES = {1: (9,), 2: (7, 9), 3: (3, 5, 4)}


def block(**changes: int) -> EfficientLocalAttention:
    torch.manual_seed(0)
    made = EfficientLocalAttention(**{"channels": 8, "kernel": 3, "norm_groups": 4, **changes}).double()
    torch.nn.init.normal_(made.norm.weight)
    torch.nn.init.normal_(made.norm.bias)
    return made


def gate_of(made: EfficientLocalAttention, x: Tensor) -> Tensor:
    with record(made) as maps:
        made(x)
    return maps[""].dense()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_gate_is_a_product_of_one_factor_for_each_axis(rank: int) -> None:
    made, x = block(), torch.randn(2, 8, *SIZES[rank]).double()
    gate = gate_of(made, x)
    assert ((gate > 0) & (gate < 1)).all()
    # Of an outer product, every two entries along an axis keep their ratio wherever the other axes are: float64 rounding alone.
    for axis in range(2, x.ndim):
        ratio = gate / gate.narrow(axis, 0, 1)
        for other in range(2, x.ndim):
            if other != axis:
                assert torch.allclose(ratio, ratio.narrow(other, 0, 1).expand_as(ratio), rtol=1e-12, atol=0)


@pytest.mark.parametrize("groups", [8, 2, 1])
def test_it_is_the_published_formula_in_two_dimensions(groups: int) -> None:
    made, x = block(groups=groups), torch.randn(2, 8, 7, 9).double()
    rows, columns = (torch.sigmoid(made.norm(made.score(strip))) for strip in (x.mean(3), x.mean(2)))
    # Only the order of two products differs.
    assert torch.allclose(made(x), x * rows[..., None] * columns[..., None, :], rtol=0, atol=1e-14)


def test_all_axes_share_their_weights() -> None:
    made, x = block(), torch.randn(2, 8, 3, 5, 4).double()
    turned = made(x.permute(0, 1, 4, 2, 3))
    assert torch.allclose(turned, made(x).permute(0, 1, 4, 2, 3), rtol=0, atol=1e-14)


def test_the_gate_does_not_depend_on_the_contrast() -> None:
    made, x = block(), torch.randn(1, 8, 7, 9).double()
    # Strips are normalised; what remains is the 1e-5 beside their variance.
    assert torch.allclose(gate_of(made, 100 * x), gate_of(made, 1000 * x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kernel", "groups", "norm_groups"), [(5, None, 32), (7, None, 16), (5, 8, 16), (7, 8, 16)])
def test_the_four_published_sizes_have_the_published_numbers_of_weights(kernel: int, groups: int | None, norm_groups: int) -> None:
    expected = 64 * kernel * (64 // (groups or 64)) + 2 * 64
    cost = cost_of("ela", (8, 8), channels=64, kernel=kernel, groups=groups, norm_groups=norm_groups)
    assert cost.parameters == expected


@pytest.mark.parametrize(
    ("wrong", "said"), [({"norm_groups": 3}, "norm_groups=3"), ({"groups": 5}, "groups=5"), ({"kernel": 4}, "kernel must be odd")]
)
def test_what_does_not_divide_is_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EfficientLocalAttention(**{"channels": 16, **wrong})

"""High-order attention: products of projections, position by position."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.attention import cost_of, record
from shared.attention.high_order import HighOrderAttention

SIZES = {1: (9,), 2: (5, 7), 3: (3, 5, 4)}


def block(order: int, *, rank: int = 2) -> HighOrderAttention:
    torch.manual_seed(0)
    return HighOrderAttention(channels=8, order=order, inner_channels=3, rank=rank).double()


def gate_of(made: HighOrderAttention, x: Tensor) -> Tensor:
    with record(made) as maps:
        made(x)
    return maps[""].dense()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_is_the_published_formula_in_every_rank(rank: int, order: int) -> None:
    """The factors of each order are separate 1x1 convolutions there: here they are matrices on the channels of one position."""
    made, x = block(order, rank=rank), torch.randn(2, 8, *SIZES[rank]).double()
    flat = x.flatten(2).mT
    factors = made.factors.weight.flatten(1).split(3)
    total, used = torch.zeros_like(flat), 0
    for count in range(1, order + 1):
        product = torch.ones(1, dtype=torch.float64)
        for weight in factors[used : used + count]:
            product = product * (flat @ weight.mT)
        used += count
        total = total + torch.sigmoid(F.relu(product) @ made.out[count - 1].weight.flatten(1).mT)
    assert used == len(factors)
    expected = flat * total / order
    # float64 rounding of dot products over eight channels.
    assert torch.allclose(made(x).flatten(2).mT, expected, rtol=0, atol=1e-13)


def test_positions_do_not_see_each_other() -> None:
    made, x = block(3), torch.randn(1, 8, 5, 7).double()
    order = torch.randperm(35)
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    assert torch.allclose(made(shuffled).flatten(2), made(x).flatten(2)[..., order], rtol=0, atol=1e-14)


def test_an_even_product_does_not_see_the_sign() -> None:
    made, x = block(2), torch.randn(1, 8, 5, 7).double()
    with torch.no_grad():
        made.out[0].weight.zero_()
    assert torch.equal(gate_of(made, x), gate_of(made, -x))
    assert not torch.allclose(gate_of(block(1), x), gate_of(block(1), -x))


def test_the_default_width_is_the_published_one() -> None:
    """(C / 4) C for each factor and each answer."""
    assert cost_of("high_order", (4, 4), channels=32, order=3).parameters == 32 // 8 * 2 * 32 * (6 + 3)


@pytest.mark.parametrize(("wrong", "said"), [({"order": 0}, "order=0"), ({"channels": 7}, r"inner_channels=0 \(of channels=7\)")])
def test_wrong_settings_are_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HighOrderAttention(**{"channels": 8, **wrong})

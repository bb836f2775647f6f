"""Triplet attention: every axis, channels included, is looked along by a branch of its own."""

import pytest
import torch
from torch import nn

from shared.attention import cost_of, record
from shared.attention.triplet import TripletAttention

SIZES = {1: (9,), 2: (7, 9), 3: (3, 5, 4)}


def block(rank: int = 2, *, spatial: bool = True, alive: int | None = None) -> TripletAttention:
    """With ``alive``, all other branches answer the same everywhere."""
    torch.manual_seed(0)
    made = TripletAttention(channels=6, kernel=3, spatial=spatial, rank=rank).double().eval()
    for number, (score, normalise) in enumerate(zip(made.scores, made.norms, strict=True)):
        nn.init.normal_(normalise.bias)
        if alive is not None and number != alive:
            nn.init.zeros_(score.weight)
    return made


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("spatial", [True, False])
def test_there_is_a_branch_for_each_axis(rank: int, spatial: bool) -> None:
    made = block(rank, spatial=spatial)
    assert len(made.scores) == rank + spatial
    x = torch.randn(2, 6, *SIZES[rank]).double()
    with record(made) as maps:
        answer = made(x)
    gate = maps[""].dense()
    # With one axis and no branch over channels, there is one value for each channel.
    assert gate.expand_as(x).shape == x.shape
    assert ((gate > 0) & (gate < 1)).all()
    assert torch.equal(answer, x * gate)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_branch_does_not_see_the_order_along_its_own_axis_and_sees_it_along_the_others(rank: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(1, 6, *SIZES[rank]).double()
    for number, own in enumerate((*range(2, x.ndim), 1)):
        made = block(rank, alive=number)
        for axis in range(1, x.ndim):
            order = torch.roll(torch.arange(x.shape[axis]), 1)
            unmoved = torch.allclose(made(x.index_select(axis, order)), made(x).index_select(axis, order), rtol=0, atol=1e-12)
            assert unmoved is (axis == own)


def test_it_is_the_published_formula_in_two_dimensions() -> None:
    """Every branch with its own permutation of the axes, and back."""
    made, x = block(), torch.randn(2, 6, 7, 9).double()
    total = torch.zeros_like(x)
    for order, score, normalise in zip([(0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3)], made.scores, made.norms, strict=True):
        turned = x.permute(order)
        pooled = torch.stack([turned.max(1).values, turned.mean(1)], dim=1)
        total += (turned * torch.sigmoid(normalise(score(pooled)))).permute(order)
    # Averages of products against a product with an average: float64 rounding.
    assert torch.allclose(made(x), total / 3, rtol=0, atol=1e-14)


def test_the_published_module_has_300_weights_and_forgets_slowly() -> None:
    assert cost_of("triplet", (8, 8), channels=64).parameters == 300
    assert {layer.momentum for layer in TripletAttention(channels=64).norms} == {0.01}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"channels": 0}, "channels must be positive, not 0"), ({"kernel": 4}, "kernel must be odd"), ({"rank": 4}, "rank must be 1, 2 or 3")],
)
def test_wrong_settings_are_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TripletAttention(**{"channels": 6, **wrong})

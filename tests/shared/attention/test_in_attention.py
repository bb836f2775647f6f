"""Attention in attention: two branches, and a weight for each."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attention import record
from shared.attention.in_attention import AttentionInAttention
from tests.shared.attention.depth import give_depth


def block(**changes: float) -> AttentionInAttention:
    torch.manual_seed(0)
    return AttentionInAttention(**{"channels": 8, **changes}).double()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_what_is_recorded_makes_the_answer(rank: int) -> None:
    made, x = block(rank=rank), torch.randn(2, 8, *[5] * rank).double()
    with record(made) as maps:
        answer = made(x)
    gate, weights = maps["gate"].dense(), maps["branches"].dense()
    assert ((gate > 0) & (gate < 1)).all()
    assert torch.allclose(weights.sum(1), torch.ones(1).double())
    features = F.leaky_relu(made.first(x), 0.2)
    mixed = weights[:, :1] * made.attended(gate * made.value(features)) + weights[:, 1:] * made.plain(features)
    assert torch.allclose(answer, x + made.last(F.leaky_relu(mixed, 0.2)), rtol=0, atol=1e-14)


def test_the_temperature_decides_how_much_the_weights_differ() -> None:
    torch.manual_seed(1)
    x = 10 * torch.randn(2, 8, 5, 5).double()
    apart = []
    for temperature in (0.1, 30.0, 3000.0):
        made = block(temperature=temperature)
        with record(made) as maps:
            made(x)
        apart.append((maps["branches"].dense()[:, 0] - 0.5).abs().min().item())
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 1e-3


def test_the_weights_do_not_depend_on_where_things_are() -> None:
    """Channel means of what a 1x1 convolution answers."""
    made, x = block(), torch.randn(2, 8, 5, 7).double()
    with record(made) as maps:
        made(x)
        made(x.flip(2).mT)
    assert torch.allclose(maps["branches"].dense(), maps["branches#2"].dense(), rtol=0, atol=1e-15)


def test_without_its_last_layer_it_changes_nothing() -> None:
    made, x = block(), torch.randn(2, 8, 5, 7).double()
    nn.init.zeros_(made.last.weight)
    assert torch.equal(made(x), x)


def test_one_slice_is_an_image() -> None:
    flat, x = block(), torch.randn(2, 8, 5, 7).double()
    deep = give_depth(flat, block(rank=3))
    assert torch.allclose(deep(x.unsqueeze(2)).squeeze(2), flat(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"reduction": 9}, "reduction=9 must be between 1 and channels=8"), ({"temperature": 0.0}, "temperature must be positive, not 0.0")],
)
def test_wrong_settings_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        block(**wrong)

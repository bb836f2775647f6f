"""Focal modulation gathers from near to far, and shows what it gathered."""

import pytest
import torch
from torch import Tensor, nn

from shared.attention import record
from shared.attention.focal import FocalModulation
from tests.shared.attention.depth import give_depth


def block(**changes: int) -> FocalModulation:
    torch.manual_seed(0)
    return FocalModulation(**{"channels": 4, "levels": 2, **changes}).double()


def only(made: FocalModulation, level: int) -> FocalModulation:
    """Opens the gate of one level everywhere, and shuts the others."""
    levels = len(made.context) + 1
    with torch.no_grad():
        made.project.weight[-levels:] = 0.0
        made.project.bias[-levels:] = torch.eye(levels)[level].double()
    return made


def modulator_of(made: FocalModulation, x: Tensor) -> Tensor:
    with record(made) as maps:
        made(x)
    return maps["modulator"].dense()


@pytest.mark.parametrize(("level", "reach"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_level_reaches_as_far_as_its_convolutions(rank: int, level: int, reach: int) -> None:
    """Kernels of 3 and 5, one after the other: 1 and 1 + 2 positions to each side."""
    made, x = only(block(rank=rank), level), torch.randn(1, 4, *[9] * rank).double()
    other = x.clone()
    middle = (0, slice(None), *[4] * rank)
    other[middle] += 1.0
    changed = (modulator_of(made, x) != modulator_of(made, other)).any(1)[0]
    distance = torch.stack(torch.meshgrid(*[(torch.arange(9) - 4).abs()] * rank, indexing="ij")).amax(0)
    assert torch.equal(changed, distance <= reach)


def test_the_last_level_is_the_same_everywhere_and_sees_everything() -> None:
    made, x = only(block(), 2), torch.randn(1, 4, 9, 9).double()
    found = modulator_of(made, x)
    assert torch.allclose(found, found[..., :1, :1].expand_as(found), rtol=0, atol=1e-15)
    other = x.clone()
    other[0, :, 0, 0] += 1.0
    assert not torch.allclose(found, modulator_of(made, other))


@pytest.mark.parametrize("normalise", [False, True])
def test_the_modulator_that_is_recorded_makes_the_answer(normalise: bool) -> None:
    made, x = block(normalise=normalise), torch.randn(2, 4, 5, 7).double()
    with record(made) as maps:
        answer = made(x)
    query = made.project(x)[:, :4]
    modulated = made.norm((query * maps["modulator"].dense()).movedim(1, -1)).movedim(-1, 1)
    assert torch.equal(answer, made.out(modulated))
    assert torch.equal(maps["gates"].dense(), made.project(x)[:, 8:])
    assert maps["gates"].shape == (2, 3, 5, 7)


def test_averaging_divides_by_the_number_of_levels() -> None:
    total, mean, x = block(), block(average=True), torch.randn(1, 4, 5, 7).double()
    for made in (total, mean):
        nn.init.zeros_(made.mix.bias)
    # Divided before a linear layer and after it.
    assert torch.allclose(modulator_of(mean, x), modulator_of(total, x) / 3, rtol=0, atol=1e-15)


def test_one_slice_is_an_image() -> None:
    flat, x = block(), torch.randn(2, 4, 5, 7).double()
    deep = give_depth(flat, block(rank=3))
    assert torch.allclose(deep(x.unsqueeze(2)).squeeze(2), flat(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"levels": 0}, "levels=0"), ({"kernel": 2}, "kernel must be odd"), ({"growth": 1}, "kernel must be odd .* not 4")]
)
def test_wrong_settings_are_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FocalModulation(**{"channels": 4, **wrong})

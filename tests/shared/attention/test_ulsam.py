"""Subspaces have a map each, and keep it alive."""

import pytest
import torch
from torch import Tensor, nn

from shared.attention import create, record
from tests.shared.attention.depth import give_depth


def block(name: str = "ulsam", *, rank: int = 2, subspaces: int = 4) -> nn.Module:
    torch.manual_seed(0)
    made = create(name, channels=8, subspaces=subspaces, rank=rank).double().eval()
    for layer in (made.scale_norm, made.score_norm):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return made


def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 8, 5, 7).double()


def maps_of(made: nn.Module, x: Tensor) -> Tensor:
    with record(made) as maps:
        made(x)
    return maps[""].dense()


@pytest.mark.parametrize("name", ["ulsam", "ulsam_published"])
def test_each_subspace_has_a_map_that_sums_to_one_and_is_added_to_one(name: str) -> None:
    made, x = block(name), image()
    weights = maps_of(made, x)
    assert weights.shape == (2, 4, 5, 7)
    assert torch.allclose(weights.sum((2, 3)), torch.ones(2, 4).double())
    assert torch.allclose(made(x), x * (1 + weights.repeat_interleave(2, dim=1)), rtol=0, atol=1e-14)


def test_subspaces_do_not_see_each_other() -> None:
    made, x = block(), torch.randn(1, 8, 5, 7).double()
    other = torch.cat([x[:, :6], torch.randn(1, 2, 5, 7).double()], dim=1)
    assert torch.equal(made(x)[:, :6], made(other)[:, :6])
    assert not torch.equal(maps_of(made, x)[:, 3], maps_of(made, other)[:, 3])


def test_a_published_map_dies_where_all_logits_are_negative_and_the_default_lives() -> None:
    x = image()
    for name, alive in (("ulsam_published", False), ("ulsam", True)):
        made = block(name)
        nn.init.constant_(made.score_norm.bias, -100.0)
        weights = maps_of(made, x)
        assert torch.equal(weights, weights.new_full((), 1 / 35).expand_as(weights)) is not alive
        made(x).square().sum().backward()
        assert bool(made.score.weight.grad.any()) is alive


def test_where_no_logit_is_negative_the_two_are_one() -> None:
    x = image()
    sound, published = block(), block("ulsam_published")
    for made in (sound, published):
        nn.init.constant_(made.score_norm.bias, 100.0)
    assert torch.equal(sound(x), published(x))


def test_turning_and_mirroring_the_map_turns_and_mirrors_the_answer() -> None:
    made, x = block(), image()
    for change in (lambda y: y.flip(2), lambda y: y.flip(3), lambda y: y.mT):
        # Sums of the softmax in another order: float64 rounding.
        assert torch.allclose(made(change(x)), change(made(x)), rtol=0, atol=1e-13)


def test_one_slice_is_an_image() -> None:
    flat, x = block(), image()
    deep = give_depth(flat, block(rank=3))
    assert torch.allclose(deep(x.unsqueeze(2)).squeeze(2), flat(x), rtol=0, atol=1e-14)


def test_the_published_form_has_the_published_momentum_and_count_of_weights() -> None:
    made = create("ulsam_published", channels=24, subspaces=2)
    assert {layer.momentum for layer in made.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.9}
    assert sum(weight.numel() for weight in made.parameters()) == 5 * 24 + 3 * 2


def test_subspaces_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="subspaces=3 must divide channels=16"):
        create("ulsam", channels=16, subspaces=3)
    with pytest.raises(ValueError, match="rectify_logits is True in this form"):
        create("ulsam_published", channels=16, rectify_logits=False)

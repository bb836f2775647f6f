"""Reverse attention looks where the coarse map saw nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import ReverseAttention, record

SIZES = {1: (8,), 2: (8, 6), 3: (8, 6, 4)}
SEVERAL = [1, 2, 3]


def block(rank: int = 2, **changes: int) -> ReverseAttention:
    """Small, with statistics that are not those of a fresh norm."""
    torch.manual_seed(0)
    made = ReverseAttention(**{"channels": 6, "inner_channels": 4, "rank": rank, **changes}).double()
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made.eval()


def inputs(rank: int = 2) -> tuple[Tensor, Tensor]:
    """Features, and a coarse map at half their size."""
    torch.manual_seed(1)
    return torch.randn(2, 6, *SIZES[rank]).double(), 3 * torch.randn(2, 1, *(size // 2 for size in SIZES[rank])).double()


def recorded(attention: ReverseAttention, x: Tensor, coarse: Tensor) -> Tensor:
    with record(attention) as maps:
        attention(x, coarse)
    return maps[""].dense()


def published(attention: ReverseAttention, x: Tensor, coarse: Tensor) -> Tensor:
    """Equations 2 and 3 as they stand: the features themselves are weighted, before any convolution."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    coarse = F.interpolate(coarse, size=x.shape[2:], mode=mode, align_corners=False)
    weighted = (1 - torch.sigmoid(coarse)).expand_as(x) * x
    features = attention.reduce_norm(attention.reduce(weighted))
    for layer in attention.refine:
        features = F.relu(layer(features))
    return attention.score(features) + coarse


@pytest.mark.parametrize("rank", SEVERAL)
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_published_formula(rank: int, training: bool) -> None:
    attention = block(rank).train(training)
    x, coarse = inputs(rank)
    # The two differ in the order of float64 operations alone.
    assert torch.allclose(attention(x, coarse), published(attention, x, coarse), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", SEVERAL)
def test_the_map_is_high_where_the_coarse_map_sees_nothing(rank: int) -> None:
    x, coarse = inputs(rank)
    attention = recorded(block(rank), x, coarse)
    assert attention.shape == (2, 1, *SIZES[rank])
    assert ((attention > 0) & (attention < 1)).all()
    found, missed = torch.full_like(coarse, 8), torch.full_like(coarse, -8)
    assert (recorded(block(rank), x, found) < 0.001).all()
    assert (recorded(block(rank), x, missed) > 0.999).all()


def test_where_the_coarse_map_is_sure_the_features_do_not_matter() -> None:
    x, coarse = inputs()
    sure = torch.full_like(coarse, 60.0)  # 1 - sigmoid(60) is 1e-26
    assert torch.allclose(block()(x, sure), block()(-5 * x, sure), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", SEVERAL)
def test_gradients_are_right(rank: int) -> None:
    attention = block(rank)
    x, coarse = (tensor[:1].requires_grad_() for tensor in inputs(rank))
    assert torch.autograd.gradcheck(attention, (x, coarse), fast_mode=True)
    attention(x, coarse).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in attention.parameters())


def test_it_can_be_exported() -> None:
    attention, arguments = block(), inputs()
    exported = torch.export.export(attention, arguments).module()
    assert torch.allclose(exported(*arguments), attention(*arguments), rtol=0, atol=1e-12)


def test_the_coarsest_branch_of_the_paper() -> None:
    attention = block(inner_channels=8, depth=3)
    assert len(attention.refine) == 3
    large = ReverseAttention(channels=6, inner_channels=8, depth=3, kernel=5, out_kernel=1)
    assert large.score.conv.kernel_size == (1, 1)
    assert large.refine[0].conv.kernel_size == (5, 5)


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"inner_channels": 0}, {"depth": 0}, {"kernel": 4}, {"rank": 4}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"positive|odd|rank"):
        ReverseAttention(**{"channels": 6, **wrong})

"""Tokens that choose how far to average, and queries that are made to differ."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import create, record
from shared.attention.pooling import TokenAveragePooling, diversification_loss

SIZES = {1: (9,), 2: (5, 7), 3: (3, 5, 4)}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def block(rank: int = 2, *, scales: int = 4) -> TokenAveragePooling:
    torch.manual_seed(0)
    return TokenAveragePooling(channels=3, scales=scales, rank=rank).double().eval()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_it_weighs_the_position_and_means_of_dilated_windows(rank: int) -> None:
    """Some of the windows are wider than the map."""
    made, x = block(rank), torch.randn(2, 3, *SIZES[rank]).double()
    with record(made) as maps:
        pooled = made(x)
    weights = maps[""].dense()
    assert torch.allclose(weights.sum(1), torch.ones(2, *SIZES[rank]).double())
    window = torch.full((3, 1, *[3] * rank), 3.0**-rank, dtype=torch.float64)
    means = [x] + [CONV[rank](x, window, padding=distance, dilation=distance, groups=3) for distance in (1, 2, 3)]
    expected = sum(mean * weights[:, number, None] for number, mean in enumerate(means))
    # One axis after another against all at once: float64 rounding.
    assert torch.allclose(pooled, expected, rtol=0, atol=1e-14)


def test_within_a_constant_map_only_the_border_changes() -> None:
    made, x = block(scales=2), torch.full((1, 3, 7, 9), 5.0).double()
    pooled = made(x)
    assert torch.allclose(pooled[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1])
    assert (pooled[..., 0, :] < 5).all()


@pytest.mark.parametrize("wrong", [{"scales": 1}, {"channels": 0}])
def test_a_single_scale_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be positive, and scales=\d at least 2"):
        TokenAveragePooling(**{"channels": 3, **wrong})


def maps(batch: int, *, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.softmax(3 * torch.randn(batch, 6, 6), dim=-1).double()


def test_the_loss_is_the_mean_cosine_with_the_mean_row() -> None:
    weights, least = maps(2), 1.5 / 6
    total = 0.0
    for sample in weights:
        kept = [row * (row > least) for row in (*sample, sample.mean(0))]
        for row in kept[:-1]:
            size = row.norm() * kept[-1].norm()
            total += row @ kept[-1] / size if size else 0.0
    assert diversification_loss([weights], 1.5).item() == pytest.approx(float(total) / 12, rel=1e-12)


def test_queries_that_look_at_one_key_cost_1_and_queries_that_look_at_different_keys_nothing() -> None:
    same, different = torch.eye(5)[torch.zeros(1, 5, dtype=torch.long)], torch.eye(5)[None]
    assert diversification_loss([same]).item() == pytest.approx(1, abs=1e-6)
    assert diversification_loss([different]) == 0
    assert diversification_loss([same, different]).item() == pytest.approx(0.5, abs=1e-6)


def test_a_single_sample_is_its_part_of_a_batch() -> None:
    """The published code takes the other axis for a batch of one, and answers 0."""
    weights = maps(3)
    alone = torch.stack([diversification_loss([sample[None]], 1.0) for sample in weights])
    assert (alone > 0).all()
    assert torch.allclose(alone.mean(), diversification_loss([weights], 1.0), rtol=1e-12)


def test_uniform_maps_cost_nothing_and_have_finite_gradients() -> None:
    weights = torch.full((2, 4, 4), 0.25, requires_grad=True)
    loss = diversification_loss([weights])
    loss.backward()
    assert loss == 0
    assert weights.grad.isfinite().all()


def test_recorded_maps_pass_gradients_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(create("mhsa", channels=8, heads=2) for _ in range(2))).double()
    with record(model) as found:
        model(5 * torch.randn(1, 7, 8).double())
    loss = diversification_loss(found.values(), 1.0)
    loss.backward()
    assert torch.allclose(loss, diversification_loss([each.dense().mean(1) for each in found.values()], 1.0), rtol=1e-12)
    for layer in model:
        changed = layer.qkv.weight.grad.reshape(3, 8, 8).flatten(1).any(1)
        assert changed.tolist()[:2] == [True, True], "queries and keys of both layers"


def test_what_is_no_list_of_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="no maps"):
        diversification_loss([])
    with pytest.raises(ValueError, match=r"averaged over heads, .* not \(1, 2, 4, 4\)"):
        diversification_loss([torch.zeros(1, 2, 4, 4)])

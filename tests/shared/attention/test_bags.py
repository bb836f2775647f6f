"""Pooled bags: no order, no padding and no size changes what a bag is; training hides some of the best instances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shared.attention import create, record
from shared.attention.bags import MultiBranchPooling, drop_top_instances, pool_bag
from tests.shared.attention.random_blocks import random_block, random_tokens

BAGS = ["abmil", "gated_mil", "mba"]


@pytest.mark.parametrize("name", BAGS)
def test_the_order_of_instances_is_nothing(name: str) -> None:
    block, x = random_block(name, channels=6, branches=3), random_tokens(2, 9, 6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    (features, weights), (other, permuted) = block.pool(x), block.pool(x[:, order])
    torch.testing.assert_close(other, features)
    torch.testing.assert_close(permuted, weights[..., order])


@pytest.mark.parametrize("name", BAGS)
def test_padding_is_nothing(name: str) -> None:
    """Nor to the gradients: bags of several lengths are trained as each would be alone."""
    block = random_block(name, channels=6, branches=3)
    bags = [random_tokens(length, 6, seed=length) for length in (7, 3, 5)]
    padded = torch.nn.utils.rnn.pad_sequence(bags, batch_first=True, padding_value=100.0).requires_grad_()
    mask = torch.tensor([[place < len(bag) for place in range(7)] for bag in bags])
    together, alone = block(padded, mask), torch.cat([block(bag[None]) for bag in bags])
    torch.testing.assert_close(together, alone)
    cotangent = torch.randn_like(together)
    (whole,) = torch.autograd.grad((together * cotangent).sum(), padded)
    assert not whole[~mask].any()
    for bag, own, gradient in zip(bags, cotangent, whole, strict=True):
        bag = bag[None].requires_grad_()
        (expected,) = torch.autograd.grad((block(bag) * own).sum(), bag)
        torch.testing.assert_close(gradient[: bag.shape[1]], expected[0])


@pytest.mark.parametrize("name", BAGS)
@pytest.mark.parametrize("training", [False, True])
def test_a_bag_without_instances_gives_zeros_and_harms_no_other(name: str, training: bool) -> None:
    block, x = random_block(name, channels=6), random_tokens(2, 4, 6).requires_grad_()
    mask = torch.tensor([[False] * 4, [True] * 4])
    features, weights = block.train(training).pool(x, mask)
    features.sum().backward()
    assert not features[0].any()
    assert not weights[0].any()
    assert x.grad.isfinite().all()
    assert not x.grad[0].any()
    torch.testing.assert_close(weights[1].sum(-1), torch.ones_like(weights[1, :, 0]))
    assert not block.pool(x[:, :0]).features.any()


@pytest.mark.parametrize("name", BAGS)
def test_the_weights_are_those_that_pool(name: str) -> None:
    block, x = random_block(name, channels=6, branches=3), random_tokens(2, 9, 6)
    with record(block) as maps:
        features = block(x)
    weights = maps[""].dense()
    assert torch.equal(weights, block.pool(x).weights)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3).double())
    torch.testing.assert_close(weights @ x, features)
    torch.testing.assert_close(torch.softmax(block.scores(x), dim=-1), weights)


@pytest.mark.parametrize("name", BAGS)
def test_weights_stay_exact_under_autocast(name: str) -> None:
    block, x = create(name, channels=6).eval(), torch.randn(1, 50, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, weights = block.pool(x)
    assert features.dtype == weights.dtype == torch.float32
    # Scores may be rough; that weights sum to 1 may not: 50 roundings of float32.
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=50 * 2**-24)


@pytest.mark.parametrize("name", BAGS)
def test_a_hundred_thousand_instances_keep_little(name: str) -> None:
    block, x = create(name, channels=64), torch.randn(1, 100_000, 64)
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        block(x)
    kept.pop(x.untyped_storage().data_ptr(), None)
    # Hidden layers of 128, three with the gate and its product, and a few numbers for each branch; never instances by instances.
    assert sum(kept.values()) < 4 * 100_000 * (3 * 128 + 5 * 5 + 10)


def test_the_bag_of_branches_is_their_mean() -> None:
    block, x = random_block("mba", channels=6), random_tokens(2, 9, 6)
    features, weights = block.pool(x)
    torch.testing.assert_close(features.mean(1), (weights.mean(1, keepdim=True) @ x)[:, 0])


def test_training_hides_some_of_the_best_and_evaluation_none() -> None:
    block, x = random_block("mba", channels=6, branches=4, top_instances=5, drop=0.6), random_tokens(3, 20, 6)
    plain = block.pool(x).weights
    assert (plain > 0).all()
    hidden = block.train().pool(x).weights == 0
    assert (hidden.sum(-1) == 3).all()
    highest = torch.zeros_like(hidden).scatter(-1, block.scores(x).topk(5).indices, True)
    assert not (hidden & ~highest).any()
    assert not torch.equal(block.pool(x).weights, block.pool(x).weights), "another draw"


def test_the_lowest_numbers_drawn_are_dropped() -> None:
    scores = torch.tensor([[[0.0, 3.0, 1.0, 2.0, -1.0]]])
    noise = torch.tensor([[[0.9, 0.1, 0.2]]])
    dropped = drop_top_instances(scores, noise, drop=0.7) != scores
    # Of three, two are dropped (0.7 of 3, rounded down): those that come second and third.
    assert dropped.tolist() == [[[False, False, True, True, False]]]


def test_what_is_not_there_is_not_dropped() -> None:
    scores = torch.arange(10.0).expand(2, 3, 10)
    mask = torch.tensor([[True] * 4 + [False] * 6, [True] * 10])
    noise = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    dropped = drop_top_instances(scores, noise, drop=0.5, mask=mask) != scores
    assert not dropped[0, :, 4:].any()
    assert dropped.sum(-1).tolist() == [[2] * 3, [2] * 3], "half of 4, and half of 5"


def test_when_all_are_dropped_all_count_alike() -> None:
    dropped = drop_top_instances(torch.randn(1, 2, 4), torch.rand(1, 2, 4), drop=1.0)
    assert torch.equal(pool_bag(torch.randn(1, 4, 3), dropped).weights, torch.full((1, 2, 4), 0.25))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        *((name, {"channels": 0}, "channels=0") for name in BAGS),
        *((name, {"channels": 4, "inner_channels": 0}, "inner_channels=0") for name in BAGS),
        *((name, {"channels": 4, "branches": 0}, "branches=0") for name in BAGS),
        ("mba", {"channels": 4, "drop": 1.5}, "drop=1.5 must be between 0 and 1"),
        ("mba", {"channels": 4, "top_instances": -1}, "top_instances=-1 must not be negative"),
    ],
)
def test_wrong_settings_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **settings)


def test_fewer_instances_than_are_looked_at_is_no_trouble() -> None:
    block = MultiBranchPooling(channels=6, top_instances=10, drop=0.6).train()
    assert (block.pool(torch.randn(1, 6, 6)).weights == 0).sum(-1).tolist() == [[3] * 5]

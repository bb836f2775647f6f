"""Reading a bag of tile features, forward and backward: ACMIL beside the published order of operations, and all networks beside ABMIL."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from apps.acmil.config import ModelConfig
from apps.acmil.losses import slide_loss
from apps.acmil.model import MultiHeadACMIL
from apps.acmil.networks import NAMES, build

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (10_000, 100_000)
NETWORKS = ("abmil", "acmil_ga", "acmil_mha", "clam_sb", "dtfd", "transmil")


class ProjectEverything(nn.Module):
    """ACMIL-MHA in the published order: keys and values of every instance for every branch, and values again for the bag."""

    def __init__(self, network: MultiHeadACMIL) -> None:
        super().__init__()
        self.network = network

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """bag: [N, features]. Returns the slide's and the branches' logits."""
        network, x = self.network, self.network.reduction(bag)
        width = x.shape[1] // 8
        logits, weights = [], []
        for query, branch, classify in zip(network.queries, network.branches, network.branch_classifiers, strict=True):
            keys, values = (layer(x).view(len(x), 8, width).transpose(0, 1) for layer in (branch.key, branch.pooling.value))
            scores = branch.query(query).view(8, 1, width) @ keys.mT / math.sqrt(width)
            weights.append(torch.softmax(scores, -1))
            logits.append(classify(branch.pooling.norm(branch.pooling.out((weights[-1] @ values).flatten()))))
        values = network.bag_pooling.value(x).view(len(x), 8, width).transpose(0, 1)
        read = torch.stack(weights).mean(0) @ values
        slide = network.classifier(network.bag_pooling.norm(network.bag_pooling.out(read.flatten())))
        return slide, torch.stack(logits)


def bag_of(count: int, features: int) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.mark.parametrize("way", ["every instance projected, as published", "queries first, as here"])
@pytest.mark.parametrize("count", SIZES)
def test_multi_head_acmil_forward_and_backward(measure, count: int, way: str) -> None:
    torch.manual_seed(0)
    network, bag, label = (
        build(ModelConfig(name="acmil_mha"), features=384, classes=2).to(DEVICE).eval(),
        bag_of(count, 384),
        torch.tensor(1),
    )
    published = ProjectEverything(network)
    with torch.no_grad():
        # Logits are below 1 in size, and differ by the rounding of sums over the bag.
        torch.testing.assert_close(network(bag).logits, published(bag)[0], rtol=0, atol=1e-4)

    def step() -> None:
        slide, branches = published(bag) if way.startswith("every") else network(bag)[:2]
        (slide_loss(slide, label.to(DEVICE)) + branches.sum()).backward()

    measure(
        f"ACMIL-MHA, {count:,} tiles of width 384, {DEVICE}", way, step, images=1, rounds=3 if count < 100_000 else 1, tensors_only=True
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", SIZES)
def test_one_training_step_of_each_network(measure, count: int, name: str) -> None:
    torch.manual_seed(0)
    network, bag = build(ModelConfig(name=name), features=384, classes=2).to(DEVICE).train(), bag_of(count, 384)

    def step() -> None:
        torch.stack(list(network.losses(bag, torch.tensor(1, device=DEVICE)).values())).sum().backward()

    measure(
        f"training step, {count:,} tiles of width 384, {DEVICE}",
        NAMES[name],
        step,
        images=1,
        rounds=3 if count < 100_000 else 1,
        tensors_only=True,
    )


@pytest.mark.parametrize("name", ["acmil_ga", "acmil_mha", "transmil"])
def test_the_largest_bags_of_the_widest_encoder(measure, name: str) -> None:
    """100,000 tiles of width 1536: 0.6 GB of features, which come on top of the peak."""
    torch.manual_seed(0)
    network, bag = build(ModelConfig(name=name), features=1536, classes=2).to(DEVICE).train(), bag_of(100_000, 1536)

    def step() -> None:
        torch.stack(list(network.losses(bag, torch.tensor(1, device=DEVICE)).values())).sum().backward()

    measure(f"training step, 100,000 tiles of width 1536, {DEVICE}", NAMES[name], step, images=1, rounds=1, tensors_only=True)

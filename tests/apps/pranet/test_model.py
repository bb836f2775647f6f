"""The network is the published one in size and shape, says what it cannot take, and trains in all its parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from apps.pranet.config import ModelConfig
from apps.pranet.inference import Settings
from apps.pranet.model import PraNet, UNet
from shared.errors import UserError


@pytest.fixture(scope="module")
def published() -> PraNet:
    torch.manual_seed(0)
    return PraNet().eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_each_stage_has_the_resolution_that_the_paper_gives_it(published: PraNet, image: torch.Tensor) -> None:
    stages = published.stages(image)
    shapes = {name: tuple(stage.shape) for name, stage in stages._asdict().items()}
    assert shapes == {"coarse": (2, 1, 8, 12), "stride32": (2, 1, 2, 3), "stride16": (2, 1, 4, 6), "stride8": (2, 1, 8, 12)}


@torch.inference_mode()
def test_every_side_output_has_the_size_of_the_image_and_the_last_is_the_prediction(published: PraNet, image: torch.Tensor) -> None:
    outputs = published.side_outputs(image)
    assert [tuple(output.shape) for output in outputs] == 4 * [(2, 1, 64, 96)]
    assert torch.equal(outputs[-1], published(image))


def test_it_has_as_many_parameters_as_the_published_network_without_its_unused_classifier(published: PraNet) -> None:
    assert sum(parameter.numel() for parameter in published.parameters()) == 30_498_319


def test_the_variant_with_a_plain_resnet_has_as_many_parameters_as_the_published_one() -> None:
    assert sum(parameter.numel() for parameter in PraNet(backbone="resnet50").parameters()) == 30_336_999


@pytest.mark.parametrize("shape", [(352, 350), (100, 96), (33, 47)])
def test_a_size_that_is_no_multiple_of_32_is_refused_by_name(published: PraNet, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 32, not \({shape[0]}, {shape[1]}\)"):
        published(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize("make", [lambda: PraNet(backbone="test_resnet", channels=8), lambda: UNet(encoder="mobilenet_v2")])
def test_a_training_step_reaches_every_parameter(make: Callable[[], PraNet | UNet]) -> None:
    network = make()
    for parameter in network.parameters():
        if not parameter.any():  # timm starts the last norm of a block at zero, and nothing would pass it in the first step
            torch.nn.init.ones_(parameter)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.stack([output.square().mean() for output in network.train().side_outputs(image)]).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@torch.inference_mode()
def test_the_baseline_answers_in_the_same_shape(image: torch.Tensor) -> None:
    network = UNet(encoder="mobilenet_v2").eval()
    assert network(image).shape == (2, 1, 64, 96)
    assert torch.equal(network.side_outputs(image)[-1], network(image))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ModelConfig(backbone="resnet5o"), "resnet5o"),
        (ModelConfig(backbone="vit_tiny_patch16_224"), "strides"),  # it has one resolution only
        (ModelConfig(name="unet", backbone="resnet5o"), "resnet5o"),
    ],
    ids=["unknown", "without the strides", "unknown to the baseline"],
)
def test_a_backbone_that_cannot_be_used_is_named(model: ModelConfig, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        Settings(model=model).build()
    assert str(caught.value).startswith("model.backbone: ")

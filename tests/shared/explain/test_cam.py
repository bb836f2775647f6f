"""Class activation maps point at what an answer rests on."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.explain.cam import class_activation_map

METHODS = ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "elementwise"]


class Blob(nn.Module):
    """Class 1 is a bright spot; class 0 darkness."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.features = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[rank](2)

    def forward(self, x: Tensor) -> Tensor:
        bright = F.relu(self.features(x)).flatten(2).mean(-1)
        return torch.cat([-bright, bright], dim=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_bright_spot_is_found_in_any_number_of_axes(rank: int, method: str) -> None:
    x = torch.zeros(2, 1, *(12,) * rank)
    for sample, place in enumerate((2, 8)):
        x[(sample, 0, *(slice(place, place + 2),) * rank)] = 1.0
    cam = class_activation_map(Blob(rank), x, layer="features", target=1, method=method)
    assert cam.shape == (2, *(12,) * rank)
    assert cam.min() == 0
    assert cam.amax() == pytest.approx(1, abs=1e-5)
    for sample, place in enumerate((2, 8)):
        peak = cam[sample].flatten().argmax().item()
        assert {peak // 12**axis % 12 for axis in range(rank)} <= {place, place + 1}


def test_nothing_for_it_is_all_zero() -> None:
    cam = class_activation_map(Blob(2), torch.ones(1, 1, 8, 8), layer="features", target=0)
    assert not cam.any()


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    class_activation_map(model, torch.randn(1, 1, 8, 8), layer="0", target=1)
    assert model[0].weight.grad is None
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("layer", "says"),
    [("conv9", "no layer is called 'conv9'; there are: 0, 1, 2"), ("2", "'2' gives (1, 2), which is no feature map of (1, 1, 8, 8)")],
)
def test_a_wrong_layer_is_said(layer: str, says: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=re.escape(says)):
        class_activation_map(model, torch.randn(1, 1, 8, 8), layer=layer, target=1)
    assert not any(module._forward_hooks for module in model)

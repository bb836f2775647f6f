"""The faster network answers as the trained one does."""

import copy

import pytest
import torch
from torch import nn

from apps.pranet.model import PraNet, UNet
from shared.inference.optimise import optimise, prepack
from shared.layers import ConvNorm


def warmed(model: nn.Module) -> nn.Module:
    """With statistics that are not those of a fresh norm, so that a wrong folding would show."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model


NETWORKS = {
    "PraNet": lambda: PraNet(backbone="res2net50d", channels=16),
    "U-Net": lambda: UNet(encoder="resnet18"),
    "convolutions and norms": lambda: nn.Sequential(ConvNorm(3, 8, kernel=3), nn.ReLU(), ConvNorm(8, 1, kernel=(1, 5), dilation=2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_output_is_the_same_and_no_norm_is_left_after_a_convolution(name: str) -> None:
    model = warmed(NETWORKS[name]()).double()
    before = copy.deepcopy(model.state_dict())
    image = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    fast = optimise(model)
    with torch.inference_mode():
        expected, answer = model.eval()(image), fast(image)
    # In float64, because in float32 a hundred random layers make 1e-5 of the output's spread of rounding alone, folded or not.
    assert torch.allclose(answer, expected, rtol=0, atol=1e-10 * float(expected.std()))
    left = [name for name, module in fast.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(name.endswith("reduce_norm") for name in left)  # comes after a product with the attention, not after a convolution
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_copy_computes_no_gradients_and_lies_in_memory_as_convolutions_like_it() -> None:
    fast = optimise(warmed(NETWORKS["convolutions and norms"]()).train())
    assert not fast.training
    assert not any(weight.requires_grad for weight in fast.parameters())
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in fast.parameters() if weight.ndim == 4)


def test_a_branch_in_the_forward_is_kept() -> None:
    """torch.fx cannot trace a decision on values, so such a network is folded part by part."""

    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = ConvNorm(3, 2, kernel=3), ConvNorm(3, 2, kernel=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) if x.mean() > 0 else self.other(x)

    model = warmed(Deciding()).eval()
    fast = optimise(model)
    assert not [module for module in fast.modules() if isinstance(module, nn.BatchNorm2d)]
    for sign in (1, -1):
        x = sign * torch.rand(1, 3, 8, 8)
        assert torch.allclose(fast(x), model(x), atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_volumes_too(rank: int) -> None:
    model = warmed(nn.Sequential(ConvNorm(2, 4, kernel=3, rank=rank), nn.ReLU(), ConvNorm(4, 1, kernel=1, rank=rank))).eval()
    x = torch.rand(2, 2, *[6] * rank)
    assert torch.allclose(optimise(model)(x), model(x), atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_weights_give_the_same_output_whatever_size_comes_next(name: str) -> None:
    model = warmed(NETWORKS[name]())
    packed = prepack(optimise(model))
    with torch.inference_mode():
        for size in ((2, 3, 64, 96), (1, 3, 64, 96), (1, 3, 128, 64), (0, 3, 64, 96)):
            image = torch.rand(size)
            expected = model.eval()(image)
            # A hundred layers of float32, summed in another order: 1e-5 of the output's spread, and some more to be safe.
            assert torch.allclose(packed(image), expected, rtol=0, atol=2e-4 * float(expected.std(correction=0)) if size[0] else 0)


def test_what_cannot_be_packed_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv3d(1, 1, 3))
    assert [type(module) for module in prepack(network)] == [nn.Conv2d, nn.Conv2d, nn.Conv3d]

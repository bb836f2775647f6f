"""A block hung into somebody else's network changes nothing at first, and learns."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import dropin, record


def moved(model: nn.Module) -> nn.Module:
    """With normalisations that do something, as in a trained network."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def test_a_timm_network_answers_as_before_and_keeps_its_weights_names() -> None:
    timm = pytest.importorskip("timm")
    model = moved(timm.create_model("resnet10t", pretrained=False))
    x, names = torch.randn(2, 3, 64, 64), set(model.state_dict())
    before, plain = model(x), copy.deepcopy(model.state_dict())
    assert dropin(model, where="layer[34]", block="scse") == ["layer3", "layer4"]
    assert torch.equal(model(x), before)
    assert names < set(model.state_dict())
    missing, unexpected = model.load_state_dict(plain, strict=False)
    assert not unexpected
    assert all(".inserted_attention." in name for name in missing)


def test_a_volume_network_of_monai_answers_as_before() -> None:
    networks = pytest.importorskip("monai.networks.nets")
    model = moved(networks.UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,)))
    x = torch.randn(1, 1, 16, 16, 16)
    before = model(x)
    dropin(model, where="model.0", block="scse")
    dropin(model, where="model.1.submodule", block="pam", reduction=2)
    assert torch.equal(model(x), before)


def test_tokens_of_a_vision_transformer() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2).eval()
    x = torch.randn(1, 3, 32, 32)
    before = model(x)
    assert dropin(model, where="blocks.*.attn", block="mhsa", heads=3) == ["blocks.0.attn", "blocks.1.attn"]
    assert torch.equal(model(x), before)


def test_token_blocks_are_given_feature_maps_as_tokens() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 9, 8)
    before = model(x)
    dropin(model, where="0", block="mhsa", heads=2)
    assert torch.equal(model(x), before)
    with record(model) as maps:
        model(x)
    assert maps["0.inserted_attention.block"].shape == (1, 2, 42, 42)


@pytest.mark.parametrize("block", ["scse", "pam", "cam", "mhsa"])
def test_training_opens_it(block: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    dropin(model, where="0", block=block)
    x = torch.randn(4, 1, 8, 8)
    target = x.mean((2, 3), keepdim=True).expand_as(x)
    inserted = list(model[0].inserted_attention.parameters())
    before = [weight.detach().clone() for weight in inserted]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(weight, old) for weight, old in zip(inserted, before, strict=True) if weight.requires_grad)


def test_an_example_tells_shapes_that_the_layers_do_not() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], dim=1)

    model = nn.Sequential(nn.Conv2d(1, 4, 1), Doubled())
    with pytest.raises(ValueError, match="pass example="):
        dropin(model, where="1", block="scse")
    x = torch.randn(1, 1, 5, 5)
    before = model(x)
    assert dropin(model, where="1", block="scse", example=x) == ["1"]
    assert torch.equal(model(x), before)


def test_a_network_with_inserted_blocks_compiles_and_copies() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()).eval()
    dropin(model, where="0", block="cam")
    model[0].inserted_attention.block.gamma.data.fill_(0.5)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize(
    ("where", "block", "settings", "says"),
    [
        ("decoder.*", "scse", {}, "no layer matches 'decoder.*'; there are: 0, 1"),
        ("0", "scs", {}, "did you mean 'scse'"),
        ("0", "scse", {"reductoin": 2}, "did you mean 'reduction'"),
        ("0", "reverse", {}, "more than one input"),
        ("0", "mhsa", {"heads": 3}, "heads=3 must divide channels=4"),
    ],
)
def test_what_does_not_fit_is_refused(where: str, block: str, settings: dict[str, int], says: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())
    with pytest.raises(ValueError, match=re.escape(says)):
        dropin(model, where=where, block=block, **settings)
    assert not hasattr(model[0], "inserted_attention")


def test_twice_in_one_place_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1))
    dropin(model, where="0", block="cam")
    with pytest.raises(ValueError, match="0 has an inserted block already"):
        dropin(model, where="0", block="cam")

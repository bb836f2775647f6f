"""The reversible 3D U-Net: the networks and their blocks, what goes in and comes out and its gradients, the losses, the regions' scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tests.parity.fixture import Fixture

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]

BLOCK_NAMES = {"Fm": "f", "Gm": "g", "gn": "norm"}


def matches(fixture: Fixture) -> bool:
    return fixture.system in RUNNERS


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    return RUNNERS[fixture.system](fixture, state, inputs)


def _network(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.reversible_unet.published import from_published, our_name

    network = from_published({name: torch.from_numpy(array) for name, array in state.items()}, source=fixture.name).build()
    image = torch.from_numpy(inputs["image"]).requires_grad_()
    logits = network(image)
    probability = torch.sigmoid(logits)
    weights = dict(network.named_parameters())
    found = torch.autograd.grad((probability * torch.from_numpy(inputs["cotangent"])).sum(), [image, *weights.values()])
    gradients = dict(zip(weights, found[1:], strict=True))
    return {
        "probability": probability.detach().numpy(),
        "logits": logits.detach().numpy(),
        "input_gradient": found[0].numpy(),
        "grad_norms": np.array([gradients[our_name(name)].norm().item() for name in fixture.config["grad_norms_order"]]),
    }


def _block(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.reversible_unet.blocks import Bottleneck, PreactivatedConv
    from shared.layers.reversible import ReversibleBlock

    channels, groups, expansion = (fixture.config[name] for name in ("channels", "groups", "expansion"))
    half = partial(PreactivatedConv if expansion is None else partial(Bottleneck, expansion=expansion), groups=groups)
    block = ReversibleBlock(half(channels=channels // 2), half(channels=channels // 2))
    ours = {name: ".".join(BLOCK_NAMES.get(part, part) for part in name.split(".")) for name in state}
    block.load_state_dict({ours[name]: torch.from_numpy(array) for name, array in state.items()}, strict=True)
    x = torch.from_numpy(inputs["x"]).requires_grad_()
    y = block(x)
    weights = dict(block.named_parameters())
    found = torch.autograd.grad((y * torch.from_numpy(inputs["cotangent"])).sum(), [x, *weights.values()])
    gradients = dict(zip(weights, found[1:], strict=True))
    with torch.inference_mode():
        inverse = block.inverse(torch.from_numpy(inputs["y"]))
    return {
        "forward": y.detach().numpy(),
        "inverse_of_y": inverse.numpy(),
        "input_gradient": found[0].numpy(),
        "grad_norms": np.array([gradients[ours[name]].norm().item() for name in fixture.config["grad_norms_order"]]),
        **{f"grad:{name}": gradients[ours[name]].numpy() for name in state},
    }


def _losses(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.reversible_unet.losses import published_dice_loss, published_squared_dice_loss
    from shared.metrics.regions import BRATS_2015, region_scores, tumour_regions

    truth = torch.from_numpy(inputs["noise"]) > 0.7
    logits = torch.from_numpy(inputs["logits"])

    def scored(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[np.ndarray, np.ndarray]:
        z = logits.clone().requires_grad_()
        value = loss(z, truth)
        (gradient,) = torch.autograd.grad(value, z)
        probability = torch.sigmoid(logits)
        return value.detach().numpy(), (gradient / (probability * (1 - probability))).numpy()  # the published one is of probabilities

    outputs: Arrays = {}
    for kind, loss in (("plain", published_dice_loss), ("squared", published_squared_dice_loss)):
        outputs[f"loss_{kind}"], outputs[f"grad_{kind}"] = scored(loss)
    scores = region_scores((torch.sigmoid(logits) > 0.5)[0].numpy(), truth[0].numpy(), spacing_mm=(1, 1, 1))
    outputs["dice_metric"] = np.array([score.dice for score in scores])
    outputs["sensitivity"] = np.array([score.sensitivity for score in scores])
    outputs["specificity"] = np.array([score.specificity for score in scores])
    # Its labels are 0 to 4, and 3 is core: those of 2015.
    outputs["region_counts"] = tumour_regions(inputs["labels"], BRATS_2015).sum(axis=(1, 2, 3))
    return outputs


RUNNERS: dict[str, Callable[[Fixture, Arrays, Arrays], Arrays]] = {
    "reversible-unet3d-partially": _network,
    "reversible-unet3d-partially-deep": _network,
    "reversible-unet3d-baseline": _network,
    "reversible-unet3d-block-conv": _block,
    "reversible-unet3d-block-mbconv": _block,
    "reversible-unet3d-losses": _losses,
}

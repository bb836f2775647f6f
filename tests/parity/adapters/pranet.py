"""PraNet: the network and its blocks, what goes in and comes out, the structure loss, and the benchmark's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.parity.fixture import Fixture

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]

BACKBONES = {"PraNet": "res2net50d", "CRANet (ResNet-50 variant)": "resnet50"}


def matches(fixture: Fixture) -> bool:
    return fixture.system == "pranet" and _runner(fixture) is not None


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    runner = _runner(fixture)
    assert runner is not None, "run is only called where matches said yes"
    return runner(fixture, state, inputs)


def _runner(fixture: Fixture) -> Callable[[Fixture, Arrays, Arrays], Arrays] | None:
    config = fixture.config
    if config.get("class") in BACKBONES:
        return _model
    if config.get("function") == "structure_loss":
        return _loss
    if set(config) == {"in", "out"}:
        return _receptive_field_block
    if set(config) == {"channel"}:
        return _partial_decoder
    if set(config) == {"size", "mean", "std"}:
        return _pipeline
    if "thresholds" in config and "gt_threshold" in config:
        return _metrics
    return None


def _model(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.pranet.model import PraNet
    from apps.pranet.published import from_published

    model = PraNet(backbone=BACKBONES[fixture.config["class"]], channels=fixture.config["channel"]).eval()
    model.load_state_dict(from_published(_tensors(state)), strict=True)
    seen: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda module, arguments, result: seen.__setitem__(name, result))

    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        watch(f"mid.{name}", model.backbone.get_submodule(name))
    for level, block in enumerate(model.receptive, start=2):
        watch(f"mid.rfb{level}", block)
    watch("mid.ppd", model.decoder)
    with torch.inference_mode():
        for level, logits in zip((5, 4, 3, 2), model.side_outputs(torch.from_numpy(inputs["image"])), strict=True):
            seen[f"lateral_map_{level}"] = logits
    return {name: value.numpy() for name, value in seen.items()}


def _receptive_field_block(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.pranet.model import ReceptiveFieldBlock

    block = ReceptiveFieldBlock(fixture.config["in"], fixture.config["out"])
    return _run_block(block, state, inputs["x"], published="rfb2_1.", ours="receptive.0.")


def _partial_decoder(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.pranet.model import PartialDecoder

    decoder = PartialDecoder(fixture.config["channel"])
    return _run_block(decoder, state, inputs["c"], inputs["b"], inputs["a"], published="agg1.", ours="decoder.")


def _run_block(block: nn.Module, state: Arrays, *arguments: np.ndarray, published: str, ours: str) -> Arrays:
    """The block's answer with the weights that it would have in the whole network, under these names there and here."""
    import torch

    from apps.pranet.published import from_published

    converted = from_published({f"{published}{name}": tensor for name, tensor in _tensors(state).items()})
    block.load_state_dict({name.removeprefix(ours): tensor for name, tensor in converted.items()}, strict=True)
    with torch.inference_mode():
        return {"out": block.eval()(*map(torch.from_numpy, arguments)).numpy()}


def _tensors(state: Arrays) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in state.items()}


def _loss(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch
    import torch.nn.functional as F

    from apps.pranet.losses import boundary_weight, published_structure_loss, structure_loss

    logits, noise, soft_mask = (torch.from_numpy(inputs[name]) for name in ("logits", "noise", "soft_mask"))
    size = logits.shape[2:]
    masks = {"hard": (F.interpolate(noise, size=size, mode="nearest") > 0.3).float(), "soft": soft_mask}
    predicted = 2 * F.interpolate(noise, size=size, mode="bilinear", align_corners=False) + 0.5 * logits

    def scored(loss: Callable[[Tensor, Tensor], Tensor], mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
        z = predicted.clone().requires_grad_()
        value = loss(z, mask)
        (gradient,) = torch.autograd.grad(value, z)
        return value.detach().numpy(), 1000 * gradient.numpy()

    outputs = {"weight_map.hard": boundary_weight(masks["hard"]).numpy()}
    for kind, mask in masks.items():
        for variant, loss in (("published", published_structure_loss), ("intended", structure_loss)):
            outputs[f"{variant}.{kind}.loss"], outputs[f"{variant}.{kind}.grad"] = scored(loss, mask)
    return outputs


def _pipeline(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.pranet.preprocessing import to_input, to_target
    from shared.layers import resize
    from shared.metrics import saliency

    image, size = inputs["image_u8"].astype(np.uint8), fixture.config["size"]
    probability = torch.sigmoid(resize(torch.from_numpy(inputs["logits"]), image.shape[:2]))[0, 0].numpy()
    return {
        "network_input": to_input(image, size=size)[None].numpy(),
        "train_mask": to_target(inputs["mask_u8"].astype(np.uint8), size=size).numpy(),
        "probability_map": saliency.stretch(probability),
        "saved_u8": saliency.grey_levels(probability),
    }


def _metrics(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from shared.metrics import saliency

    predictions, truths = _maps(inputs["gt_noise"], inputs["pred_noise"])
    images = [saliency.benchmark_scores(prediction, truth) for prediction, truth in zip(predictions, truths, strict=True)]
    # The published program cannot score the last image, which is empty, by these three.
    filled = [(saliency.stretch(prediction), truth) for prediction, truth in zip(predictions[:-1], truths[:-1], strict=True)]
    table = saliency.summarise(images)

    def curve(name: str) -> np.ndarray:
        return np.stack([getattr(image.curves, name) for image in images])

    return {
        "s_measure": np.array([image.s_measure for image in images]),
        "mae": np.array([image.mean_absolute_error for image in images]),
        "weighted_f": np.array([image.weighted_f for image in images[:-1]]),
        "s_object": np.array([saliency.object_similarity(*maps) for maps in filled]),
        "s_region": np.array([saliency.region_similarity(*maps) for maps in filled]),
        "curve.precision": curve("precision"),
        "curve.sensitivity": curve("sensitivity"),
        "curve.specificity": curve("specificity"),
        "curve.dice": curve("dice"),
        "curve.f1": curve("dice"),
        "curve.iou": curve("iou"),
        "curve.e": curve("e_measure"),
        "dataset.meanDice": np.array(table.mean_dice),
        "dataset.maxDice": np.array(table.max_dice),
        "dataset.meanIoU": np.array(table.mean_iou),
        "dataset.maxIoU": np.array(table.max_iou),
        "dataset.meanE": np.array(table.mean_e),
        "dataset.maxE": np.array(table.max_e),
        "dataset.meanSensitivity": np.array(table.mean_sensitivity),
        "dataset.meanSpecificity": np.array(table.mean_specificity),
        "dataset.S": np.array(table.s_measure),
        "dataset.MAE": np.array(table.mean_absolute_error),
    }


def _maps(cells: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit predictions and masks, [image, H, W]: blocks above a threshold, blended with noise into levels 3 to 236; one mask empty."""
    truths = cells > 0.6
    for axis in (1, 2):
        truths = truths.repeat(noise.shape[axis] // cells.shape[axis], axis=axis)
    predictions = 3 + 233 * (64 * truths + 3 * noise // 4) // 255
    predictions[:, 0, 0], predictions[:, 0, 1] = 3, 236
    truths[-1] = False
    return predictions.astype(np.uint8), truths

"""AGUNet and DAUNet: the networks, the Dice loss, and the way of a volume to the network's input and back."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tests.parity.fixture import Fixture

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["keras_layers", "matches", "run"]

Arrays = dict[str, np.ndarray]

NETWORKS = ("AttentionGatedUnet", "DualAttentionUnet")
KERAS = {"running_mean": "moving_mean", "running_var": "moving_variance"}


def matches(fixture: Fixture) -> bool:
    return fixture.config.get("class") in NETWORKS or fixture.system in ("agunet-losses", "agunet-prepost")


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    if fixture.system == "agunet-losses":
        return _losses(inputs)
    return _prepost(fixture, inputs) if fixture.system == "agunet-prepost" else _network(fixture, state, inputs)


def keras_layers(state: Arrays) -> dict[str, Arrays]:
    """A fixture's state, which is in torch's layout, as Keras stores it: arrays by layer and weight."""
    layers: dict[str, Arrays] = {}
    for name, array in state.items():
        layer, _, kind = name.partition(".")
        if layer.startswith("conv3d") and kind == "weight":
            array, kind = array.transpose(2, 3, 4, 1, 0), "kernel"
        elif layer.startswith("batch_normalization"):
            kind = KERAS.get(kind) or {"weight": "gamma", "bias": "beta"}[kind]
        if kind.partition(".")[0] not in ("b", "c", "d"):  # PAM's projections, which Keras never saved
            layers.setdefault(layer, {})[kind] = array
    return layers


def _network(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.agunet.published import from_published

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*position attention")
        network = from_published(keras_layers(state), source=fixture.name).build()
    if "pam.gamma" in state:
        give_projections(network, state)
    seen: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda module, arguments, result: seen.__setitem__(name, result))

    for level, decoder in enumerate(network.decoder):
        watch(f"decoded_{level}", decoder)
        if getattr(decoder, "gate", None) is not None:
            step = len(network.decoder) - 1 - level
            watch(f"multiply_{step}" if step else "multiply", decoder.gate)
    if "pam.gamma" in state:
        watch("pam", network.attention.position)
        watch("cam", network.attention.channel)
    with torch.inference_mode():
        for level, logits in enumerate(network.side_outputs(torch.from_numpy(inputs["image"]))):
            seen[f"probability_{level}"] = logits.softmax(dim=1)[:, 1:2]
    return {name: value.numpy() for name, value in seen.items()}


def give_projections(network: nn.Module, state: Arrays) -> None:
    """What no released file holds: PAM's key, query and value, and the gamma that goes with them."""
    import torch

    names = {"pam.gamma": "gamma", "pam.b.weight": "key.weight", "pam.c.weight": "query.weight", "pam.d.weight": "value.weight"}
    network.attention.position.load_state_dict({ours: torch.from_numpy(state[theirs]) for theirs, ours in names.items()})


def _losses(inputs: Arrays) -> Arrays:
    import torch

    from apps.agunet.losses import class_dice, dice_loss, published_dice_loss

    outputs: Arrays = {}
    for suffix in ("", "3"):
        logits, labels = torch.from_numpy(inputs[f"logits{suffix}"]), torch.from_numpy(inputs[f"labels{suffix}"])[:, None]
        probability = logits.softmax(dim=1).requires_grad_()
        published = published_dice_loss(probability, labels)
        (gradient,) = torch.autograd.grad(published, probability)
        outputs[f"loss_published{suffix}"] = published.detach().numpy()
        outputs[f"grad_abs_max_published{suffix}"] = gradient.abs().max().numpy()
        outputs[f"class_dice{suffix}"] = class_dice(probability, labels).detach().numpy()
        outputs[f"loss_foreground_only{suffix}"] = dice_loss(logits, labels).numpy()
    return outputs


def _prepost(fixture: Fixture, inputs: Arrays) -> Arrays:
    from apps.agunet import prepost

    config = fixture.config
    affine, spacing, thresholds = np.array(config["affine"]), tuple(config["output_spacing"]), config["optimal_thresholds"]
    volume = _head(inputs["noise"])
    resampled, grid = prepost.resample(volume, affine, spacing)
    preparation = prepost.Preparation(spacing_mm=spacing, percentiles=(0, 99.5), size=tuple(config["target_size"]))
    prepared = prepost.prepare(volume, affine, preparation)
    axial = prepost.prepare(volume, affine, replace(preparation, size=(24, 20)))
    box = prepared.placement.box
    foreground = prepared.image
    probability = np.stack([1 - foreground, foreground])
    restored = prepost.restore_probability(probability, prepared.placement)
    cut_first = prepost.restore_labels(prepost.threshold(probability, thresholds)[1], prepared.placement)
    outputs = {
        "volume": volume,
        "resampled": resampled,
        "resampled_affine": grid.affine,
        "crop_bbox": np.array([side.start for side in box] + [side.stop for side in box]),
        "cropped_shape": np.array([side.stop - side.start for side in box]),
        "network_input": prepared.image,
        "network_input_axial2d": axial.image,
    }
    by_twos = {
        "norm_default": prepost.normalise(resampled, percentiles=(0, 100), normalisation="range"),
        "norm_clip99": prepost.normalise(resampled, percentiles=(0, 99.5), normalisation="range"),
        "norm_zeromean": prepost.normalise(resampled, percentiles=(0, 99), normalisation="zero_mean"),
        "restored_resample_first_probabilities": restored[1],
        "restored_resample_first_thresholding": prepost.threshold(restored, thresholds)[1],
        "restored_resample_second_probabilities": restored[1],
        "restored_resample_second_thresholding": cut_first,
        "restored_resample_second_argmax": prepost.restore_labels(probability.argmax(axis=0), prepared.placement),
    }
    return outputs | {name: array[::2, ::2, ::2] for name, array in by_twos.items()}


def _head(noise: np.ndarray) -> np.ndarray:
    """A bright, noisy ellipsoid in faint noise."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in noise.shape), indexing="ij")
    radius = (x / 0.72) ** 2 + (y / 0.8) ** 2 + (z / 0.85) ** 2
    return np.where(radius < 1, 300 + 500 * noise * (1 - 0.5 * radius), 20 * noise).astype(np.float32)

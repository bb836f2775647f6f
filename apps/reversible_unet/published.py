"""Checkpoints of the released training program in our names. The authors published no weights; whoever ran their program has some."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from apps.reversible_unet.config import ConvertConfig, ModelConfig, brats_task
from apps.reversible_unet.inference import ReversibleUNetPredictor
from apps.reversible_unet.model import ReversibleUNet, UNet3D
from shared.bundle import check_finite, load_weights, provenance, read_checkpoint
from shared.config import plain
from shared.errors import UserError
from shared.segmentation.config import PreprocessingConfig, TaskConfig, WindowConfig
from shared.segmentation.predictor import SegmentationSettings

__all__ = ["Published", "convert", "from_published", "our_name", "read_published"]

_WRAPPER = "net_state_dict"
_BLOCKS = "reversibleBlocks.reversible_blocks"
_LAYERS = {"gn": "norm", "conv": "conv"}
_RULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"firstConv\.(\w+)", lambda m: f"stem.{m[1]}"),
    (r"lastConv\.(\w+)", lambda m: f"head.{m[1]}"),
    (
        rf"(en|de)coders\.(\d+)\.{re.escape(_BLOCKS)}\.(\d+)\.([fg])_block\.(gn|conv)\.(\w+)",
        lambda m: f"{m[1]}coder.{m[2]}.{m[3]}.{m[4]}.{_LAYERS[m[5]]}.{m[6]}",
    ),
    (r"encoders\.([1-9]\d*)\.conv\.(\w+)", lambda m: f"widen.{int(m[1]) - 1}.{m[2]}"),
    (r"decoders\.(\d+)\.conv\.(\w+)", lambda m: f"narrow.{m[1]}.{m[2]}"),
    (r"decoders\.0\.(gn|conv)2\.(\w+)", lambda m: f"decoder.0.0.{_LAYERS[m[1]]}.{m[2]}"),  # it has no first one
    (
        r"(?!decoders\.0\.)(en|de)coders\.(\d+)\.(gn|conv)([12])\.(\w+)",
        lambda m: f"{m[1]}coder.{m[2]}.{int(m[4]) - 1}.{_LAYERS[m[3]]}.{m[5]}",
    ),
)
_ADVICE = "This reads e_<epoch>.pt of the partially reversible U-Net and of its baseline."


@dataclass(frozen=True, kw_only=True)
class Published:
    """A trained network in our terms."""

    network: Literal["reversible_unet", "unet3d"]
    settings: dict[str, Any]
    """Arguments of the network's constructor, as far as the weights decide them; groups of normalisation are as published, by the width."""
    state: dict[str, Tensor]
    """State dict of the network made with these settings."""

    def build(self) -> ReversibleUNet | UNet3D:
        """The network with these weights, ready to predict."""
        network = _NETWORKS[self.network](**self.settings)
        network.load_state_dict(self.state)
        return network.eval()


_NETWORKS: dict[str, type[ReversibleUNet] | type[UNet3D]] = {"reversible_unet": ReversibleUNet, "unet3d": UNet3D}


def read_published(path: Path | str) -> Published:
    """Reads a checkpoint of the released program, or its network's state dict alone. Nothing in it is executed.

    Raises:
        UserError: if the file is missing, damaged, or of another network.
    """
    state = read_checkpoint(path, wrappers=(_WRAPPER, "state_dict"), advice=_ADVICE, missing=_ADVICE)
    return from_published(state, source=path)


def convert(config: ConvertConfig) -> None:
    """Writes a bundle of a checkpoint of the released program, with its threshold of 0.5 and its size of 160 x 192 x 160."""
    published = read_published(config.published)
    settings = dict(published.settings)
    channels, regions = settings.pop("in_channels"), settings.pop("out_channels")
    task = brats_task()
    if (channels, regions) != (len(task.modalities), len(task.labels)):
        names = [f"channel {number}" for number in range(1, channels + 1)]
        task = TaskConfig(
            modalities={name: [name.replace(" ", "")] for name in names},
            labels={f"region {number}": [number] for number in range(1, regions + 1)},
            overlapping=True,
        )
    groups = settings.pop("inner_groups", None) or settings.pop("groups")
    network = ModelConfig(name=published.network, inner_groups=groups, **settings)
    segmentation = SegmentationSettings(
        task=task,
        preprocessing=PreprocessingConfig(spacing_mm=(1.0, 1.0, 1.0), crop=True, normalisation="foreground"),
        window=WindowConfig(size=(160, 192, 160), overlap=0.5),
    )
    facts = provenance(converted_from=config.published.name, weights_licence="whoever trained them; the program is BSD-3-Clause")
    predictor = ReversibleUNetPredictor(published.build(), model=plain(network), settings=segmentation, facts=facts)
    predictor.save_bundle(config.output)
    print(f"{config.output}: written. Try: apps.reversible_unet infer --model {config.output} --input case_folder --output results")


def from_published(state: Mapping[str, Tensor], *, source: Path | str) -> Published:
    """A network's published state dict in our terms.

    Args:
        state: tensors by their published names.
        source: what messages call it.

    Raises:
        UserError: if it is not that of the partially reversible U-Net or its baseline.
    """
    kind: Literal["reversible_unet", "unet3d"] = "reversible_unet" if "firstConv.weight" in state else "unet3d"
    try:
        ours = {our_name(name): value for name, value in state.items()}
        settings = _settings(state) if kind == "reversible_unet" else _baseline_settings(state)
        with torch.device("meta"):
            network = _NETWORKS[kind](**settings)
    except (KeyError, IndexError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{source}: is of another network ({reason}). {_ADVICE}") from error
    load_weights(network, {name: value.to("meta") for name, value in ours.items()}, source=source)
    check_finite(state, source=source, advice="Take the checkpoint of an earlier epoch.")
    return Published(network=kind, settings=settings, state=ours)


def our_name(name: str) -> str:
    """What we call the weight that the released program calls ``name``.

    Raises:
        ValueError: if it is a weight of neither network.
    """
    for pattern, ours in _RULES:
        if found := re.fullmatch(pattern, name):
            return ours(found)
    raise ValueError(f"{name!r} is no part of it")


def _settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    def blocks(level: str) -> int:
        return _how_many(lambda block: f"{level}.{_BLOCKS}.{block}.f_block.gn.weight" in state)

    levels = _how_many(lambda level: blocks(f"encoders.{level}") > 0)
    halves = [state[f"encoders.{level}.{_BLOCKS}.0.f_block.gn.weight"].shape[0] for level in range(levels)]
    return {
        "in_channels": state["firstConv.weight"].shape[1],
        "out_channels": state["lastConv.weight"].shape[0],
        "channels": tuple(2 * half for half in halves),
        "encoder_depth": blocks("encoders.0"),
        "decoder_depth": blocks("decoders.0"),
        "inner_groups": halves[0] if halves else None,
    }


def _baseline_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = _how_many(lambda level: f"encoders.{level}.gn1.weight" in state)
    return {
        "in_channels": state["encoders.0.conv1.weight"].shape[1],
        "out_channels": state["lastConv.weight"].shape[0],
        "channels": tuple(state[f"encoders.{level}.gn1.weight"].shape[0] for level in range(levels)),
        "groups": state["encoders.0.gn1.weight"].shape[0],
    }


def _how_many(exists: Callable[[int], bool]) -> int:
    """From 0 on without a gap."""
    return sum(1 for _ in takewhile(exists, count()))

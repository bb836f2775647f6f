"""From a bundle to segmentations: the Predictor, and the verbs that call it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from apps.reversible_unet.blocks import Half, PreactivatedConv, bottlenecks
from apps.reversible_unet.config import ExportConfig, GrowthConfig, InferVolumesConfig, ModelConfig, ReversibleServeConfig
from apps.reversible_unet.model import ReversibleUNet, UNet3D
from shared.segmentation.card import volume_card
from shared.segmentation.export import export_volumes
from shared.segmentation.labels import Labels
from shared.segmentation.prediction import VolumePrediction
from shared.segmentation.predictor import VolumePredictor
from shared.segmentation.running import growth_volumes, infer_volumes, serve_volumes

__all__ = ["ReversibleUNetPredictor", "build", "export", "growth", "infer", "serve"]

_NAMES = {"reversible_unet": "Reversible U-Net", "unet3d": "U-Net (baseline of the reversible one)", "unet": "U-Net (MONAI)"}
_PAPERS = {
    "convolution": "Brügger et al., A Partially Reversible U-Net for Memory-Efficient Volumetric Image Segmentation, MICCAI 2019",
    "bottleneck": "Pendse et al., Memory Efficient 3D U-Net with Reversible Mobile Inverted Bottlenecks for Brain Tumor Segmentation, "
    "BrainLes 2020; the block is our reading of it, as the authors published no code",
}


class ReversibleUNetPredictor(VolumePredictor):
    """Segments MRI of several sequences, any size, orientation and spacing. ``model`` holds the settings of the network."""

    app = "reversible_unet"

    @classmethod
    def build(cls, model: Mapping[str, Any], labels: Labels) -> nn.Module:
        """The network, with fresh weights."""
        lists = ("channels", "expansion", "chunks")
        return build(ModelConfig(**{**model, **{name: tuple(model[name]) for name in lists}}), labels)

    @property
    def name(self) -> str:
        """Reversible U-Net, or the baseline's."""
        return _NAMES[self.model["name"]]

    def write_card(self) -> str:
        """Names the paper that the blocks are from."""
        return volume_card(self.name, self.settings, self.facts, paper=_PAPERS[self.model["block"]])


def build(model: ModelConfig, labels: Labels) -> nn.Module:
    """The network of these settings, with fresh weights.

    Raises:
        ValueError: if a setting is none that the network takes.
    """
    sizes: dict[str, Any] = {
        "in_channels": len(labels.task.modalities),
        "out_channels": labels.channels,
        "channels": model.channels,
    }
    if model.name == "unet":
        from monai.networks.nets import UNet  # takes seconds to import, and only this network needs it

        return UNet(spatial_dims=3, strides=[2] * (len(model.channels) - 1), num_res_units=2, **sizes)
    if model.name == "unet3d":
        return UNet3D(groups=model.inner_groups, memory="plain" if model.memory == "reversible" else model.memory, **sizes)
    half: Half | tuple[Half, ...] = partial(PreactivatedConv, drop_path=model.drop_path)
    if model.block == "bottleneck":
        expansion, chunks = (values[0] if len(values) == 1 else values for values in (model.expansion, model.chunks))
        half = bottlenecks(levels=len(model.channels), expansion=expansion, chunks=chunks, drop_path=model.drop_path)
    return ReversibleUNet(
        encoder_depth=model.encoder_depth,
        decoder_depth=model.decoder_depth,
        half=half,
        inner_groups=model.inner_groups,
        memory=model.memory,
        **sizes,
    )


def infer(config: InferVolumesConfig) -> int:
    """Segments every input and writes the results; the exit code is 3 if some inputs could not be used."""
    return infer_volumes(ReversibleUNetPredictor, config)


def serve(config: ReversibleServeConfig) -> None:
    """Answers over HTTP until it is told to stop."""
    serve_volumes(ReversibleUNetPredictor, config, media_types=VolumePrediction.media_types)


def growth(config: GrowthConfig) -> None:
    """Segments two scans of one patient and compares them."""
    growth_volumes(ReversibleUNetPredictor, config)


def export(config: ExportConfig) -> None:
    """Writes the network in another format."""
    export_volumes(ReversibleUNetPredictor, config)

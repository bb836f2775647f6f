"""From a bundle to segmentations: the Predictor, and the verbs that call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.agunet.config import AGUNetServeConfig, ExportConfig, GrowthConfig, InferVolumesConfig, ModelConfig, PublishedConfig
from apps.agunet.model import AGUNet, DAUNet, PublishedChannelAttention
from apps.agunet.prepost import Preparation, prepare, resize_labels, restore_probability
from shared.attention import ChannelAttention, record
from shared.attention.gate import ConcatenationGate
from shared.imaging.volumes import Volume, restore_labels
from shared.inference.sliding import sliding_window
from shared.segmentation.card import volume_card
from shared.segmentation.export import export_volumes
from shared.segmentation.labels import Labels
from shared.segmentation.prediction import VolumePrediction
from shared.segmentation.predictor import VolumePredictor
from shared.segmentation.preparation import NativePreparation, Prepare, Prepared
from shared.segmentation.running import growth_volumes, infer_volumes, serve_volumes

__all__ = ["AGUNetPredictor", "PublishedPreparation", "build", "export", "growth", "infer", "serve"]

_NAMES = {"agunet": "AGUNet", "daunet": "DAUNet", "unet": "U-Net (MONAI)"}
_PAPER = (
    "Bouget et al., Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms, "
    "Frontiers in Radiology 2021"
)


class AGUNetPredictor(VolumePredictor):
    """Segments T1-weighted MRI of any size, orientation and spacing.

    ``model`` holds the settings of the network ("network") and of the published preparation ("published", None for our own).
    """

    app = "agunet"

    @classmethod
    def build(cls, model: Mapping[str, Any], labels: Labels) -> nn.Module:
        """The network, with fresh weights."""
        network = dict(model["network"])
        return build(ModelConfig(**{**network, "channels": tuple(network["channels"])}), labels)

    @property
    def name(self) -> str:
        """AGUNet, DAUNet, or the baseline's."""
        return _NAMES[self.model["network"]["name"]]

    def write_card(self) -> str:
        """Says what is not as the paper has it, too."""
        return volume_card(self.name, self.settings, self.facts, paper=_PAPER, notes=self.facts.get("notes", ()))

    def preparation(self) -> Prepare:
        """Our own, or the published one."""
        published = self.model.get("published")
        return NativePreparation(self.settings.preprocessing) if published is None else PublishedPreparation(preparation_of(published))

    def attention(self, source: Path | str | Volume) -> dict[str, NDArray[np.float32]]:
        """What each attention gate lets through of its skip connection, [X, Y, Z] on the volume's own voxels, 0 (nothing) to 1.

        By "1/1", "1/2", ...: the gate's resolution, the full one first. Empty for networks without gates. Where the network has not looked
        it is 0.
        """
        prepared = self.prepare(source if isinstance(source, Volume) else self.read(Path(source)))
        network = self.build(self.model, self.classes)
        network.load_state_dict(self.weights)
        network.eval().to(self.device)
        gates = [name for name, module in network.named_modules() if isinstance(module, ConcatenationGate)]
        if not gates:
            return {}

        def answer(windows: Tensor) -> Tensor:
            with record(network, where="decoder.*.gate") as maps:
                network(windows)
            return torch.cat([F.interpolate(maps[name].dense(), size=windows.shape[2:], mode="trilinear") for name in gates], dim=1)

        window = self.settings.window
        with torch.inference_mode():
            maps = sliding_window(
                torch.from_numpy(prepared.image),
                answer,
                window=window.size,
                batch_size=self.options.batch_size,
                overlap=window.overlap,
                device=self.device,
            )
        restored = np.clip(prepared.restore(maps.cpu().numpy(), (0.0,) * len(gates)), 0, 1)
        return {f"1/{2**level}": each for level, each in enumerate(restored)}


@dataclass(frozen=True)
class PublishedPreparation:
    """The published way: the whole head in one size. Where the network has not looked is background, with probability 1."""

    preparation: Preparation

    def __call__(self, volume: Volume) -> Prepared:
        """volume: [1, X, Y, Z] or [X, Y, Z]. Raises InputError as ``prepost.prepare``."""
        ready = prepare(volume.values.reshape(volume.shape), volume.affine, self.preparation, name=volume.name)
        placement, size = ready.placement, ready.image.shape
        extents = [part.stop - part.start for part in placement.box]
        x, y, z = (spacing * extent / voxels for spacing, extent, voxels in zip(placement.resampled.spacing_mm, extents, size, strict=True))

        def restore(probability: NDArray[np.float32], outside: Sequence[float]) -> NDArray[np.float32]:
            return restore_probability(probability, placement, outside=outside)

        def place(labels: Volume) -> NDArray[np.uint8]:
            return resize_labels(restore_labels(labels, placement.resampled).values[placement.box], size)

        return Prepared(image=ready.image[None], spacing_mm=(x, y, z), restore=restore, place=place)


def preparation_of(published: Mapping[str, Any] | PublishedConfig) -> Preparation:
    """Of the settings in a YAML or a bundle."""
    values = asdict(published) if isinstance(published, PublishedConfig) else published
    return Preparation(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def build(model: ModelConfig, labels: Labels) -> nn.Module:
    """The network of these settings, with fresh weights.

    Raises:
        ValueError: if a setting is none that the network takes.
    """
    sizes = {"in_channels": len(labels.task.modalities), "channels": model.channels}
    if model.name == "unet":
        from monai.networks.nets import UNet  # takes seconds to import, and only this network needs it

        return UNet(
            spatial_dims=3,
            out_channels=labels.channels,
            strides=[2] * (len(model.channels) - 1),
            num_res_units=2,
            dropout=model.dropout,
            **sizes,
        )
    common = {
        "classes": labels.channels,
        "multi_scale_input": model.multi_scale_input,
        "deep_supervision": model.deep_supervision,
        "dropout": model.dropout,
        "momentum": model.momentum,
        "checkpointing": model.checkpointing,
        **sizes,
    }
    if model.name == "agunet":
        return AGUNet(attention_gates=model.attention_gates, **common)
    return DAUNet(
        dual_attention=model.dual_attention,
        guidance=model.guidance,
        channel_attention=PublishedChannelAttention if model.published_channel_attention else ChannelAttention,
        attention_dropout=model.attention_dropout,
        **common,
    )


def infer(config: InferVolumesConfig) -> int:
    """Segments every input and writes the results; the exit code is 3 if some inputs could not be used."""
    return infer_volumes(AGUNetPredictor, config)


def serve(config: AGUNetServeConfig) -> None:
    """Answers over HTTP until it is told to stop."""
    serve_volumes(AGUNetPredictor, config, media_types=VolumePrediction.media_types)


def growth(config: GrowthConfig) -> None:
    """Segments two scans of one patient and compares them."""
    growth_volumes(AGUNetPredictor, config)


def export(config: ExportConfig) -> None:
    """Writes the network in another format."""
    export_volumes(AGUNetPredictor, config)

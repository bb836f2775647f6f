"""The settings of the verbs ``memory`` and ``plan``. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import Fraction, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["MemoryConfig", "NetworkConfig", "PlanConfig"]


@dataclass(kw_only=True)
class NetworkConfig:
    """A reversible U-Net, without its weights."""

    block: Literal["convolution", "bottleneck"] = "convolution"
    """convolution is the published block; bottleneck our reading of the mobile inverted one."""
    in_channels: PositiveInt = 4
    out_channels: PositiveInt = 3
    channels: tuple[PositiveInt, ...] = (60, 120, 240, 360, 480)
    """Widths, from the full resolution to the bottom."""
    encoder_depth: PositiveInt = 1
    """Blocks in each level."""
    decoder_depth: PositiveInt = 1
    expansion: tuple[PositiveInt, ...] = (6,)
    """Of bottlenecks: one for all levels, or one for each width."""
    chunks: tuple[PositiveInt, ...] = (1,)
    """Of bottlenecks: parts in which the inside is computed; one for all levels, or one for each width."""


@dataclass(kw_only=True)
class MemoryConfig:
    """Show what a training step keeps and takes, for each way to gradients, over depth and volume size."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    size: list[PositiveInt] = field(default_factory=lambda: [128, 128, 128, 160, 192, 160])
    """Three numbers for each volume, in voxels."""
    depths: list[PositiveInt] = field(default_factory=lambda: [1, 2, 4])
    """Blocks in each level of the encoder."""
    measure: list[NonNegativeInt] = field(default_factory=lambda: [32, 32, 32])
    """A volume to run a real step on, here and now, with the network as set above; 0 for none."""
    output: Path | None = None
    """A file to write the table to as well: .md for Markdown, .json for JSON."""
    figure: Path | None = None
    """A PNG file to draw the table in."""


@dataclass(kw_only=True)
class PlanConfig:
    """Choose the volume, the depth and the width of a network that can be trained on one GPU."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Where to start from."""
    vram: PositiveFloat = 24.0
    """Memory of the GPU, in GiB."""
    reserve: Fraction = 0.15
    """Part of it that is left to kernels' workspaces, the allocator's gaps and the driver, none of which are counted."""
    size: list[PositiveInt] = field(default_factory=lambda: [160, 192, 160])
    """The volume that one would like to train on as a whole, in voxels."""

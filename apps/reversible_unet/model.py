"""The partially reversible 3D U-Net, whose levels can be deepened without more memory in training, and the U-Net it is compared to.

Brügger, Baumgartner and Konukoglu, "A Partially Reversible U-Net for Memory-Efficient Volumetric Image Segmentation", MICCAI 2019. With
``Bottleneck`` in its blocks, after Pendse et al., "Memory Efficient 3D U-Net with Reversible Mobile Inverted Bottlenecks for Brain Tumor
Segmentation", BrainLes 2020, who published no code: that block is our reading of the article's title and abstract.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apps.reversible_unet.blocks import SLOPE, Half, PreactivatedConv
from shared.layers import conv, resize
from shared.layers.reversible import ReversibleBlock, ReversibleSequence

__all__ = ["Memory", "ReversibleUNet", "UNet3D"]

CHANNELS = (60, 120, 240, 360, 480)
"""The published widths, from full resolution down."""

UNET_CHANNELS = (30, 60, 120, 240, 480)

Memory = Literal["plain", "checkpoint", "reversible"]
"""What is kept for the gradients of a level with C channels: all activations; C channels of each block; C channels of the last block."""

INVERSION_LIMIT = 1e-3
"""Above this difference between a level's input and what is recomputed of it, gradients deserve no trust."""


class ReversibleUNet(nn.Module):
    """Segmentation of regions that may overlap, one logit each; levels are reversible, what changes the resolution is not.

    Args:
        in_channels: channels of the image; the published program stacks T1, T1 with contrast agent, T2 and FLAIR.
        out_channels: regions; published whole tumour, tumour core, enhancing tumour.
        channels: even widths, from the full resolution to the bottom; each next one has half the resolution.
        encoder_depth, decoder_depth: blocks in each level of the two.
        half: makes each half of a block, ``half(channels=..., groups=...)``: ``PreactivatedConv`` (published) or ``Bottleneck``; or one
            for each width, such as ``bottlenecks(levels=5, expansion=(2, 4, 6, 6, 6))``.
        inner_groups: of the blocks' group normalisations; by default the largest number that divides half of every width. With the
            published widths, and all that are multiples of the first, that is half the first width, as published.
        memory: how gradients are had. Weights and answers are the same for all, and it can be set anew at any time.

    Raises:
        ValueError: if there are fewer than two widths or one is odd, a count is not positive, ``inner_groups`` does not divide half of
            every width, there are more or fewer ``half`` than widths, or ``memory`` is none of the three.
    """

    def __init__(
        self,
        *,
        in_channels: int = 4,
        out_channels: int = 3,
        channels: Sequence[int] = CHANNELS,
        encoder_depth: int = 1,
        decoder_depth: int = 1,
        half: Half | Sequence[Half] = PreactivatedConv,
        inner_groups: int | None = None,
        memory: Memory = "reversible",
    ) -> None:
        super().__init__()
        _check(in_channels, out_channels, channels)
        if min(encoder_depth, decoder_depth) < 1:
            raise ValueError(f"a level needs at least one block: encoder_depth={encoder_depth}, decoder_depth={decoder_depth}")
        groups = math.gcd(*(width // 2 for width in channels)) if inner_groups is None else inner_groups
        if groups < 1 or any(width % 2 or (width // 2) % groups for width in channels):
            raise ValueError(f"every width must be even and its half a multiple of inner_groups={groups}, not {tuple(channels)}")

        halves = [half] * len(channels) if callable(half) else list(half)
        if len(halves) != len(channels):
            raise ValueError(f"half must be one, or one for each of {len(channels)} widths, not {len(halves)}")

        def level(width: int, make: Half, depth: int) -> ReversibleSequence:
            return ReversibleSequence(
                ReversibleBlock(make(channels=width // 2, groups=groups), make(channels=width // 2, groups=groups)) for _ in range(depth)
            )

        upwards = channels[::-1]
        self.stem = conv(in_channels, channels[0], kernel=3, rank=3, bias=False)
        self.encoder = nn.ModuleList(level(width, make, encoder_depth) for width, make in zip(channels, halves, strict=True))
        self.widen = nn.ModuleList(conv(width, below, kernel=1, rank=3) for width, below in pairwise(channels))
        self.decoder = nn.ModuleList(level(width, make, decoder_depth) for width, make in zip(upwards, halves[::-1], strict=True))
        self.narrow = nn.ModuleList(conv(below, width, kernel=1, rank=3) for below, width in pairwise(upwards))
        self.head = conv(channels[0], out_channels, kernel=1, rank=3)
        self.memory = memory

    @property
    def memory(self) -> Memory:
        """How gradients are had."""
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        if memory not in get_args(Memory):
            raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}, not {memory!r}")
        self._memory: Memory = memory

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, C, X, Y, Z] of any size. Returns logits [B, regions, X, Y, Z].

        An axis that is no multiple of 2 ** (widths - 1) is filled up with zeros at its end, and the logits are cut back.

        Raises:
            ValueError: if it has other axes, another number of channels, or no voxels.
        """
        x = self._through(self.encoder[0], self.stem(_padded(image, self.stem.in_channels, len(self.encoder))))
        skips = []
        for widen, level in zip(self.widen, self.encoder[1:], strict=True):
            skips.append(x)
            x = self._through(level, widen(F.max_pool3d(x, 2)))
        x = self._through(self.decoder[0], x)
        for narrow, level in zip(self.narrow, self.decoder[1:], strict=True):
            skip = skips.pop()
            # Narrowing first: it commutes with the interpolation, and costs an eighth here.
            x = self._through(level, resize(narrow(x), skip.shape[2:]) + skip)
        return _cut(self.head(x), image)

    @torch.no_grad()
    def inversion_errors(self, image: Tensor) -> list[float]:
        """How exactly each level's input is recomputed: the largest difference, encoder first and each in the order of running.

        Rounding gives 1e-6 to 1e-5 in float32. Above 1e-3, gradients of ``memory="reversible"`` deserve no trust, and a warning says so.
        Measured as in prediction, without dropout.
        """
        errors: list[float] = []

        def measure(level: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            errors.append((level.inverse(output) - inputs[0]).abs().max().item())  # type: ignore[operator]

        memory, training = self.memory, self.training
        self.eval().memory = "reversible"
        hooks = [level.register_forward_hook(measure) for level in (*self.encoder, *self.decoder)]
        try:
            self(image)
        finally:
            self.train(training).memory = memory
            for hook in hooks:
                hook.remove()
        if not max(errors) <= INVERSION_LIMIT:
            warnings.warn(
                f'inputs are recomputed to {max(errors):.1g} only: train with memory="checkpoint", fewer blocks a level, or a lower rate',
                stacklevel=2,
            )
        return errors

    def _through(self, level: nn.Module, x: Tensor) -> Tensor:
        if self.memory == "reversible":
            return level(x)
        if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
            x = x if x.dtype == torch.float64 else x.float()  # as the reversible way must, so that answers are the same
        again = self.memory == "checkpoint" and _recomputing()
        for block in level:  # type: ignore[attr-defined]
            x = checkpoint(block.plain, x, use_reentrant=False) if again else block.plain(x)
        return x


class UNet3D(nn.Module):
    """The published baseline, an ordinary 3D U-Net with group normalisation that adds its skip connections.

    After Isensee et al., "No New-Net", BrainLes 2018.

    Args:
        in_channels, out_channels: as ``ReversibleUNet``.
        channels: widths, from the full resolution to the bottom.
        groups: of the group normalisations; by default the largest number that divides every width, which is the first one where the
            others are multiples of it, as published.
        memory: how gradients are had: ``plain``, or ``checkpoint``, which keeps what goes into each level and runs it twice. Can be set
            anew at any time.

    Raises:
        ValueError: if there are fewer than two widths, a count is not positive, ``groups`` does not divide every width, or ``memory`` is
            neither.
    """

    def __init__(
        self,
        *,
        in_channels: int = 4,
        out_channels: int = 3,
        channels: Sequence[int] = UNET_CHANNELS,
        groups: int | None = None,
        memory: Memory = "plain",
    ) -> None:
        super().__init__()
        _check(in_channels, out_channels, channels)
        groups = math.gcd(*channels) if groups is None else groups
        if groups < 1 or any(width % groups for width in channels):
            raise ValueError(f"every width must be a multiple of groups={groups}, not {tuple(channels)}")

        def level(*widths: int) -> nn.Sequential:
            return nn.Sequential(*(ConvGroupNorm(before, after, groups) for before, after in pairwise(widths)))

        downwards, upwards = [in_channels, *channels[:-1]], channels[-2::-1]
        self.encoder = nn.ModuleList(level(before, width, width) for before, width in pairwise(downwards))
        self.encoder.append(level(channels[-2], channels[-1]))
        self.decoder = nn.ModuleList([level(channels[-1], channels[-2])])
        self.decoder.extend(level(before, before, width) for before, width in pairwise(upwards))
        self.decoder.append(level(channels[0], channels[0], channels[0]))
        self.head = conv(channels[0], out_channels, kernel=1, rank=3)
        self.in_channels = in_channels
        self.memory = memory

    @property
    def memory(self) -> Memory:
        """How gradients are had."""
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        if memory not in ("plain", "checkpoint"):
            raise ValueError(f"memory must be plain or checkpoint, as this network has no reversible levels, not {memory!r}")
        self._memory: Memory = memory

    def forward(self, image: Tensor) -> Tensor:
        """As ``ReversibleUNet.forward``."""
        x, skips = self._through(self.encoder[0], _padded(image, self.in_channels, len(self.encoder))), []
        for level in self.encoder[1:]:
            skips.append(x)
            x = self._through(level, F.max_pool3d(x, 2))
        for level in self.decoder[:-1]:
            skip = skips.pop()
            x = resize(self._through(level, x), skip.shape[2:]) + skip
        return _cut(self.head(self._through(self.decoder[-1], x)), image)

    def _through(self, level: nn.Module, x: Tensor) -> Tensor:
        if self.memory == "checkpoint" and _recomputing():
            return checkpoint(level, x, use_reentrant=False)
        return level(x)


class ConvGroupNorm(nn.Module):
    """A 3 x 3 x 3 convolution without bias, group normalisation, leaky ReLU. [B, C, *spatial] to [B, out, *spatial]."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.conv = conv(channels, out_channels, kernel=3, rank=3, bias=False)
        self.norm = nn.GroupNorm(groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE, inplace=True)


def _check(in_channels: int, out_channels: int, channels: Sequence[int]) -> None:
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"channels must be two or more positive widths, not {tuple(channels)}")
    if min(in_channels, out_channels) < 1:
        raise ValueError(f"at least one channel in and one out are needed, not {in_channels} and {out_channels}")


def _recomputing() -> bool:
    """Whether there is anything to recompute for: an exported program has no gradients."""
    return torch.is_grad_enabled() and not torch.compiler.is_exporting()


def _padded(image: Tensor, channels: int, levels: int) -> Tensor:
    """With zeros at the end of each axis that cannot be halved often enough."""
    if image.ndim != 5 or image.shape[1] != channels or not image.numel():
        raise ValueError(f"the image must be [B, {channels}, X, Y, Z] and not empty, not {list(image.shape)}")
    missing = [-size % 2 ** (levels - 1) for size in image.shape[2:]]
    return F.pad(image, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else image


def _cut(logits: Tensor, image: Tensor) -> Tensor:
    """To the image's size."""
    x, y, z = image.shape[2:]
    return logits if logits.shape[2:] == image.shape[2:] else logits[..., :x, :y, :z]

"""Halves of reversible blocks: the published one, and a mobile inverted bottleneck in as little memory as one likes.

Each takes ``channels`` and ``groups`` by keyword and keeps the shape, so a network can be made of any of them:
``ReversibleUNet(half=partial(Bottleneck, expansion=2))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared.attention.mbconv import InvertedBottleneck
from shared.layers import conv

__all__ = ["Bottleneck", "Half", "PreactivatedConv", "bottlenecks"]

SLOPE = 0.01
"""Of the published leaky ReLUs below 0."""

Half = Callable[..., nn.Module]
"""Makes one half of a block: ``half(channels=..., groups=...)``."""


class PreactivatedConv(nn.Module):
    """Half of a published block: group normalisation, leaky ReLU, a 3 x 3 x 3 convolution without bias.

    Brügger et al., "A Partially Reversible U-Net for Memory-Efficient Volumetric Image Segmentation", MICCAI 2019.

    Args:
        channels: of the half.
        groups: of the normalisation.
        drop_path: how often, in training, a volume passes the half by (Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016).

    Raises:
        ValueError: if ``groups`` does not divide ``channels``, or ``drop_path`` is not from 0 to below 1.
    """

    def __init__(self, *, channels: int, groups: int, drop_path: float = 0.0) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"groups={groups} must divide the {channels} channels of a half")
        _check_drop_path(drop_path)
        self.norm = nn.GroupNorm(groups, channels)
        self.conv = conv(channels, channels, kernel=3, rank=3, bias=False)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, X, Y, Z]. Returns the same shape."""
        x = self.conv(F.leaky_relu(self.norm(x), SLOPE, inplace=True))
        return _dropped(x, self.drop_path) if self.training else x


def _dropped(x: Tensor, share: float) -> Tensor:
    """Of a batch this share of the samples, as zeros; the others scaled up for it."""
    if not share:
        return x
    from torchvision.ops import stochastic_depth  # imports the compiler, seconds of it, for which prediction has no use

    return stochastic_depth(x, share, "row", training=True)


class Bottleneck(InvertedBottleneck):
    """Half of a block as a mobile inverted bottleneck with plain ReLUs, without a squeeze.

    It has fewer weights than ``PreactivatedConv``, about half as many from 240 channels on. But its inside is ``expansion`` times as wide,
    and at full resolution that decides the peak of memory: while its gradients are taken, it alone keeps 1 + 2 ``expansion`` times the
    level's channels. Hence ``chunks``: neither the depthwise convolution nor group normalisation mixes groups, so the widened channels
    are computed a part at a time, each part once more for its gradients. The answer is the same but for the order of the last sum.

    Args:
        channels: of the half.
        groups: of the normalisations.
        expansion: how many times wider the inside is.
        chunks: parts of the inside; 1 computes all at once, and is the fastest.
        drop_path: as ``PreactivatedConv``.

    Raises:
        ValueError: if ``chunks`` does not divide ``groups``, or as ``InvertedBottleneck`` and ``PreactivatedConv``.
    """

    def __init__(self, *, channels: int, groups: int, expansion: int = 6, chunks: int = 1, drop_path: float = 0.0) -> None:
        super().__init__(channels=channels, groups=groups, expansion=expansion, slope=0.0, rank=3)
        if chunks < 1 or groups % chunks:
            raise ValueError(f"chunks={chunks} must divide the {groups} groups of the normalisations")
        _check_drop_path(drop_path)
        self.chunks = chunks
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, X, Y, Z]. Returns the same shape."""
        y = super().forward(x) if self.chunks == 1 else self._in_chunks(x)
        return _dropped(y, self.drop_path) if self.training else y

    def _in_chunks(self, x: Tensor) -> Tensor:
        again = torch.is_grad_enabled() and not torch.compiler.is_exporting()
        weights = [self.expand.weight, *self.norm1.parameters(), self.depthwise.weight, *self.norm2.parameters()]
        parts = zip(*(weight.chunk(self.chunks) for weight in weights), self.project.weight.chunk(self.chunks, dim=1), strict=True)
        total: Tensor | None = None
        for part in parts:
            # Weights as arguments: as attributes, they could be others by the time of the second run.
            settings = (self.norm1.num_groups // self.chunks, self.norm1.eps)
            one = checkpoint(_chunk, x, *part, *settings, use_reentrant=False) if again else _chunk(x, *part, *settings)
            total = one if total is None else total + one
        assert total is not None
        return self.norm3(total)


def bottlenecks(
    *, levels: int, expansion: int | Sequence[int] = 6, chunks: int | Sequence[int] = 1, drop_path: float = 0.0
) -> tuple[Half, ...]:
    """What makes the halves of each level, from the full resolution to the bottom, for ``ReversibleUNet(half=...)``.

    Args:
        levels: of the network, one for each width.
        expansion, chunks: one for all levels, or one for each; little and many at the full resolution are what saves memory.
        drop_path: of all.

    Raises:
        ValueError: if there are more or fewer of one than levels.
    """
    each = [[value] * levels if isinstance(value, int) else list(value) for value in (expansion, chunks)]
    if any(len(values) != levels for values in each):
        raise ValueError(f"expansion and chunks need one value, or one for each of {levels} levels, not {expansion} and {chunks}")
    return tuple(partial(Bottleneck, expansion=wider, chunks=parts, drop_path=drop_path) for wider, parts in zip(*each, strict=True))


def _chunk(
    x: Tensor,
    expand: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    depthwise: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    project: Tensor,
    groups: int,
    eps: float,
) -> Tensor:
    """Some groups of a bottleneck's inside, up to what they add to the projection."""
    x = F.relu(F.group_norm(F.conv3d(x, expand), groups, scale1, shift1, eps), inplace=True)
    x = F.conv3d(x, depthwise, padding=depthwise.shape[-1] // 2, groups=x.shape[1])
    return F.conv3d(F.relu(F.group_norm(x, groups, scale2, shift2, eps), inplace=True), project)


def _check_drop_path(drop_path: float) -> None:
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path must be from 0 to below 1, not {drop_path}")

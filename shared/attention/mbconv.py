"""Mobile inverted bottlenecks in reversible pairs: 3-D networks that train in the memory of one layer.

Pendse et al., "Memory Efficient 3D U-Net with Reversible Mobile Inverted Bottlenecks for Brain Tumor Segmentation", BrainLes 2020. The
authors published no code: the order of layers is that of Sandler et al., "MobileNetV2", CVPR 2018, with norms that know no batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, linear_cost, norm_cost
from shared.attention.recording import recording
from shared.attention.registry import cost_of, register
from shared.attention.squeeze import ChannelSqueeze
from shared.layers import conv
from shared.layers.reversible import ReversibleBlock

__all__ = ["InvertedBottleneck", "ReversibleMBConv"]


class InvertedBottleneck(nn.Module):
    """Widens the channels, filters each by itself, and narrows them again: expand, depthwise, [squeeze and excite], project.

    Without a residual connection: in a reversible pair, the coupling is one.

    Args:
        channels: channels of the input and of the output.
        expansion: how many times wider the inside is.
        kernel: side of the depthwise convolution; odd.
        groups: of the group normalisations; by default one for each channel, which is instance normalisation.
        slope: of the leaky ReLUs below 0; 0 for plain ones.
        reduction: of a squeeze and excitation of the widened channels; by default there is none.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` or ``expansion`` is not positive, ``groups`` does not divide ``channels``, ``slope`` is negative, or as
            ``shared.layers.conv`` and ``ChannelSqueeze``.
    """

    def __init__(
        self,
        *,
        channels: int,
        expansion: int = 6,
        kernel: int = 3,
        groups: int | None = None,
        slope: float = 0.01,
        reduction: int | None = None,
        rank: int = 2,
    ) -> None:
        super().__init__()
        if min(channels, expansion) < 1:
            raise ValueError(f"must be positive: channels={channels}, expansion={expansion}")
        if groups is not None and (groups < 1 or channels % groups):
            raise ValueError(f"groups={groups} must divide the {channels} channels of a half")
        if slope < 0:
            raise ValueError(f"slope={slope} must not be negative")
        inner = expansion * channels
        self.expand = conv(channels, inner, kernel=1, rank=rank, bias=False)
        self.norm1 = nn.GroupNorm(groups or inner, inner)
        self.depthwise = conv(inner, inner, kernel=kernel, groups=inner, rank=rank, bias=False)
        self.norm2 = nn.GroupNorm(groups or inner, inner)
        self.squeeze = nn.Identity() if reduction is None else ChannelSqueeze(channels=inner, reduction=reduction)
        self.project = conv(inner, channels, kernel=1, rank=rank, bias=False)
        self.norm3 = nn.GroupNorm(groups or channels, channels)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        # In place: else both what goes into an activation and what comes out would be kept.
        x = F.leaky_relu(self.norm1(self.expand(x)), self.slope, inplace=True)
        x = F.leaky_relu(self.norm2(self.depthwise(x)), self.slope, inplace=True)
        return self.norm3(self.project(self.squeeze(x)))


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n, rank = settings.channels // 2, math.prod(grid), settings.rank
    inner = settings.expansion * channels
    squeeze = Cost() if settings.reduction is None else cost_of("cse", grid, channels=inner, reduction=settings.reduction)
    return 2 * (
        linear_cost(channels, inner, n, bias=False)
        + conv_cost(inner, inner, n, kernel=settings.kernel, rank=rank, groups=inner, bias=False)
        + linear_cost(inner, channels, n, bias=False)
        + 2 * norm_cost(inner)
        + norm_cost(channels)
        + squeeze
    )


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"Fm": "f", "Gm": "g", "n1": "norm1", "n2": "norm2", "n3": "norm3", "dw": "depthwise"}
    return {"pair." + ".".join(names.get(part, part) for part in name.split(".")): value for name, value in state.items()}


@register(
    "rev_mbconv",
    paper="Pendse et al., reversible MBConv 3D U-Net, BrainLes 2020",
    ranks=(1, 2, 3),
    cost=_cost,
    example={"reduction": 8},
    published=_published,
)
class ReversibleMBConv(nn.Module):
    """Two inverted bottlenecks that add to one half of the channels what they make of the other, recomputed in training.

    For several in a row, a ``shared.layers.reversible.ReversibleSequence`` of their ``pair`` keeps one output for all of them.

    Args:
        channels: channels of the feature map; even.
        expansion, kernel, slope, reduction, rank: as ``InvertedBottleneck``.
        groups: of the group normalisations of each half; by default one for each channel, which is instance normalisation.

    Raises:
        ValueError: if ``channels`` is odd, or as ``InvertedBottleneck`` of half the channels.
    """

    def __init__(
        self,
        *,
        channels: int,
        expansion: int = 6,
        kernel: int = 3,
        groups: int | None = None,
        slope: float = 0.01,
        reduction: int | None = None,
        rank: int = 3,
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels={channels} must be even, and at least 2")

        def half() -> InvertedBottleneck:
            return InvertedBottleneck(
                channels=channels // 2, expansion=expansion, kernel=kernel, groups=groups, slope=slope, reduction=reduction, rank=rank
            )

        self.pair = ReversibleBlock(half(), half())

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        # Recomputation would record each map a second time.
        return self.pair.plain(x) if recording() else self.pair(x)

    def inverse(self, y: Tensor) -> Tensor:
        """The x [B, C, *spatial] that gave y [B, C, *spatial], up to rounding."""
        return self.pair.inverse(y)

"""Large kernel attention: a gate from a large window, whose convolution is split into a small one, a dilated one and a mixing of channels.

Guo et al., "Visual Attention Network", Computational Visual Media 2023, section 3, equations 1 and 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, linear_cost, norm_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv, norm

__all__ = ["LargeKernelAttention", "ProjectedLargeKernelAttention", "VisualAttentionBlock"]

_PAPER = "Guo et al., VAN, Computational Visual Media 2023"


def _gate_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    sides = (2 * settings.dilation - 1, -(-settings.kernel // settings.dilation))
    depthwise = (conv_cost(channels, channels, n, kernel=side, rank=settings.rank, groups=channels) for side in sides)
    return sum(depthwise, linear_cost(channels, channels, n))


def _projected_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    return _gate_cost(settings, grid) + 2 * linear_cost(settings.channels, settings.channels, math.prod(grid))


def _block_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    wide = channels * settings.expansion
    local = conv_cost(wide, wide, n, kernel=3, rank=settings.rank, groups=wide)
    perceptron = linear_cost(channels, wide, n) + local + linear_cost(wide, channels, n)
    return _projected_cost(settings, grid) + perceptron + 2 * norm_cost(channels) + Cost(2 * channels)


_GATE = {"conv0": "near", "conv_spatial": "far", "conv1": "mix"}


def _below(theirs: str, ours: str, names: dict[str, str]) -> dict[str, str]:
    return {f"{theirs}.{key}": f"{ours}.{value}" for key, value in names.items()}


_PROJECTED = {"proj_1": "project", "proj_2": "out"} | _below("spatial_gating_unit", "gate", _GATE)


@register("lka", paper=f"{_PAPER}, eq. 1-2", ranks=(1, 2, 3), cost=_gate_cost, published=_GATE)
class LargeKernelAttention(nn.Module):
    """Large kernel attention (LKA): multiplies a feature map by a gate from a window of about ``kernel`` positions a side.

    The gate is linear, neither squashed nor normalised: it may be negative.

    Args:
        channels: channels of the feature map.
        kernel: side of the large window, K.
        dilation: r; the window is covered by a depthwise convolution of side 2 r - 1, and one of side K / r (rounded up, to be odd) with
            that dilation.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if a number is not positive, or K / r, rounded up, is even.
    """

    def __init__(self, *, channels: int, kernel: int = 21, dilation: int = 3, rank: int = 2) -> None:
        super().__init__()
        if min(channels, kernel, dilation) < 1:
            raise ValueError(f"must be positive: channels={channels}, kernel={kernel}, dilation={dilation}")
        far = -(-kernel // dilation)
        if far % 2 == 0:
            raise ValueError(f"kernel={kernel} with dilation={dilation} makes a dilated window of side {far}, which must be odd")
        self.near = conv(channels, channels, kernel=2 * dilation - 1, groups=channels, rank=rank)
        self.far = conv(channels, channels, kernel=far, dilation=dilation, groups=channels, rank=rank)
        self.mix = conv(channels, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        gate = self.mix(self.far(self.near(x)))
        if recording():
            note(GivenMap(gate))
        return x * gate


@register("lka_projected", paper=f"{_PAPER}, section 3.2", ranks=(1, 2, 3), cost=_projected_cost, published=_PROJECTED)
class ProjectedLargeKernelAttention(nn.Module):
    """Large kernel attention between two projections, with a skip connection: the attention layer of VAN.

    Args:
        channels, kernel, dilation, rank: as ``LargeKernelAttention``.

    Raises:
        ValueError: as ``LargeKernelAttention``.
    """

    def __init__(self, *, channels: int, kernel: int = 21, dilation: int = 3, rank: int = 2) -> None:
        super().__init__()
        self.project = conv(channels, channels, kernel=1, rank=rank)
        self.gate = LargeKernelAttention(channels=channels, kernel=kernel, dilation=dilation, rank=rank)
        self.out = conv(channels, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        return self.out(self.gate(F.gelu(self.project(x)))) + x


@register(
    "van",
    paper=f"{_PAPER}, section 3.2",
    ranks=(1, 2, 3),
    cost=_block_cost,
    published={
        "norm1": "attention_norm",
        "norm2": "expand_norm",
        "layer_scale_1": "attention_scale",
        "layer_scale_2": "expand_scale",
        "mlp.fc1": "expand",
        "mlp.dwconv.dwconv": "local",
        "mlp.fc2": "contract",
    }
    | _below("attn", "attention", _PROJECTED),
)
class VisualAttentionBlock(nn.Module):
    """A block of the visual attention network (VAN): large kernel attention, then a convolutional perceptron, each scaled and added.

    Args:
        channels, kernel, dilation, rank: as ``LargeKernelAttention``.
        expansion: how many times wider the perceptron's hidden layer is; 8, 8, 4, 4 in the published stages.

    Raises:
        ValueError: if ``expansion`` is not positive, or as ``LargeKernelAttention``.
    """

    def __init__(self, *, channels: int, kernel: int = 21, dilation: int = 3, expansion: int = 4, rank: int = 2) -> None:
        super().__init__()
        if expansion < 1:
            raise ValueError(f"expansion must be positive, not {expansion}")
        wide = channels * expansion
        self.attention_norm = norm(channels, rank=rank)
        self.attention = ProjectedLargeKernelAttention(channels=channels, kernel=kernel, dilation=dilation, rank=rank)
        self.attention_scale = nn.Parameter(torch.full((channels,), 0.01))
        self.expand_norm = norm(channels, rank=rank)
        self.expand = conv(channels, wide, kernel=1, rank=rank)
        self.local = conv(wide, wide, kernel=3, groups=wide, rank=rank)
        self.contract = conv(wide, channels, kernel=1, rank=rank)
        self.expand_scale = nn.Parameter(torch.full((channels,), 0.01))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                fan_out = layer.out_channels * math.prod(layer.kernel_size) // layer.groups
                nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        per_channel = (-1, *(1 for _ in x.shape[2:]))
        x = x + self.attention_scale.reshape(per_channel) * self.attention(self.attention_norm(x))
        expanded = F.gelu(self.local(self.expand(self.expand_norm(x))))
        return x + self.expand_scale.reshape(per_channel) * self.contract(expanded)

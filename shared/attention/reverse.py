"""Reverse attention: erase what a coarse map has found, and look for what it missed.

Fan et al., "PraNet: Parallel Reverse Attention Network for Polyp Segmentation", MICCAI 2020, section 2.3, equations 2 and 3.
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
from shared.attention.registry import feature_map, register
from shared.layers import ConvNorm, conv, norm, resize

__all__ = ["ReverseAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    inner, n, rank = settings.inner_channels, math.prod(grid), settings.rank
    refine = conv_cost(inner, inner, n, kernel=settings.kernel, rank=rank, bias=False) + norm_cost(inner)
    score = conv_cost(inner, 1, n, kernel=settings.out_kernel, rank=rank, bias=False) + norm_cost(1)
    return linear_cost(settings.channels, inner, n, bias=False) + norm_cost(inner) + settings.depth * refine + score


def _inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return feature_map(settings, batch, grid) | {"coarse": torch.randn(batch, 1, *(-(-extent // 2) for extent in grid))}


@register(
    "reverse",
    paper="Fan et al., PraNet, MICCAI 2020, eq. 2-3",
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=_inputs,
    published={
        "ra_conv1.conv": "reduce",
        "ra_conv1.bn": "reduce_norm",
        "ra_conv2.conv": "refine.0.conv",
        "ra_conv2.bn": "refine.0.norm",
        "ra_conv3.conv": "refine.1.conv",
        "ra_conv3.bn": "refine.1.norm",
        "ra_conv4.conv": "score.conv",
        "ra_conv4.bn": "score.norm",
    },
)
class ReverseAttention(nn.Module):
    """Refines a coarse logit map with features that are weighted by one minus its probability.

    Args:
        channels: channels of the features.
        inner_channels: width of the refining convolutions (64 in the paper's two finer branches, 256 in the coarsest).
        depth: number of refining convolutions, each followed by a ReLU.
        kernel: their side; odd.
        out_kernel: side of the last convolution, to one channel; odd.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if a channel count or the depth is not positive, or as ``shared.layers.conv``.
    """

    def __init__(
        self, *, channels: int, inner_channels: int = 64, depth: int = 2, kernel: int = 3, out_kernel: int = 3, rank: int = 2
    ) -> None:
        super().__init__()
        if min(channels, inner_channels, depth) < 1:
            raise ValueError(f"must be positive: channels={channels}, inner_channels={inner_channels}, depth={depth}")
        self.reduce = conv(channels, inner_channels, kernel=1, rank=rank, bias=False)
        self.reduce_norm = norm(inner_channels, rank=rank)
        self.refine = nn.ModuleList(ConvNorm(inner_channels, inner_channels, kernel=kernel, rank=rank) for _ in range(depth))
        self.score = ConvNorm(inner_channels, 1, kernel=out_kernel, rank=rank)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """x: features [B, C, *spatial]; coarse: logits [B, 1, *any]. Returns refined logits [B, 1, *spatial]."""
        coarse = resize(coarse, x.shape[2:])
        attention = torch.sigmoid(-coarse)
        if recording():
            note(GivenMap(attention))
        # The reducing convolution is linear, 1x1 and without bias: weighting its output equals weighting its input, on fewer values.
        x = self.reduce_norm(self.reduce(x) * attention)
        for layer in self.refine:
            x = F.relu(layer(x))
        return self.score(x) + coarse

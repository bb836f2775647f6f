"""Triplet attention: channels and positions meet by turning the feature map.

Misra et al., "Rotate to Attend: Convolutional Triplet Attention Module", WACV 2021, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, norm_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv, norm

__all__ = ["TripletAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    values = settings.channels * math.prod(grid)
    pooled = [values // extent for extent in (*grid, *([settings.channels] if settings.spatial else []))]
    layer = conv_cost(2, 1, 1, kernel=settings.kernel, rank=settings.rank, bias=False)
    return Cost(len(pooled) * (layer + norm_cost(1)).parameters, layer.macs * sum(pooled))


@register(
    "triplet",
    paper="Misra et al., Triplet attention, WACV 2021, section 3",
    ranks=(1, 2, 3),
    cost=_cost,
    published={
        "cw.conv.conv": "scores.0",
        "cw.conv.bn": "norms.0",
        "hc.conv.conv": "scores.1",
        "hc.conv.bn": "norms.1",
        "hw.conv.conv": "scores.2",
        "hw.conv.bn": "norms.2",
    },
)
class TripletAttention(nn.Module):
    """Triplet attention: averages gates that each look along all axes but one, channels being one of the axes.

    A branch takes the maximum and the mean along its axis and convolves what is left, so that channels meet the other axes without a
    bottleneck. In two dimensions there are three branches: over rows, over columns and, as in CBAM, over channels.

    Args:
        channels: channels of the feature map; any number works, this one is for tables and configs.
        kernel: side of the convolutions; odd.
        spatial: whether there is a branch over channels.
        rank: number of spatial axes, 1 to 3; published for 2.

    Raises:
        ValueError: if ``channels`` is not positive, or as ``shared.layers.conv``.
    """

    def __init__(self, *, channels: int, kernel: int = 7, spatial: bool = True, rank: int = 2) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, not {channels}")
        branches = rank + spatial
        self.scores = nn.ModuleList(conv(2, 1, kernel=kernel, rank=rank, bias=False) for _ in range(branches))
        self.norms = nn.ModuleList(norm(1, rank=rank, momentum=0.01) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        gate = x.new_zeros(())
        # The spatial axes, then channels, for which nothing is turned.
        for axis, score, normalise in zip((*range(2, x.ndim), 1), self.scores, self.norms, strict=False):
            turned = x.transpose(1, axis)
            pooled = torch.cat([turned.amax(1, keepdim=True), turned.mean(1, keepdim=True)], dim=1)
            gate = gate + torch.sigmoid(normalise(score(pooled))).transpose(1, axis)
        gate = gate / len(self.scores)
        if recording():
            note(GivenMap(gate))
        return x * gate

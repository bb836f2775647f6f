"""Efficient local attention: one strip of averages along each axis, read by a one-dimensional convolution.

Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", 2024, section 3.
"""

from __future__ import annotations

from functools import reduce
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, norm_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv

__all__ = ["EfficientLocalAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, groups = settings.channels, settings.groups or settings.channels
    strips = conv_cost(channels, channels, sum(grid), kernel=settings.kernel, rank=1, groups=groups, bias=False)
    return strips + norm_cost(channels)


@register(
    "ela",
    paper="Xu and Wan, ELA, 2024, section 3",
    ranks=(1, 2, 3),
    cost=_cost,
    published={"conv": "score", "gn": "norm"},
)
class EfficientLocalAttention(nn.Module):
    """Efficient local attention (ELA): gates each channel along each axis, by its means over the other axes.

    One convolution and one group normalisation read the strips of all axes; the gate of a position is the product over its axes.
    The defaults are the paper's ELA-B. The others: T is kernel 5 and 32 norm groups; S is kernel 5, L kernel 7, both with
    ``groups=channels // 8``.

    Args:
        channels: channels of the feature map.
        kernel: length of the convolution along a strip; odd.
        groups: of the convolution; ``channels`` by default, which is depthwise.
        norm_groups: groups of channels that are normalised together, within each strip.

    Raises:
        ValueError: if ``groups`` or ``norm_groups`` does not divide ``channels``, or the kernel is even.
    """

    def __init__(self, *, channels: int, kernel: int = 7, groups: int | None = None, norm_groups: int = 16) -> None:
        super().__init__()
        groups = channels if groups is None else groups
        if min(channels, groups, norm_groups) < 1 or channels % groups or channels % norm_groups:
            raise ValueError(f"groups={groups} and norm_groups={norm_groups} must divide channels={channels}")
        self.score = conv(channels, channels, kernel=kernel, groups=groups, rank=1, bias=False)
        self.norm = nn.GroupNorm(norm_groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        gate = reduce(mul, (self._strip(x, axis) for axis in range(2, x.ndim)))
        if recording():
            note(GivenMap(gate))
        return x * gate

    def _strip(self, x: Tensor, axis: int) -> Tensor:
        """The gate of one axis: [B, C, ...] with that axis's extent, and 1 for the others."""
        others = tuple(other for other in range(2, x.ndim) if other != axis)
        strip = x.mean(others) if others else x
        gate = torch.sigmoid(self.norm(self.score(strip)))
        return gate.reshape(*gate.shape[:2], *(x.shape[axis] if other == axis else 1 for other in range(2, x.ndim)))

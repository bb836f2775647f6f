"""Against attention maps that overfocus: tokens pooled before they attend, and a loss that makes queries look at different places.

Guo et al., "Robustifying Token Attention for Vision Transformers", ICCV 2023, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, norm_cost
from shared.attention.maps import AttentionMap, GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import ConvNorm, conv

__all__ = ["TokenAveragePooling", "diversification_loss"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    scales, n, rank = settings.scales, math.prod(grid), settings.rank
    predictor = conv_cost(settings.channels, scales, n, kernel=3, rank=rank, bias=False)
    return predictor + norm_cost(scales) + conv_cost(scales, scales, n, kernel=3, rank=rank, bias=False)


@register(
    "tap",
    paper="Guo et al., TAP and ADL, ICCV 2023, section 3",
    ranks=(1, 2, 3),
    cost=_cost,
    published={"predictor.proj.0": "reduce.conv", "predictor.proj.1": "reduce.norm", "predictor.proj.2": "score"},
)
class TokenAveragePooling(nn.Module):
    """Token-aware average pooling (TAP): each position chooses, softly, over how large a surrounding it is averaged.

    The choices are the position itself and means over windows of three positions a side, one to ``scales - 1`` apart; what lies
    outside the map counts as 0. Made to stand before the attention of a transformer block, within its residual branch.

    Args:
        channels: channels of the feature map.
        scales: number of choices; at least 2. (The published code's own default is 1, which does nothing.)
        rank: number of spatial axes, 1 to 3; published for 2.

    Raises:
        ValueError: if ``channels`` is not positive, ``scales`` is less than 2, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, scales: int = 4, rank: int = 2) -> None:
        super().__init__()
        if channels < 1 or scales < 2:
            raise ValueError(f"channels={channels} must be positive, and scales={scales} at least 2")
        self.reduce = ConvNorm(channels, scales, kernel=3, rank=rank)
        self.score = conv(scales, scales, kernel=3, rank=rank, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        weights = torch.softmax(self.score(self.reduce(x)), dim=1)
        if recording():
            note(GivenMap(weights))
        pooled = x * weights[:, :1]
        for distance in range(1, weights.shape[1]):
            pooled = pooled + _window_mean(x, distance) * weights[:, distance : distance + 1]
        return pooled


def _window_mean(x: Tensor, distance: int) -> Tensor:
    """The mean of 3 positions along each axis, so far apart; zeros outside. One axis after another: a window of 3 ** axes in 3 * axes."""
    for axis in range(2, x.ndim):
        extent = x.shape[axis]
        padded = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [distance, distance])
        x = (padded.narrow(axis, 0, extent) + x + padded.narrow(axis, 2 * distance, extent)) / 3
    return x


def diversification_loss(maps: Iterable[Tensor | AttentionMap], threshold: float = 2.0) -> Tensor:
    """How alike the queries of each layer look: cosines between their rows and the mean row, averaged; to be added to a training loss.

    Weights of at most ``threshold`` divided by the number of keys count as 0, in the rows and in the mean row; a row without any larger
    weight has a cosine of 0. The published code removes every axis of one element, so that for a single sample it takes the mean over
    keys in place of queries, and answers 0.

    Args:
        maps: one for each layer: as ``record`` gives them (the ``values()`` of a recording), or averaged over heads, [B, queries, keys].
        threshold: in units of a uniform map's weights.

    Returns:
        A scalar between 0 and 1; maps that were recorded pass gradients on.

    Raises:
        ValueError: if there are no maps, or one is not of the shape [B, queries, keys].
    """
    losses = []
    for found in maps:
        weights = found.mean() if isinstance(found, AttentionMap) else found
        if weights.ndim != 3:
            raise ValueError(f"a map must be averaged over heads, [B, queries, keys], not {tuple(weights.shape)}")
        weights = weights if weights.dtype == torch.float64 else weights.float()
        least = threshold / weights.shape[-1]
        rows, mean = (torch.where(each > least, each, 0.0) for each in (weights, weights.mean(1, keepdim=True)))
        losses.append(F.cosine_similarity(mean, rows, dim=-1).mean())
    if not losses:
        raise ValueError("there are no maps to compare")
    return torch.stack(losses).mean()

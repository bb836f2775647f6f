"""Codes for places that are not on a fixed grid: learned, continuous, in any number of dimensions.

Li et al., "Learnable Fourier features for multi-dimensional spatial positional encoding", NeurIPS 2021, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, linear_cost
from shared.attention.registry import register

__all__ = ["FourierPositions", "grid_positions"]


def grid_positions(grid: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """The centres of a grid's cells as fractions of its extent: [N, rank], each value in (0, 1), first axis first."""
    centres = [(torch.arange(extent, device=device) + 0.5) / extent for extent in grid]
    return torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).flatten(0, -2)


def _inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return {"positions": torch.rand(batch, math.prod(grid), settings.groups * settings.rank)}


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    features = settings.channels // 4 * 2 if settings.features is None else settings.features
    rows = settings.groups * math.prod(grid)
    angles = linear_cost(settings.rank, features // 2, rows, bias=False)
    inner = settings.inner_channels
    return angles + linear_cost(features, inner, rows) + linear_cost(inner, settings.channels // settings.groups, rows)


@register(
    "fourier_positions",
    paper="Li et al., learnable Fourier features, NeurIPS 2021, algorithm 1",
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=_inputs,
    published={"Wr": "frequency", "mlp.0": "hidden", "mlp.2": "out"},
)
class FourierPositions(nn.Module):
    """Learnable Fourier position encoding: sines and cosines of learned frequencies, then a small network.

    Of the sines and cosines alone, the product of two points' falls off with their distance, at the start as a Gaussian with standard
    deviation ``gamma ** 2``.

    Args:
        channels: width of the code; a multiple of ``groups``.
        groups: how many points make one position (2 for the corners of a box); each gives ``channels // groups`` channels, from the
            same weights.
        features: number of sines and cosines together, even; half of ``channels`` by default.
        inner_channels: width of the hidden layer.
        gamma: frequencies start with standard deviation ``gamma ** -2``, as algorithm 1 has it.
        rank: number of coordinates of a point.

    Raises:
        ValueError: if ``groups`` does not divide ``channels``, ``features`` is odd, or a number is not positive.
    """

    def __init__(
        self,
        *,
        channels: int,
        groups: int = 1,
        features: int | None = None,
        inner_channels: int = 32,
        gamma: float = 1.0,
        rank: int = 2,
    ) -> None:
        super().__init__()
        features = channels // 4 * 2 if features is None else features
        if min(channels, groups, features, inner_channels, rank) < 1 or gamma <= 0:
            raise ValueError(
                f"must be positive: channels={channels}, groups={groups}, features={features}, inner_channels={inner_channels}, "
                f"gamma={gamma}, rank={rank}"
            )
        if channels % groups:
            raise ValueError(f"groups={groups} must divide channels={channels}")
        if features % 2:
            raise ValueError(f"features must be even, not {features}")
        self.groups, self.rank = groups, rank
        self.frequency = nn.Linear(rank, features // 2, bias=False)
        nn.init.normal_(self.frequency.weight, std=gamma**-2)
        self.hidden = nn.Linear(features, inner_channels)
        self.out = nn.Linear(inner_channels, channels // groups)

    def forward(self, positions: Tensor) -> Tensor:
        """positions: [B, N, groups * rank], the points of a position one after the other; in any unit. Returns [B, N, C]."""
        return self.out(F.gelu(self.hidden(self.features(positions)))).flatten(-2)

    def features(self, positions: Tensor) -> Tensor:
        """Cosines and sines, so scaled that each point's squares sum to 1/2: [B, N, groups, features]."""
        points = positions.unflatten(-1, (self.groups, self.rank))
        weight = self.frequency.weight
        # An angle of many turns has no fraction left in half precision.
        with torch.autocast(positions.device.type, enabled=False):
            angles = F.linear(points.to(weight.dtype), weight)
        return torch.cat([angles.cos(), angles.sin()], dim=-1) * (2 * weight.shape[0]) ** -0.5

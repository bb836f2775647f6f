"""High-order attention: gates from products of several projections of the same position.

Chen et al., "Mixed High-Order Attention Network for Person Re-Identification", ICCV 2019, section 3.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import mul
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, linear_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv

__all__ = ["HighOrderAttention"]


def _width(channels: int) -> int:
    return channels // 8 * 2


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, order, n = settings.channels, settings.order, math.prod(grid)
    inner = _width(channels) if settings.inner_channels is None else settings.inner_channels
    factors = linear_cost(channels, inner * (order * (order + 1) // 2), n, bias=False)
    return factors + order * linear_cost(inner, channels, n, bias=False)


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' "order3_2_1.0" is the first of two factors in a block of order 3, whose maps "convb3_2.0" makes."""
    factors, ours = {}, {}
    for key, value in state.items():
        numbers = [int(part) for part in key.partition(".")[0].split("_")[1:]]
        if key.startswith("order"):
            factors[tuple(numbers)] = value
        else:
            ours[f"out.{numbers[0] - 1}.weight"] = value
    return ours | {"factors.weight": torch.cat([factors[place] for place in sorted(factors)])}


@register("high_order", paper="Chen et al., MHN, ICCV 2019, section 3", ranks=(1, 2, 3), cost=_cost, published=_published)
class HighOrderAttention(nn.Module):
    """High-order attention: each position is scaled by gates from products of one, two, ... projections of its channels.

    A product of j projections tells apart what j of them agree on; the gates of all orders up to the highest are averaged.

    Args:
        channels: channels of the feature map.
        order: the highest order.
        inner_channels: width of the projections; a quarter of ``channels`` by default, rounded down to an even number.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``order`` or a width is not positive: without ``inner_channels``, ``channels`` must be at least 8.
    """

    def __init__(self, *, channels: int, order: int = 3, inner_channels: int | None = None, rank: int = 2) -> None:
        super().__init__()
        inner = _width(channels) if inner_channels is None else inner_channels
        if min(inner, order) < 1:
            raise ValueError(f"must be positive: order={order}, inner_channels={inner} (of channels={channels})")
        self.order = order
        self.factors = conv(channels, inner * (order * (order + 1) // 2), kernel=1, rank=rank, bias=False)
        self.out = nn.ModuleList(conv(inner, channels, kernel=1, rank=rank, bias=False) for _ in range(order))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        factors = iter(self.factors(x).chunk(self.order * (self.order + 1) // 2, dim=1))
        gate = x.new_zeros(())
        for count, out in enumerate(self.out, start=1):
            product = reduce(mul, (next(factors) for _ in range(count)))
            gate = gate + torch.sigmoid(out(F.relu(product)))
        gate = gate / self.order
        if recording():
            note(GivenMap(gate))
        return x * gate

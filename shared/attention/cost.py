"""What a block costs, as formulas: nothing is built or run to know it.

Multiply-adds are those of matrix products and convolutions, per sample; sums, norms, activations and softmaxes are not counted, as is
usual. ``tests/shared/attention/test_registry.py`` holds every formula against torch's own counter and the real parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cost", "attention_cost", "conv_cost", "linear_cost", "norm_cost", "product_cost"]

Grid = Sequence[int]


@dataclass(frozen=True)
class Cost:
    """Trainable parameters, and multiply-adds for one sample. Costs add up, and multiply by a count."""

    parameters: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs)

    def __mul__(self, count: int) -> Cost:
        return Cost(self.parameters * count, self.macs * count)

    __rmul__ = __mul__


def linear_cost(channels: int, out_channels: int, positions: int, *, bias: bool = True) -> Cost:
    """A linear layer, or a convolution with a kernel of one, at so many positions."""
    return Cost(channels * out_channels + bias * out_channels, channels * out_channels * positions)


def conv_cost(
    channels: int, out_channels: int, positions: int, *, kernel: int | Sequence[int], rank: int = 2, groups: int = 1, bias: bool = True
) -> Cost:
    """A convolution with so many output positions."""
    taps = kernel**rank if isinstance(kernel, int) else math.prod(kernel)
    weights = channels // groups * out_channels * taps
    return Cost(weights + bias * out_channels, weights * positions)


def norm_cost(channels: int) -> Cost:
    """A normalisation with a weight and a bias per channel."""
    return Cost(2 * channels, 0)


def attention_cost(queries: int, keys: int, channels: int) -> Cost:
    """Queries times keys, and weights times values, with ``channels`` summed over the heads.

    Where keys and values differ in width, that of the wider: the fused kernels want one, and ``attend`` fills up with zeros.
    """
    return Cost(0, 2 * queries * keys * channels)


def product_cost(*sizes: int) -> Cost:
    """A matrix product: its three sizes, and how often it is done."""
    return Cost(0, math.prod(sizes))

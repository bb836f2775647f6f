"""Uniform attention: every position receives the mean of all.

Hyeon-Woo et al., "Scratching visual transformer's back with uniform attention", ICCV 2023, section 3: context broadcasting.
"""

from __future__ import annotations

from torch import Tensor, nn

from shared.attention.cost import Cost
from shared.attention.maps import LinearMap
from shared.attention.recording import note, recording
from shared.attention.registry import register

__all__ = ["UniformAttention"]


@register(
    "uniform", paper="Hyeon-Woo et al., context broadcasting, ICCV 2023, section 3", ranks=(1, 2, 3), cost=lambda settings, grid: Cost()
)
class UniformAttention(nn.Module):
    """Uniform attention (context broadcasting): adds to each position the mean over all, which softmax attention learns with effort.

    Args:
        channels: channels of the feature map; any number works, this one is for tables and configs.

    Raises:
        ValueError: if ``channels`` is not positive.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, not {channels}")

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        axes = tuple(range(2, x.ndim))
        mean = x.mean(axes, keepdim=True)
        if recording():
            value, received = (each.flatten(2).mT.unsqueeze(1) for each in (x, mean.expand_as(x)))
            ones = value.new_ones(*value.shape[:3], 1)
            note(LinearMap(ones, ones, value, normaliser=1 / value.shape[2]), received)
            mean = received.squeeze(1).mT.reshape(x.shape)
        return x + mean

"""Focal modulation: what surrounds a position is gathered at several scales first, and meets its query afterwards.

Yang et al., "Focal Modulation Networks", NeurIPS 2022, section 3, equations 3 to 6.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, linear_cost, norm_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv

__all__ = ["FocalModulation"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, levels, n = settings.channels, settings.levels, math.prod(grid)
    total = linear_cost(channels, 2 * channels + levels + 1, n) + 2 * linear_cost(channels, channels, n)
    for level in range(levels):
        side = settings.kernel + settings.growth * level
        total += conv_cost(channels, channels, n, kernel=side, rank=settings.rank, groups=channels, bias=False)
    return total + norm_cost(channels) * settings.normalise


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors work on [B, *spatial, C]: two of their layers are linear that are convolutions with a kernel of one here."""
    names = {"f": "project", "h": "mix", "proj": "out", "ln": "norm", "focal_layers": "context"}
    ours = {}
    for key, value in state.items():
        layer, _, rest = key.partition(".")
        if layer in ("f", "proj") and value.ndim == 2:
            value = value.reshape(*value.shape, *(1 for _ in state["h.weight"].shape[2:]))
        ours[f"{names[layer]}.{rest.replace('.0.', '.')}"] = value
    return ours


@register(
    "focal",
    paper="Yang et al., FocalNet, NeurIPS 2022, eq. 3-6",
    ranks=(1, 2, 3),
    cost=_cost,
    published=_published,
)
class FocalModulation(nn.Module):
    """Focal modulation: multiplies each query by a gated sum of its surroundings, from near to the whole map.

    Depthwise convolutions, one after another, widen what each position has seen; the last level is the mean over all positions. Recorded
    are the gates, [B, levels + 1, *spatial], and the modulator, [B, C, *spatial], whose norm over channels is the usual picture.

    Args:
        channels: channels of the feature map.
        kernel: side of the first level's convolution; odd.
        levels: number of convolutions.
        growth: how much wider each convolution is than the one before; even.
        average: whether the sum of the levels is divided by their number.
        normalise: whether the modulated queries are layer-normalised before the last projection.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` or ``levels`` is not positive, or as ``shared.layers.conv``.
    """

    def __init__(
        self,
        *,
        channels: int,
        kernel: int = 3,
        levels: int = 3,
        growth: int = 2,
        average: bool = False,
        normalise: bool = False,
        rank: int = 2,
    ) -> None:
        super().__init__()
        if min(channels, levels) < 1:
            raise ValueError(f"must be positive: channels={channels}, levels={levels}")
        self.average = average
        self.project = conv(channels, 2 * channels + levels + 1, kernel=1, rank=rank)
        self.context = nn.ModuleList(
            conv(channels, channels, kernel=kernel + growth * level, groups=channels, rank=rank, bias=False) for level in range(levels)
        )
        self.mix = conv(channels, channels, kernel=1, rank=rank)
        self.norm = nn.LayerNorm(channels) if normalise else nn.Identity()
        self.out = conv(channels, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        channels, levels = x.shape[1], len(self.context)
        query, context, gates = self.project(x).split([channels, channels, levels + 1], dim=1)
        gathered = 0.0
        for level, layer in enumerate(self.context):
            context = F.gelu(layer(context))
            gathered = gathered + context * gates[:, level : level + 1]
        whole = F.gelu(context.mean(tuple(range(2, x.ndim)), keepdim=True))
        gathered = gathered + whole * gates[:, levels:]
        modulator = self.mix(gathered / (levels + 1) if self.average else gathered)
        if recording():
            note(GivenMap(gates), part="gates")
            note(GivenMap(modulator), part="modulator")
        return self.out(self.norm((query * modulator).movedim(1, -1)).movedim(-1, 1))

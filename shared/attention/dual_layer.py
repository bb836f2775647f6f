"""A dual attention layer: convolutions around position or channel attention.

Sinha and Dolz, "Multi-scale self-guided attention for medical image segmentation", IEEE JBHI 2021, section III-B.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, norm_cost
from shared.attention.dual import ChannelAttention, PositionAttention
from shared.attention.registry import cost_of, find, register
from shared.layers import ConvNorm
from shared.layers.folding import fold_bias

__all__ = ["DualLayer"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n, rank = settings.channels, math.prod(grid), settings.rank
    inner = settings.out_channels or channels // 2
    around = conv_cost(channels, inner, n, kernel=3, rank=rank, bias=False) + conv_cost(inner, inner, n, kernel=3, rank=rank, bias=False)
    if settings.attention == "position":
        attention = cost_of("pam", grid, channels=inner, reduction=settings.reduction, rank=rank)
    else:
        attention = cost_of("cam", grid, channels=inner)
    return around + 2 * norm_cost(inner) + Cost(2) + attention


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"attn.0": "before.conv", "attn.1": "before.norm", "attn.2": "before_slope", "attn.3": "attention"}
    names |= {"attn.4": "after.conv", "attn.5": "after.norm", "attn.6": "after_slope"}
    inside = find("pam").published
    renamed = {}
    for name, value in fold_bias(fold_bias(state, conv="attn.0", norm="attn.1"), conv="attn.4", norm="attn.5").items():
        first, index, rest = name.split(".", 2)
        theirs, dot, kind = rest.partition(".")
        renamed[f"{names[f'{first}.{index}']}.{inside.get(theirs, theirs)}{dot}{kind}"] = value  # type: ignore[union-attr]
    return renamed


@register(
    "dual_layer",
    paper="Sinha and Dolz, multi-scale self-guided attention, JBHI 2021, section III-B",
    ranks=(1, 2, 3),
    cost=_cost,
    published=_published,
)
@register(
    "dual_layer_channel",
    paper="Sinha and Dolz, multi-scale self-guided attention, JBHI 2021, section III-B",
    ranks=(1, 2, 3),
    cost=_cost,
    preset={"attention": "channel"},
    published=_published,
)
class DualLayer(nn.Module):
    """Position or channel attention between two convolutions, the first of which halves the channels.

    Args:
        channels: channels of the input.
        out_channels: channels of the attention and of the output; half of ``channels`` by default.
        attention: "position" (as ``pam``) or "channel" (as ``cam``).
        reduction: of the position attention's queries and keys.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``out_channels`` is not positive, or as ``PositionAttention``.
    """

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int | None = None,
        attention: Literal["position", "channel"] = "position",
        reduction: int = 8,
        rank: int = 2,
    ) -> None:
        super().__init__()
        inner = channels // 2 if out_channels is None else out_channels
        if min(channels, inner) < 1:
            raise ValueError(f"must be positive: channels={channels}, out_channels={inner}")
        self.before = ConvNorm(channels, inner, kernel=3, rank=rank)
        self.before_slope = nn.PReLU()
        if attention == "position":
            self.attention: nn.Module = PositionAttention(channels=inner, reduction=reduction, rank=rank)
        else:
            self.attention = ChannelAttention(channels=inner)
        self.after = ConvNorm(inner, inner, kernel=3, rank=rank)
        self.after_slope = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns [B, out_channels, *spatial]."""
        x = self.attention(self.before_slope(self.before(x)))
        return self.after_slope(self.after(x))

"""Subspace attention: groups of channels each have a map over all positions, for the price of a few numbers per channel.

Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks", WACV 2020, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, norm_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.layers import conv, norm
from shared.layers.pooling import max_pool

__all__ = ["SubspaceAttention"]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, subspaces, n = settings.channels, settings.subspaces, math.prod(grid)
    depthwise = conv_cost(channels, channels, n, kernel=1, groups=channels)
    return depthwise + norm_cost(channels) + conv_cost(channels, subspaces, n, kernel=1, groups=subspaces) + norm_cost(subspaces)


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors have a list of subspaces, each with its own layers: here one grouped layer holds them all."""
    ours = {}
    for theirs, name in {"conv_dws": "scale", "bn_dws": "scale_norm", "conv_point": "score", "bn_point": "score_norm"}.items():
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            parts: list[Tensor] = []
            while (key := f"subspaces.{len(parts)}.{theirs}.{kind}") in state:
                parts.append(state[key])
            if parts:
                ours[f"{name}.{kind}"] = torch.cat(parts) if parts[0].ndim else parts[0]
    return ours


@register("ulsam", paper="Saini et al., ULSAM, WACV 2020, section 3", ranks=(1, 2, 3), cost=_cost, published=_published)
@register(
    "ulsam_published",
    paper="Saini et al., ULSAM, WACV 2020, section 3",
    ranks=(1, 2, 3),
    cost=_cost,
    preset={"rectify_logits": True, "momentum": 0.9},
    published=_published,
)
class SubspaceAttention(nn.Module):
    """Ultra-lightweight subspace attention (ULSAM): each group of channels is scaled by its own softmax over all positions.

    The result is added to the input. The published code rectifies the logits before the softmax, which makes the map of a subspace
    uniform, without any gradient, as soon as all its logits are negative; and its normalisations forget all but the last batch.

    Args:
        channels: channels of the feature map.
        subspaces: number of groups of channels, each with a map.
        rectify_logits: whether negative logits become 0.
        momentum: of the running statistics of the normalisations.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``subspaces`` does not divide ``channels``, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, subspaces: int = 4, rectify_logits: bool = False, momentum: float = 0.1, rank: int = 2) -> None:
        super().__init__()
        if min(channels, subspaces) < 1 or channels % subspaces:
            raise ValueError(f"subspaces={subspaces} must divide channels={channels}")
        self.subspaces, self.rectify_logits = subspaces, rectify_logits
        self.scale = conv(channels, channels, kernel=1, groups=channels, rank=rank)
        self.scale_norm = norm(channels, rank=rank, momentum=momentum)
        self.score = conv(channels, subspaces, kernel=1, groups=subspaces, rank=rank)
        self.score_norm = norm(subspaces, rank=rank, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        found = max_pool(F.relu(self.scale_norm(self.scale(x))), 3, stride=1, padding=1)
        logits = self.score_norm(self.score(found))
        if self.rectify_logits:
            logits = F.relu(logits)
        weights = torch.softmax(logits.flatten(2), dim=-1).reshape(logits.shape)
        if recording():
            note(GivenMap(weights))
        each = x.unflatten(1, (self.subspaces, x.shape[1] // self.subspaces))
        return (each * weights.unsqueeze(2)).flatten(1, 2) + x

"""Spatial attention from a discriminator: what it looks at to tell real masks from made ones weighs the mask that is being made.

Hejrati et al., "Conditional Diffusion Model with Spatial Attention and Latent Embedding for Medical Image Segmentation" (cDAL), MICCAI
2024.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.cost import Cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import feature_map, register
from shared.layers import resize

__all__ = ["DiscriminatorAttention"]


def _inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    features = torch.randn(batch, 8, *(-(-extent // 2) for extent in grid))
    return feature_map(settings, batch, grid) | {"features": features}


@register(
    "disc_spatial",
    paper="Hejrati et al., cDAL, MICCAI 2024",
    ranks=(1, 2, 3),
    cost=lambda settings, grid: Cost(),
    inputs=_inputs,
)
class DiscriminatorAttention(nn.Module):
    """Scales each position of a mask by the mean of a discriminator's features there.

    The mean is interpolated to the mask's size, any size. It is neither squashed nor normalised: it may be negative, or large. In the
    paper no gradient flows into the discriminator from here: hand over ``features.detach()``.

    Args:
        channels: channels of the mask; any number works, this one is for tables and configs.

    Raises:
        ValueError: if ``channels`` is not positive.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, not {channels}")

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """x: mask [B, C, *spatial]; features: of a discriminator, [B, D, *any]. Returns [B, C, *spatial]."""
        attention = resize(features.mean(1, keepdim=True), x.shape[2:])
        if recording():
            note(GivenMap(attention))
        return x * attention

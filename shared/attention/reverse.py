"""Reverse attention: erase what a coarse map has found, and look for what it missed.

Fan et al., "PraNet: Parallel Reverse Attention Network for Polyp Segmentation", MICCAI 2020, section 2.3, equations 2 and 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers import ConvNorm, conv, norm, resize

__all__ = ["ReverseAttention"]


class ReverseAttention(nn.Module):
    """Refines a coarse logit map with features that are weighted by one minus its probability.

    Args:
        channels: channels of the features.
        inner_channels: width of the refining convolutions (64 in the paper's two finer branches, 256 in the coarsest).
        depth: number of refining convolutions, each followed by a ReLU.
        kernel: their side; odd.
        out_kernel: side of the last convolution, to one channel; odd.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if a channel count or the depth is not positive, or as ``shared.layers.conv``.
    """

    def __init__(
        self, *, channels: int, inner_channels: int = 64, depth: int = 2, kernel: int = 3, out_kernel: int = 3, rank: int = 2
    ) -> None:
        super().__init__()
        if min(channels, inner_channels, depth) < 1:
            raise ValueError(f"must be positive: channels={channels}, inner_channels={inner_channels}, depth={depth}")
        self.reduce = conv(channels, inner_channels, kernel=1, rank=rank, bias=False)
        self.reduce_norm = norm(inner_channels, rank=rank)
        self.refine = nn.ModuleList(ConvNorm(inner_channels, inner_channels, kernel=kernel, rank=rank) for _ in range(depth))
        self.score = ConvNorm(inner_channels, 1, kernel=out_kernel, rank=rank)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """x: features [B, C, *spatial]; coarse: logits [B, 1, *any]. Returns refined logits [B, 1, *spatial]."""
        coarse = resize(coarse, x.shape[2:])
        # The reducing convolution is linear, 1x1 and without bias: weighting its output equals weighting its input, on fewer values.
        x = self.reduce_norm(self.reduce(x) * torch.sigmoid(-coarse))
        for layer in self.refine:
            x = F.relu(layer(x))
        return self.score(x) + coarse

    def map(self, x: Tensor, coarse: Tensor) -> Tensor:
        """The attention itself, [B, 1, *spatial], in (0, 1): high where the coarse map sees nothing."""
        return torch.sigmoid(-resize(coarse, x.shape[2:]))

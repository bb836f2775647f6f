"""Features of a tile without a trained network: how much of each stain, how it is spread, and at which scales it varies.

Stains are told apart after Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", 2001. For
demonstrations and tests; a foundation model of pathology sees far more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TEXTURE_FEATURES", "texture"]

_STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SCALES = 5
_NUCLEAR = (0.25, 0.5, 0.8)
TEXTURE_FEATURES = 3 * (2 + len(_QUANTILES)) + len(_NUCLEAR) + 2 * 2 * _SCALES
"""Width of the features."""


def texture(pixels: Tensor) -> Tensor:
    """Tiles in 0 to 1, float [B, 3, H, W], to [B, 44]: of three stains mean, spread and quantiles; how much is nucleus; energy by scale."""
    stains = torch.tensor(_STAINS, dtype=pixels.dtype, device=pixels.device)
    unmix = torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    density = -torch.log(pixels.clamp_min(1 / 255))
    amounts = torch.einsum("bchw,cs->bshw", density, unmix)
    flat = amounts.flatten(2)
    sampled = flat[..., :: max(1, flat.shape[-1] // 4096)]
    quantiles = torch.quantile(sampled, torch.tensor(_QUANTILES, dtype=pixels.dtype, device=pixels.device), dim=-1)
    parts = [flat.mean(-1), flat.std(-1), quantiles.movedim(0, 1).flatten(1)]
    parts += [(flat[:, 0] > limit).to(pixels.dtype).mean(-1, keepdim=True) for limit in _NUCLEAR]
    coarse = amounts[:, :2]
    for _ in range(_SCALES):  # differences of ever coarser averages
        finer, coarse = coarse, F.avg_pool2d(coarse, 2)
        band = (finer - F.interpolate(coarse, finer.shape[-2:], mode="nearest")).flatten(2)
        parts += [4 * band.abs().mean(-1), 4 * band.square().mean(-1).sqrt()]
    return torch.cat([part.flatten(1) for part in parts], dim=1)

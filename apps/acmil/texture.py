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
# fmt: off
_MEAN = (
    0.281, 0.122, 0.038, 0.375, 0.201, 0.057, 0.046, -0.094, -0.037, 0.063, -0.052, 0.004, 0.096, 0.08, 0.035, 0.439,
    0.276, 0.073, 1.053, 0.433, 0.114, 0.205, 0.144, 0.121, 0.073, 0.029, 0.195, 0.074, 0.108, 0.046, 0.274, 0.102,
    0.165, 0.065, 0.395, 0.14, 0.235, 0.098, 0.498, 0.195, 0.309, 0.153, 0.563, 0.266,
)
_SPREAD = (
    0.197, 0.106, 0.061, 0.233, 0.077, 0.076, 0.018, 0.216, 0.091, 0.042, 0.171, 0.067, 0.335, 0.128, 0.144, 0.542,
    0.146, 0.146, 0.61, 0.124, 0.173, 0.138, 0.115, 0.108, 0.034, 0.017, 0.081, 0.073, 0.055, 0.022, 0.115, 0.059,
    0.091, 0.026, 0.158, 0.047, 0.127, 0.037, 0.197, 0.06, 0.176, 0.061, 0.28, 0.093,
)
# fmt: on
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
    features = torch.cat([part.flatten(1) for part in parts], dim=1)
    # Each in its own spread over tiles of phantoms, as trained encoders' features are: else the large ones would be learnt from alone. And
    # within three of them: a speck of ink is as far out as it gets.
    return 3 * torch.tanh((features - features.new_tensor(_MEAN)) / features.new_tensor(_SPREAD) / 3)

"""Sliding windows beside MONAI's at equal answers: a network that computes, and one so light that blending is the work."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from torch import Tensor, nn

from shared.inference.sliding import Blend, sliding_slabs, sliding_window

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class ThreeViews(nn.Module):
    """Three channels from one, at the cost of writing them."""

    def forward(self, windows: Tensor) -> Tensor:
        return torch.cat([windows, -windows, windows / 2], dim=1)


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2), num_res_units=1).eval()


CASES = {
    "U-Net, 96^3, windows of 48^3": (unet, (96, 96, 96), (48, 48, 48), 4),
    "light network, 224^3, windows of 48^3": (ThreeViews, (224, 224, 224), (48, 48, 48), 4),
    "light network, 256 x 256 x 160, windows of 96^3": (ThreeViews, (256, 256, 160), (96, 96, 96), 2),
}


@pytest.mark.parametrize("way", ["MONAI", "sliding_window", "MONAI, then labels", "labels slab by slab"])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("case", CASES)
def test_half_overlapping_windows(measure, case: str, blend: Blend, way: str) -> None:
    make, size, window, batch_size = CASES[case]
    network, volume = make().to(DEVICE), torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    how = {"window": window, "batch_size": batch_size, "blend": blend}

    @torch.no_grad()
    def monai() -> Tensor:
        return sliding_window_inference(volume, window, batch_size, network, overlap=0.5, mode=blend)[0]

    def labels() -> Tensor:
        found = torch.empty(size, dtype=torch.uint8, device=DEVICE)
        for start, stop, values in sliding_slabs(volume[0], network, **how):
            found[start:stop] = values.max(0).indices
        return found

    ways = {
        "MONAI": monai,
        "sliding_window": partial(sliding_window, volume[0], network, **how),
        "MONAI, then labels": lambda: monai().max(0).indices.to(torch.uint8),
        "labels slab by slab": labels,
    }
    # The answers are at most about 5, and differ by the rounding of float32.
    torch.testing.assert_close(ways["sliding_window"](), ways["MONAI"](), rtol=0, atol=1e-5)
    measure(f"{case}, {blend}, {DEVICE}", way, ways[way], images=1, rounds=5, tensors_only=True)

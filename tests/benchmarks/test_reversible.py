"""Training steps of the reversible 3D U-Net: time and peak memory by way of gradients, over depth and volume size.

Memory is what torch's allocator gave out, so its inequalities are exact and asserted; times are printed.
"""

from __future__ import annotations

import pytest
import torch

from apps.reversible_unet.blocks import bottlenecks
from apps.reversible_unet.model import Memory, ReversibleUNet
from shared.attention.measure import peak_bytes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHANNELS = (16, 32, 64)
WAYS: tuple[Memory, ...] = ("plain", "checkpoint", "reversible")


def network(memory: Memory, *, depth: int, chunks: int = 1) -> ReversibleUNet:
    torch.manual_seed(0)
    half = bottlenecks(levels=len(CHANNELS), chunks=(chunks, 1, 1))
    return ReversibleUNet(channels=CHANNELS, half=half, encoder_depth=depth, memory=memory).to(DEVICE)


def step(model: ReversibleUNet, size: tuple[int, int, int]) -> None:
    image = torch.randn(1, 4, *size, device=DEVICE)
    torch.autograd.grad(model(image).square().mean(), list(model.parameters()))
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak(model: ReversibleUNet, size: tuple[int, int, int]) -> int:
    step(model, size)
    return peak_bytes(lambda: step(model, size), device=DEVICE)


@pytest.mark.parametrize("size", [(24, 24, 24), (32, 32, 32)], ids=str)
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("way", [*WAYS, "reversible, top level in 8 chunks"])
def test_training_step(measure, size: tuple[int, int, int], depth: int, way: str) -> None:
    model = network("reversible", depth=depth, chunks=8) if "chunks" in way else network(way, depth=depth)  # type: ignore[arg-type]
    group = f"reversible U-Net, {' x '.join(map(str, size))}, {depth} blocks a level, {DEVICE}"
    measure(group, way, lambda: step(model, size), images=1, rounds=2, tensors_only=True)


def test_memory_is_flat_in_the_number_of_blocks(benchmark) -> None:
    shallow, deep = (network("reversible", depth=depth) for depth in (1, 4))
    gradients = 4 * sum(weight.numel() for weight in deep.parameters()) - 4 * sum(weight.numel() for weight in shallow.parameters())
    found = benchmark.pedantic(lambda: [peak(model, (24, 24, 24)) for model in (shallow, deep)], rounds=1)
    assert found[1] - found[0] <= 2 * gradients  # of which a convolution may hold a copy
    assert peak(network("plain", depth=4), (24, 24, 24)) > 1.5 * peak(network("plain", depth=1), (24, 24, 24))


def test_three_times_the_volume_trains_in_the_memory_of_the_ordinary_network(benchmark) -> None:
    budget = peak(network("plain", depth=2), (16, 16, 24))
    found = benchmark.pedantic(lambda: peak(network("reversible", depth=2, chunks=8), (32, 24, 24)), rounds=1)  # 3 times the voxels
    assert found <= budget

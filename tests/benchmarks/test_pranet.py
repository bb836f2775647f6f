"""PraNet at 352 x 352: training step and inference, by batch, precision and engine, beside plain eager fp32."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from apps.pranet.inference import PraNetPredictor, Settings
from apps.pranet.losses import structure_loss
from apps.pranet.model import PraNet
from shared.devices import autocast, resolve_device
from shared.inference.optimise import optimise, prepack

SIZE = 352
DEVICE = resolve_device("auto")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
BATCHES = pytest.mark.parametrize("batch", [1, 16])


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.fixture(scope="module")
def network() -> PraNet:
    torch.manual_seed(0)
    return PraNet().to(DEVICE).eval()


def forward(network: Callable[[Tensor], Tensor], x: Tensor, precision: str) -> Tensor:
    with torch.inference_mode(), autocast(precision, DEVICE):
        result = network(x)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return result


@BATCHES
@pytest.mark.parametrize(
    "way",
    [
        "eager, four maps as published fp32",
        "channels-last fp32",
        "folded fp32",
        "as PraNetPredictor does fp32",
        pytest.param("folded, compiled fp32", marks=needs_compiler),
        "eager bf16",
        "folded bf16",
    ],
)
def test_inference(measure, network: PraNet, batch: int, way: str) -> None:
    x, precision = images(batch), way.rsplit(" ", 1)[1]
    run: Callable[[Tensor], Tensor] = network
    if "four maps" in way:
        run = lambda image: network.side_outputs(image)[-1]  # noqa: E731
    elif "eager" not in way:
        x = x.to(memory_format=torch.channels_last)
        run = copy.deepcopy(network).to(memory_format=torch.channels_last) if way.startswith("channels-last") else optimise(network)
        if way == "as PraNetPredictor does fp32" and DEVICE.type == "cpu":
            prepack(run)
    if "compiled" in way:
        run = torch.compile(run)
    expected = forward(network, images(batch), "fp32")
    found = forward(run, x, precision).float()
    if precision == "fp32":  # the same answer: rounding alone, in units of the logits' own spread
        assert (found - expected).abs().max() < 1e-4 * expected.std()
    call = partial(forward, run, x, precision)
    measure(f"inference, batch {batch}, {DEVICE.type}", way, call, images=batch, rounds=5 if batch == 1 else 3)


@BATCHES
@pytest.mark.parametrize(
    "way", ["eager fp32", "channels-last fp32", pytest.param("compiled fp32", marks=needs_compiler), "eager bf16", "channels-last bf16"]
)
def test_training_step(measure, batch: int, way: str) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if "channels-last" in way else torch.contiguous_format
    network, precision = PraNet().to(DEVICE, memory_format=layout).train(), way.rsplit(" ", 1)[1]
    x = images(batch).to(memory_format=layout)
    mask = (images(batch)[:, :1] > 0).float()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    outputs = torch.compile(network.side_outputs) if "compiled" in way else network.side_outputs

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast(precision, DEVICE):
            logits = outputs(x)
        torch.stack([structure_loss(one.float(), mask) for one in logits]).sum().backward()
        torch.nn.utils.clip_grad_value_(network.parameters(), 0.5)
        optimiser.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    measure(f"training step, batch {batch}, {DEVICE.type}", way, step, images=batch, rounds=3 if batch == 1 else 2)


@pytest.mark.parametrize(("height", "width"), [(576, 720), (1080, 1920)])
@pytest.mark.parametrize("way", ["network alone", "predict() and summary()"])
def test_frame_to_prediction(measure, network: PraNet, height: int, width: int, way: str) -> None:
    """A whole frame, with resizing both ways and the measurements, beside the network alone."""
    predictor = PraNetPredictor(network, Settings(), device=str(DEVICE), precision="fp32")
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    x = images(1).to(memory_format=torch.channels_last)
    call = partial(forward, predictor.network, x, "fp32") if way == "network alone" else lambda: predictor.predict(frame).summary()
    measure(f"one {width} x {height} frame, {DEVICE.type}", way, call, images=1)

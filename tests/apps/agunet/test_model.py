"""The networks are the published ones in size and alignment, each part can be switched off, and they train in all their parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apps.agunet.model import AGUNet, DAUNet, PublishedChannelAttention, Upsampling
from shared.attention import ChannelAttention, record
from shared.attention.measure import peak_bytes
from shared.layers import ConvNorm

Make = Callable[..., AGUNet | DAUNet]

SMALL = (4, 6, 8)
"""Two poolings, and the narrowest bottom that position attention takes."""

both = pytest.mark.parametrize("make", [AGUNet, DAUNet])


def small(make: Make, *, seed: int = 0, **settings: Any) -> AGUNet | DAUNet:
    """A network in which nothing is idle: scales that start at 0, where a new block does nothing, are 0.5."""
    torch.manual_seed(seed)
    network = make(**{"channels": SMALL} | settings)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    return network


def volume(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def count_as_keras(network: nn.Module) -> int:
    """Weights, moving statistics, and the bias that Keras has in each convolution before a normalisation, where it does nothing."""
    idle = sum(module.norm.num_features for module in network.modules() if isinstance(module, ConvNorm))
    statistics = sum(buffer.numel() for name, buffer in network.named_buffers() if "running_" in name)
    return sum(parameter.numel() for parameter in network.parameters()) + statistics + idle


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: AGUNet(), 18_663_932),
        (lambda: AGUNet(multi_scale_input=False, deep_supervision=False), 16_411_958),
        (lambda: DAUNet(), 31_044_090),
        (lambda: DAUNet(multi_scale_input=False, deep_supervision=False, guidance=False), 23_557_572),
    ],
    ids=["AGUNet", "AGUNet plain", "DAUNet", "DAUNet plain"],
)
def test_it_has_as_many_parameters_as_the_published_network(make: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        assert count_as_keras(make()) == count


@pytest.mark.parametrize("make", [AGUNet, DAUNet, lambda **settings: DAUNet(channel_attention=PublishedChannelAttention, **settings)])
def test_it_begins_and_normalises_as_keras_does(make: Make) -> None:
    network = make(channels=SMALL)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            taps = module.weight[0, 0].numel()
            limit = (6 / (taps * (module.in_channels + module.out_channels))) ** 0.5  # Glorot and Bengio, 2010, equation 16
            assert module.weight.abs().max() <= limit
            assert module.bias is None or not module.bias.any()


@both
@torch.inference_mode()
def test_side_outputs_halve_in_size_and_the_first_is_the_prediction(make: Make) -> None:
    network = small(make, classes=3, in_channels=2).eval()
    image = volume(2, 2, 8, 16, 12)
    outputs = network.side_outputs(image)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 8, 16, 12), (2, 3, 4, 8, 6)]
    assert torch.equal(outputs[0], network(image))
    assert len(small(make, deep_supervision=False).side_outputs(volume(1, 1, 8, 8, 8))) == 1


@both
@settings(max_examples=10, deadline=None)
@given(sizes=st.tuples(*3 * [st.integers(1, 5)]))
@torch.inference_mode()
def test_every_size_that_can_be_halved_often_enough_comes_back(make: Make, sizes: tuple[int, int, int]) -> None:
    image = volume(1, 1, *(4 * size for size in sizes))
    output = small(make).eval()(image)
    assert output.shape == (1, 2, *image.shape[2:])
    assert output.isfinite().all()


@both
@pytest.mark.parametrize(("channels", "shape"), [((8, 8, 8, 8, 8), (128, 128, 140)), (SMALL, (6, 8, 8)), (SMALL, (8, 8))])
def test_a_size_that_cannot_be_halved_often_enough_is_refused_with_the_number(make: Make, channels: tuple, shape: tuple) -> None:
    network = make(channels=channels)
    with pytest.raises(ValueError, match=f"multiple of {2 ** (len(channels) - 1)}, not .*{shape[-1]}"):
        network(torch.zeros(1, 1, *shape))


@both
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"channels": (8,)}, "two or more"),
        ({"channels": (8, 0)}, "positive"),
        ({"classes": 1}, "two classes"),
        ({"in_channels": 0}, "input channel"),
    ],
)
def test_a_network_that_cannot_be_is_refused(make: Make, wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(**wrong)


def test_a_bottom_too_narrow_for_position_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        DAUNet(channels=(4, 4))
    with pytest.raises(ValueError, match="positive"):
        PublishedChannelAttention(channels=0)


@pytest.mark.parametrize(
    ("make", "part", "names"),
    [
        (AGUNet, "attention_gates", ("gate",)),
        (AGUNet, "multi_scale_input", ("look",)),
        (AGUNet, "deep_supervision", ("heads.1",)),
        (DAUNet, "dual_attention", ("attention",)),
        (DAUNet, "guidance", ("guide",)),
        (DAUNet, "multi_scale_input", ("look",)),
        (DAUNet, "deep_supervision", ("heads.1",)),
    ],
)
@torch.inference_mode()
def test_each_part_can_be_left_out_and_nothing_of_it_remains(make: Make, part: str, names: tuple[str, ...]) -> None:
    with_it, without = small(make), small(make, **{part: False}).eval()

    def parameters(network: nn.Module) -> list[str]:
        return [name for name, _ in network.named_parameters() if any(each in name for each in names)]

    assert parameters(with_it)
    assert not parameters(without)
    assert without(volume(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)


@both
def test_a_training_step_reaches_every_parameter(make: Make) -> None:
    network = small(make, dropout=0.1, seed=1).train()
    torch.stack([output.square().mean() for output in network.side_outputs(volume(2, 1, 16, 8, 8))]).sum().backward()
    # Keras has a bias in transposed convolutions too, which the normalisation after them subtracts again.
    idle = ("up.conv.bias", "guide.conv.bias")
    missed = [name for name, each in network.named_parameters() if each.grad is None or not each.grad.any()]
    assert [name for name in missed if not name.endswith(idle)] == []


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_upsampling_is_aligned_as_tensorflow_aligns_it(stride: int) -> None:
    """A kernel that is one in its middle brings voxel i to voxel i * stride + 1; where no kernel reaches, the bias is."""
    up = Upsampling(1, 1, stride)
    nn.init.zeros_(up.conv.weight)
    nn.init.constant_(up.conv.bias, 7)
    up.conv.weight.data[0, 0, 1, 1, 1] = 1
    x = volume(1, 1, 3, 4, 5)
    found = up(x)
    assert found.shape[2:] == (3 * stride, 4 * stride, 5 * stride)
    assert torch.allclose(found[:, :, 1::stride, 1::stride, 1::stride], x + 7)
    rest = found.clone()
    rest[:, :, 1::stride, 1::stride, 1::stride] = 7
    assert (rest == 7).all()


@torch.inference_mode()
def test_published_channel_attention_is_its_formula_and_what_a_channel_gives_adds_up_to_one() -> None:
    """Tolerance: float32 sums of 24 products."""
    block = PublishedChannelAttention(channels=5)
    nn.init.constant_(block.gamma, 0.7)
    x = volume(2, 5, 2, 3, 4)
    with record(block) as maps:
        found = block(x)
    flat = x.flatten(2).double().numpy()
    energy = np.einsum("bin,bjn->bij", flat, flat)
    softmax = np.exp(energy) / np.exp(energy).sum(axis=2, keepdims=True)
    expected = 0.7 * np.einsum("bni,bij->bjn", flat.transpose(0, 2, 1), softmax).reshape(x.shape) + x.numpy()
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    weights = maps[""].dense()
    assert weights.shape == (2, 1, 5, 5)
    assert torch.allclose(weights.sum(dim=2), torch.ones(2, 1, 5))
    other = ChannelAttention(channels=5)
    other.load_state_dict(block.state_dict())
    assert not torch.allclose(found, other(x), atol=1e-2)


@torch.inference_mode()
def test_every_attention_can_be_looked_at() -> None:
    image = volume(1, 1, 8, 12, 16)
    gated, dual = small(AGUNet).eval(), small(DAUNet).eval()
    with record(gated) as maps:
        logits = gated(image)
    assert {name: tuple(found.shape) for name, found in maps.items()} == {
        "decoder.1.gate": (1, 1, 4, 6, 8),
        "decoder.0.gate": (1, 1, 8, 12, 16),
    }
    assert all(0 < found.dense().min() <= found.dense().max() < 1 for found in maps.values())
    assert torch.equal(logits, gated(image))
    with record(dual) as maps:
        dual(image)
    assert {name: tuple(found.shape) for name, found in maps.items()} == {
        "attention.position": (1, 1, 24, 24),
        "attention.channel": (1, 1, 8, 8),
    }
    assert all(torch.allclose(found.dense().sum(dim=-1), torch.ones(1)) for found in maps.values())


@both
def test_activation_checkpointing_changes_memory_and_nothing_else(make: Make) -> None:
    """Bit for bit: the same operations in the same order. Dropout is drawn again alike, and statistics take each batch once."""
    network = small(make, dropout=0.2).train()
    image = volume(2, 1, 32, 32, 32)

    def step(trained: nn.Module) -> None:
        torch.manual_seed(3)
        trained.side_outputs(image)[0].square().mean().backward()

    results, memory = [], []
    for checkpointing in (False, True):
        trained = copy.deepcopy(network)
        trained.checkpointing = checkpointing
        step(trained)
        results.append((trained.state_dict(), {name: each.grad for name, each in trained.named_parameters() if each.grad is not None}))
        memory.append(peak_bytes(lambda trained=trained: step(trained)))
    for kept, again in zip(*results, strict=True):
        assert kept.keys() == again.keys()
        assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert memory[1] < 0.75 * memory[0]


@both
def test_it_compiles_without_a_break_in_training_too(make: Make) -> None:
    """The same kernels uncompiled and traced; tolerance for another order of sums. One pooling, because tracing takes its time."""
    network = small(make, channels=(3, 8), checkpointing=True, **({"attention_dropout": 0.0} if make is DAUNet else {})).train()
    image = volume(2, 1, 4, 4, 6)
    traced = copy.deepcopy(network)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for forward in (network, compiled):
        forward(image).square().mean().backward()
    assert all(
        torch.allclose(one, other, atol=1e-6)
        for one, other in zip(network.state_dict().values(), traced.state_dict().values(), strict=True)
    )
    gradients = [(one.grad, other.grad) for one, other in zip(network.parameters(), traced.parameters(), strict=True)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in gradients if one is not None and other is not None)


@both
@torch.inference_mode()
def test_it_exports_for_any_batch_and_size(make: Make) -> None:
    from torch.export import Dim, export

    network = small(make, channels=(3, 8)).eval()
    sizes = {axis: 2 * Dim(name, min=2, max=64) for axis, name in ((2, "x"), (3, "y"), (4, "z"))}
    program = export(network, (volume(2, 1, 8, 12, 16),), dynamic_shapes={"image": {0: Dim("batch", min=1, max=8), **sizes}})
    other = volume(3, 1, 16, 8, 20, seed=1)
    assert torch.allclose(program.module()(other), network(other), atol=1e-5)


@both
@torch.inference_mode()
def test_half_precision_comes_close(make: Make) -> None:
    """bfloat16 has 8 bits; the maps' energies are summed in float32, which it would not bear."""
    network = small(make).eval()
    image = volume(1, 1, 16, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(image).float().softmax(dim=1)
    assert (found - network(image).softmax(dim=1)).abs().max() < 0.03

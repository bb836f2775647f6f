"""The networks are the published ones in size, and the three ways to gradients differ in memory alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apps.reversible_unet.blocks import Bottleneck, PreactivatedConv, bottlenecks
from apps.reversible_unet.losses import dice_loss
from apps.reversible_unet.model import Memory, ReversibleUNet, UNet3D
from shared.attention.measure import peak_bytes
from shared.layers.reversible import ReversibleBlock

SMALL = (8, 16, 24)
"""Two poolings."""

modes = pytest.mark.parametrize("memory", ["checkpoint", "reversible"])
halves = pytest.mark.parametrize(
    "half",
    [PreactivatedConv, partial(PreactivatedConv, drop_path=0.3), bottlenecks(levels=3, expansion=(1, 2, 2), chunks=(2, 4, 1))],
    ids=["convolution", "stochastic depth", "bottlenecks in chunks"],
)


def small(memory: Memory = "reversible", **settings: Any) -> ReversibleUNet:
    torch.manual_seed(0)
    return ReversibleUNet(**{"channels": SMALL, "memory": memory} | settings)


def volume(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def kept_per_voxel(run: nn.Module | Callable[[Tensor], Tensor], weights: nn.Module, x: Tensor) -> float:
    """Bytes that wait for the gradients, without the weights, in float32s for each voxel of x."""
    own = {weight.untyped_storage().data_ptr() for weight in weights.parameters()}
    found: dict[int, int] = {}
    held: list[Tensor] = []  # or an address could be given away a second time

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            held.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        run(x)
    return sum(found.values()) / 4 / x[0, 0].numel()


def volumes(channels: Sequence[int]) -> float:
    """One feature map of every level, in floats for each voxel of the image."""
    return sum(width / 8**level for level, width in enumerate(channels))


def formula(channels: Sequence[int]) -> float:
    """What a reversible U-Net keeps for a voxel: of each level, what its encoder and its decoder put out, and what pooling made of it with
    indices of eight bytes; the image, and the probabilities."""
    pooled = sum(width / 8 ** (level + 1) for level, width in enumerate(channels[:-1]))
    return 2 * volumes(channels) + 3 * pooled + 4 + 3


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(ReversibleUNet, 12_365_283), (partial(ReversibleUNet, encoder_depth=2), 18_248_403), (UNet3D, 12_425_253)],
    ids=["reversible", "two blocks in each encoder level", "baseline"],
)
def test_it_has_as_many_parameters_as_the_published_network(make: Callable[[], nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        assert count(make()) == parameters


def test_a_bottleneck_has_fewer_weights_than_a_convolution_where_there_are_many_channels() -> None:
    with torch.device("meta"):
        for width in (60, 480):
            c = width // 2
            assert 2 * count(Bottleneck(channels=c, groups=30)) == 2 * (12 * c**2 + 188 * c)
            assert count(PreactivatedConv(channels=c, groups=30)) == 27 * c**2 + 2 * c
        assert count(Bottleneck(channels=240, groups=30)) < count(PreactivatedConv(channels=240, groups=30)) / 2


@halves
@modes
def test_gradients_are_those_of_the_ordinary_network(memory: Memory, half: Callable[..., nn.Module]) -> None:
    network = small(half=half, encoder_depth=2, decoder_depth=2).double()
    image, cotangent = volume(2, 4, 8, 12, 8, dtype=torch.float64).requires_grad_(), volume(2, 3, 8, 12, 8, seed=1)

    def gradients(memory: Memory) -> tuple[Tensor, ...]:
        network.memory = memory
        torch.manual_seed(1)  # for the same volumes to pass the same halves by
        return torch.autograd.grad((network(image) * cotangent).sum(), [image, *network.parameters()])

    expected = gradients("plain")
    assert sum(gradient.abs().max() > 0 for gradient in expected) > len(expected) / 2
    for one, other in zip(gradients(memory), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("half_precision", [False, True])
@modes
def test_answers_are_those_of_the_ordinary_network_to_the_last_bit(memory: Memory, half_precision: bool) -> None:
    network, plain, image = small(memory), small("plain"), volume(1, 4, 8, 12, 8)
    plain.load_state_dict(network.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half_precision):
        expected = plain(image)
        assert torch.equal(network(image), expected)
        with torch.inference_mode():
            assert torch.equal(network(image), expected)


@pytest.mark.parametrize("encoder_depth", [1, 2, 4])
def test_what_is_kept_for_gradients_does_not_grow_with_the_depth_of_reversible_levels(encoder_depth: int) -> None:
    channels, image = (8, 16, 32, 48, 64), volume(1, 4, 16, 16, 16)

    def kept(memory: Memory) -> float:
        network = small(memory, channels=channels, encoder_depth=encoder_depth)
        return kept_per_voxel(lambda x: torch.sigmoid(network(x)), network, image)

    assert kept("reversible") == pytest.approx(formula(channels))
    # Every block's input as well; the deepest decoder's is the deepest encoder's output, which is counted already.
    assert kept("checkpoint") == pytest.approx(formula(channels) + (encoder_depth + 1) * volumes(channels) - 64 / 8**4)
    assert kept("plain") > formula(channels) + 2 * (encoder_depth + 1) * volumes(channels)


@pytest.mark.parametrize(
    ("make", "floats"),
    [
        (ReversibleUNet, 195.94),
        (partial(ReversibleUNet, memory="plain"), 593.67),
        (partial(ReversibleUNet, memory="plain", encoder_depth=2), 792.60),
        (UNet3D, 371.05),
    ],
    ids=["reversible", "plain", "plain with two blocks in each encoder level", "baseline"],
)
def test_at_the_published_widths_so_much_is_kept_for_each_voxel(make: Callable[[], nn.Module], floats: float) -> None:
    """Feature maps alone; normalisations' means and deviations, which do not grow with the volume, are a thousandth in one so small."""
    network = make()
    kept = kept_per_voxel(lambda x: torch.sigmoid(network(x)), network, volume(1, 4, 16, 16, 16))
    assert kept == pytest.approx(floats, rel=1e-3)
    if make is ReversibleUNet:
        assert kept == pytest.approx(formula((60, 120, 240, 360, 480)))


@pytest.mark.parametrize("expansion", [1, 6])
def test_an_ordinary_bottleneck_block_keeps_what_the_reversible_one_saves(expansion: int) -> None:
    """C (2 + 4 e), and half of C because a half of the input keeps the whole; normalisations keep some numbers that are no maps."""
    block = ReversibleBlock(*(Bottleneck(channels=8, groups=4, expansion=expansion) for _ in range(2)))
    x = volume(1, 16, 8, 12, 8).requires_grad_()
    statistics = 2 * 3 * 2 * 4 / (8 * 12 * 8)
    assert kept_per_voxel(block.plain, block, x) == pytest.approx(16 * (2.5 + 4 * expansion) + statistics)
    assert kept_per_voxel(block, block, x) == 16


def test_the_peak_of_a_training_step_grows_with_the_weights_and_not_with_the_maps() -> None:
    """By their gradients, of which a convolution may hold another copy in its own layout; by no map of the blocks that are added. Of an
    ordinary block, at least two maps of its level wait in each half: what goes into the normalisation, and what goes into the convolution.
    """
    image = volume(1, 4, 16, 16, 16)

    def step(network: nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(network(image).sum(), list(network.parameters()))

    def growth(memory: Memory) -> tuple[int, int]:
        shallow, deep = (small(memory, encoder_depth=depth) for depth in (1, 4))
        return peak_bytes(step(deep)) - peak_bytes(step(shallow)), 4 * (count(deep) - count(shallow))

    found, weights = growth("reversible")
    assert found <= 2 * weights
    maps = 2 * volumes(SMALL) * 4 * 16**3  # of one block in each level
    assert growth("plain")[0] >= 3 * maps > 2 * weights


def test_three_times_the_volume_fits_when_bottlenecks_are_reversible() -> None:
    """The article's claim; with two blocks in each encoder level. Peaks are those of feature maps, so they are as the volumes."""
    image = volume(1, 4, 16, 16, 16)

    def peak(memory: Memory) -> int:
        network = small(memory, half=Bottleneck, encoder_depth=2)
        return peak_bytes(lambda: torch.autograd.grad(network(image).sum(), list(network.parameters())))

    assert peak("plain") > 3 * peak("reversible")


def test_the_way_to_gradients_can_be_set_anew_and_is_no_part_of_the_weights() -> None:
    network = small("plain")
    before = network.state_dict()
    network.memory = "reversible"
    assert before.keys() == network.state_dict().keys()
    with pytest.raises(ValueError, match="plain, checkpoint, reversible, not 'none'"):
        network.memory = "none"  # type: ignore[assignment]


def test_it_says_how_exactly_inputs_are_recomputed() -> None:
    network = small("plain", encoder_depth=4)
    errors = network.inversion_errors(volume(1, 4, 8, 12, 8))
    assert len(errors) == 2 * len(SMALL)
    assert 0 < max(errors) < 1e-4  # float32: about 1e-6 for each of four blocks, at values of 1 to 10
    assert network.memory == "plain"
    assert not any(level._forward_hooks for level in (*network.encoder, *network.decoder))


@pytest.mark.parametrize("make", [small, lambda: UNet3D(channels=(4, 8, 16))], ids=["reversible", "baseline"])
@given(eighths=st.tuples(*3 * [st.integers(1, 3)]), batch=st.integers(1, 2))
@settings(max_examples=5, deadline=None)
def test_logits_have_the_size_of_the_image(make: Callable[[], nn.Module], eighths: tuple[int, ...], batch: int) -> None:
    size = tuple(8 * eighth for eighth in eighths)
    with torch.inference_mode():
        assert make()(volume(batch, 4, *size)).shape == (batch, 3, *size)


@pytest.mark.parametrize("make", [small, lambda: UNet3D(channels=(4, 8, 16))], ids=["reversible", "baseline"])
def test_a_volume_of_any_size_is_filled_up_with_zeros_and_cut_back(make: Callable[[], nn.Module]) -> None:
    network, image = make(), volume(1, 4, 7, 9, 8)
    with torch.inference_mode():
        full = network(nn.functional.pad(image, [0, 0, 0, 3, 0, 1]))
        assert torch.equal(network(image), full[..., :7, :9, :8])


@pytest.mark.parametrize("make", [ReversibleUNet, UNet3D])
@pytest.mark.parametrize("shape", [(1, 3, 32, 32, 32), (4, 32, 32, 32), (1, 4, 0, 16, 16)])
def test_what_is_no_volume_is_refused(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network, image = make(), torch.empty(shape)
    with pytest.raises(ValueError, match=r"must be \[B, 4, X, Y, Z\] and not empty, not \["):
        network(image)


def test_other_tasks_have_other_channels_and_widths() -> None:
    """The hippocampus: one contrast, two structures and the background, a small volume; 12, 20 and 28 have halves that 2 divides."""
    network = ReversibleUNet(in_channels=1, out_channels=3, channels=(12, 20, 28))
    assert network.encoder[0][0].f.norm.num_groups == 2
    assert network(volume(1, 1, 35, 51, 35)).shape == (1, 3, 35, 51, 35)


def test_a_bottleneck_in_chunks_is_the_same_bottleneck() -> None:
    x = volume(2, 8, 4, 5, 6, dtype=torch.float64).requires_grad_()
    whole = Bottleneck(channels=8, groups=4, expansion=3).double()
    parts = Bottleneck(channels=8, groups=4, expansion=3, chunks=4).double()
    parts.load_state_dict(whole.state_dict())
    found = [torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()]) for block in (parts, whole)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="chunks=3 must divide the 4 groups"):
        Bottleneck(channels=8, groups=4, chunks=3)
    with pytest.raises(ValueError, match="one for each of 2 levels"):
        bottlenecks(levels=2, expansion=(1, 2, 3))


def test_the_baseline_can_be_checkpointed_and_not_reversed() -> None:
    network, image = UNet3D(channels=(4, 8)).double(), volume(1, 4, 4, 6, 4, dtype=torch.float64)
    expected = torch.autograd.grad(network(image).square().sum(), list(network.parameters()))
    network.memory = "checkpoint"
    for one, other in zip(torch.autograd.grad(network(image).square().sum(), list(network.parameters())), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="no reversible levels, not 'reversible'"):
        network.memory = "reversible"


def test_a_compiled_network_trains_alike() -> None:
    torch._dynamo.reset()
    network, image = small().double(), volume(1, 4, 8, 8, 8, dtype=torch.float64)
    weights = list(network.parameters())
    expected = torch.autograd.grad(network(image).square().sum(), weights)
    found = torch.autograd.grad(torch.compile(network, backend="aot_eager")(image).square().sum(), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"channels": (8,)}, "two or more positive widths"),
        ({"channels": (8, 15)}, "must be even"),
        ({"channels": (8, 12), "inner_groups": 4}, "multiple of inner_groups=4"),
        ({"half": [PreactivatedConv]}, "one for each of 3 widths, not 1"),
        ({"half": partial(PreactivatedConv, drop_path=1.0)}, "drop_path must be from 0 to below 1"),
        ({"inner_groups": 3}, "multiple of inner_groups=3"),
        ({"inner_groups": 0}, "multiple of inner_groups=0"),
        ({"encoder_depth": 0}, "encoder_depth=0"),
        ({"decoder_depth": -1}, "decoder_depth=-1"),
        ({"out_channels": 0}, "not 4 and 0"),
        ({"memory": "none"}, "not 'none'"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small(**settings)


def test_a_baseline_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of groups=4, not"):
        UNet3D(channels=(4, 6), groups=4)
    with pytest.raises(ValueError, match="two or more positive widths"):
        UNet3D(channels=(4,))


@pytest.mark.parametrize("make", [small, lambda: UNet3D(channels=(4, 8, 16))], ids=["reversible", "baseline"])
def test_it_learns_where_a_tumour_is(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    axes = [torch.linspace(-1, 1, size) for size in (16, 24, 16)]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(dim=0).sqrt()
    regions = torch.stack([radius < limit for limit in (0.9, 0.7, 0.5)])[None]
    image = torch.cat([regions.float(), torch.zeros(1, 1, *radius.shape)], dim=1) + 0.5 * volume(1, 4, *radius.shape)
    network = make()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.03)
    losses = []
    for _ in range(30):
        loss = dice_loss(network(image), regions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_the_package_can_be_imported_without_torch() -> None:
    code = "import sys, apps.reversible_unet; assert 'torch' not in sys.modules; assert apps.reversible_unet.UNet3D.__name__ == 'UNet3D'"
    subprocess.run([sys.executable, "-c", code], check=True)

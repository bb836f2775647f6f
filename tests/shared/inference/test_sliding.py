"""Window by window, a volume of any size is answered as MONAI answers it, with no more in memory than it takes."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import Tensor

from shared.attention.measure import peak_bytes
from shared.inference.sliding import Predict, Skip, sliding_slabs, sliding_window, with_flips

ROUNDING = 1e-5
"""Answers here are at most about 5, and up to some hundred of them are summed in float32, whose rounding is 6e-8 of each sum."""


def seeing_places(window: tuple[int, ...], channels: int = 3, seed: int = 0) -> Predict:
    """A network that answers for a voxel according to its place in the window, so that it matters how windows are placed and blended."""
    weights = torch.rand(channels, *window, generator=torch.Generator().manual_seed(seed))
    return lambda windows: windows.sum(1, keepdim=True) * weights + weights.flip(-1)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], dict]:
    rank = draw(st.integers(1, 3))
    size = tuple(draw(st.integers(1, 30 // rank)) for _ in range(rank))
    return size, {
        "window": tuple(draw(st.integers(1, 12)) for _ in range(rank)),
        "overlap": draw(st.one_of(st.floats(0, 0.9), st.lists(st.floats(0, 0.9), min_size=rank, max_size=rank))),
        "batch_size": draw(st.integers(1, 40)),
        "blend": draw(st.sampled_from(["gaussian", "constant"])),
    }


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.7, (0.1, 0.5, 0.9)])
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((24, 24, 24), (8, 8, 8)),
        ((23, 17, 29), (12, 9, 10)),
        ((5, 30, 8), (11, 10, 8)),
        ((7, 3, 5), (16, 16, 16)),
        ((37, 50), (16, 24)),
        ((9, 40), (12, 40)),
        ((101,), (25,)),
    ],
)
def test_answers_are_those_of_monai(size, window, overlap, blend) -> None:
    overlap = overlap[: len(size)] if isinstance(overlap, tuple) else overlap
    volumes, network = noise(2, 2, *size), seeing_places(window)
    expected = sliding_window_inference(volumes, window, 5, network, overlap=overlap, mode=blend)
    found = sliding_window(volumes, network, window=window, batch_size=3, overlap=overlap, blend=blend)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_answers_are_those_of_monai_in_any_case(case) -> None:
    size, how = case
    volume, network = noise(1, 1, *size), seeing_places(how["window"])
    expected = sliding_window_inference(
        volume, how["window"], how["batch_size"], network, overlap=how["overlap"], mode=how["blend"], padding_mode="constant", cval=-1.0
    )
    torch.testing.assert_close(sliding_window(volume[0], network, padding=-1.0, **how), expected[0], rtol=0, atol=ROUNDING)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_network_that_returns_its_input_returns_the_volume(case) -> None:
    size, how = case
    volume = noise(2, *size)
    torch.testing.assert_close(sliding_window(volume, lambda windows: windows, **how), volume, rtol=0, atol=ROUNDING)


@settings(max_examples=40, deadline=None)
@given(cases(), st.floats(-2, 2), st.floats(-2, 2))
def test_the_result_is_linear_in_the_answers(case, a: float, b: float) -> None:
    size, how = case
    volume = noise(1, *size)
    f, g = (seeing_places(how["window"], seed=seed) for seed in (0, 1))
    together = sliding_window(volume, lambda windows: a * f(windows) + b * g(windows), **how)
    apart = a * sliding_window(volume, f, **how) + b * sliding_window(volume, g, **how)
    torch.testing.assert_close(together, apart, rtol=0, atol=ROUNDING)


@settings(max_examples=60, deadline=None)
@given(cases(), st.booleans())
def test_slabs_follow_each_other_and_are_together_the_whole(case, batched: bool) -> None:
    size, how = case
    volume, network = noise(*[2] * batched, 1, *size), seeing_places(how["window"])
    slabs = list(sliding_slabs(volume, network, **how))
    assert [slab.start for slab in slabs] == [0, *(slab.stop for slab in slabs[:-1])]
    assert slabs[-1].stop == size[0]
    assert torch.equal(torch.cat([slab.values for slab in slabs], dim=-len(size)), sliding_window(volume, network, **how))


@settings(max_examples=40, deadline=None)
@given(cases(), st.floats(0, 0.2), st.integers(0, 99))
def test_skipping_windows_without_foreground_changes_nothing_in_the_foreground(case, share: float, seed: int) -> None:
    size, how = case
    volume, network = noise(1, *size), seeing_places(how["window"])
    foreground = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share
    expected = sliding_window(volume, network, **how)
    found = sliding_window(volume, network, skip=Skip(foreground=foreground, answer=(1, 0, 0)), **how)
    torch.testing.assert_close(found[:, foreground], expected[:, foreground], rtol=0, atol=ROUNDING)


def test_far_from_the_foreground_the_answer_is_the_stated_one_and_the_network_is_not_asked() -> None:
    foreground = torch.zeros(2, 40, 40, dtype=torch.bool)
    foreground[1, 3, 5] = True
    asked = []

    def predict(windows: Tensor) -> Tensor:
        asked.append(len(windows))
        return torch.cat([windows, windows], 1)

    skip = Skip(foreground=foreground, answer=(0.75, 0.25))
    found = sliding_window(torch.full((2, 1, 40, 40), 0.5), predict, window=(8, 8), batch_size=9, skip=skip)
    assert asked == [2]  # windows start every 4 voxels: rows 0 to 7, and columns 0 to 7 or 4 to 11
    assert found.shape == (2, 2, 40, 40)
    stated = torch.tensor([0.75, 0.25])[:, None, None]
    torch.testing.assert_close(found[0], stated.expand(2, 40, 40))
    torch.testing.assert_close(found[1, :, 8:], stated.expand(2, 32, 40))
    assert found[1, :, 3, 5].tolist() == [0.5, 0.5]


def test_without_any_foreground_the_network_is_never_asked() -> None:
    def predict(windows: Tensor) -> Tensor:
        raise AssertionError

    skip = Skip(foreground=torch.zeros(20, 20, dtype=torch.bool), answer=(1, 0))
    found = sliding_window(noise(1, 20, 20), predict, window=(8, 8), batch_size=4, skip=skip)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0])[:, None, None].expand(2, 20, 20))


def test_every_batch_but_the_last_is_full() -> None:
    asked = []

    def predict(windows: Tensor) -> Tensor:
        asked.append(len(windows))
        return windows

    sliding_window(noise(2, 1, 20, 12), predict, window=(8, 8), batch_size=5)  # 4 x 2 windows in each of two volumes
    assert asked == [5, 5, 5, 1]


def test_a_slab_comes_as_soon_as_no_later_window_reaches_it() -> None:
    asked = []

    def predict(windows: Tensor) -> Tensor:
        asked.append(len(windows))
        return windows

    slabs = sliding_slabs(noise(1, 80, 8), predict, window=(16, 8), batch_size=1)
    assert asked == []
    for number, slab in enumerate(slabs, start=1):
        assert (slab.start, slab.stop) == ((number - 1) * 8, number * 8 if number < 9 else 80)
        assert len(asked) == min(number + 1, 9)


def test_labels_of_a_long_volume_take_the_memory_of_a_few_windows() -> None:
    volume, window = noise(1, 640, 24, 24), (16, 16, 16)
    network = seeing_places(window, channels=8)
    expected = sliding_window(volume, network, window=window, batch_size=2).argmax(0)
    labels = np.empty(volume.shape[1:], np.uint8)

    def label() -> None:
        for start, stop, probability in sliding_slabs(volume, network, window=window, batch_size=2):
            labels[start:stop] = probability.argmax(0)

    # The whole result would be 8 x 640 x 24 x 24 float32, 11.8 MB. Held are a window's depth of rows (0.3 MB), a slab of half of that,
    # and a batch with its answers and what the network makes on the way (0.7 MB).
    assert peak_bytes(label) < 1.5e6
    assert np.array_equal(labels, expected)


def test_the_whole_result_takes_little_more_than_itself() -> None:
    volume, window = noise(1, 200, 48, 48), (16, 16, 16)
    network = seeing_places(window)
    whole = 3 * volume.numel() * 4
    peak = peak_bytes(functools.partial(sliding_window, volume, network, window=window, batch_size=2))
    assert whole < peak < 1.15 * whole  # a second map of its size, as for a count of the windows, would be a third more


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_memory_mapped_file_is_filled(tmp_path: Path, dtype) -> None:
    volume, window = noise(1, 640, 24, 24), (16, 16, 16)
    network = seeing_places(window)
    expected = sliding_window(volume, network, window=window, batch_size=2)
    np.save(tmp_path / "volume.npy", volume.numpy())
    source = torch.from_numpy(np.load(tmp_path / "volume.npy", mmap_mode="r+"))
    result = torch.from_numpy(np.lib.format.open_memmap(tmp_path / "result.npy", mode="w+", dtype=dtype, shape=(3, 640, 24, 24)))
    fill = functools.partial(sliding_window, source, network, window=window, batch_size=2, accumulate_on=result)
    assert peak_bytes(fill) < 1e6  # of 4.4 MB
    assert np.array_equal(np.load(tmp_path / "result.npy"), expected.to(result.dtype))


def test_answers_in_half_precision_are_summed_in_float32() -> None:
    volume = noise(1, 40, 40)
    found = sliding_window(volume, lambda windows: windows.bfloat16(), window=(16, 16), batch_size=4, overlap=0.75)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, volume.bfloat16().float(), rtol=0, atol=ROUNDING)  # bfloat16 sums would be off by 1e-2


def test_channels_last_answers_are_blended_alike() -> None:
    volume, network = noise(1, 20, 20, 20), seeing_places((8, 8, 8))
    found = sliding_window(
        volume, lambda windows: network(windows).to(memory_format=torch.channels_last_3d), window=(8, 8, 8), batch_size=3
    )
    assert torch.equal(found, sliding_window(volume, network, window=(8, 8, 8), batch_size=3))


@pytest.mark.parametrize("size", [(20, 20), (5, 20), (8, 8)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_the_network_does_to_its_windows_does_not_reach_the_volume(size, batch_size: int) -> None:
    volume = noise(1, *size)
    before = volume.clone()
    found = sliding_window(volume, lambda windows: windows.mul_(2), window=(8, 8), batch_size=batch_size)
    assert torch.equal(volume, before)
    torch.testing.assert_close(found, 2 * before, rtol=0, atol=ROUNDING)


def test_nothing_is_kept_for_gradients() -> None:
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    assert not sliding_window(noise(1, 20, 20), network, window=(8, 8), batch_size=4).requires_grad
    slabs = sliding_slabs(noise(1, 20, 20), network, window=(8, 8), batch_size=4)
    assert not next(slabs).values.requires_grad
    assert torch.is_grad_enabled()  # the caller's own code between two slabs is left alone


def test_inference_mode_may_be_inside_the_network_or_around_the_call() -> None:
    volume, network = noise(1, 20, 20), seeing_places((8, 8))
    expected = sliding_window(volume, network, window=(8, 8), batch_size=4)
    assert torch.equal(sliding_window(volume, torch.inference_mode()(network), window=(8, 8), batch_size=4), expected)
    slabs = sliding_slabs(volume, torch.inference_mode()(network), window=(8, 8), batch_size=4)
    assert torch.equal(torch.cat([slab.values for slab in slabs], 1), expected)
    with torch.inference_mode():
        assert torch.equal(sliding_window(volume, network, window=(8, 8), batch_size=4), expected)


def test_a_slab_is_the_callers_to_keep() -> None:
    volume, network = noise(1, 60, 8), seeing_places((16, 8))
    expected = sliding_window(volume, network, window=(16, 8), batch_size=2)
    for start, stop, values in sliding_slabs(volume, network, window=(16, 8), batch_size=2):
        assert torch.equal(values, expected[:, start:stop])
        values.fill_(1e6)


def test_flips_average_over_every_mirror_image_turned_back() -> None:
    windows, network = noise(2, 1, 6, 5, 4), seeing_places((6, 5, 4))
    images = [dims for count in range(3) for dims in itertools.combinations((2, 4), count)]
    expected = sum(network(windows.flip(dims)).flip(dims) for dims in images) / 4
    # Four float32 numbers of about 1 in another order.
    torch.testing.assert_close(with_flips(network, axes=(0, 2))(windows), expected, rtol=0, atol=1e-6)


def test_with_flips_a_mirrored_volume_gets_the_mirrored_answer() -> None:
    volume, network = noise(1, 24, 16), with_flips(seeing_places((8, 8)), axes=(0, 1))
    found = sliding_window(volume, network, window=(8, 8), batch_size=4)  # windows that lie alike from either end
    mirrored = sliding_window(volume.flip(1), network, window=(8, 8), batch_size=4)
    torch.testing.assert_close(mirrored.flip(1), found, rtol=0, atol=ROUNDING)


def test_flips_leave_the_windows_and_the_answers_of_the_network_alone() -> None:
    windows = noise(1, 1, 6, 6)
    before = windows.clone()
    torch.testing.assert_close(with_flips(lambda x: x, axes=(0, 1))(windows), before)
    assert torch.equal(windows, before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": (8, 8, 8)}, r"window=\[8, 8, 8\] must be \[C, \*spatial\].* 3 spatial axes.* but is \[1, 20, 20\]"),
        ({"window": (8, 0)}, r"window=\[8, 0\] must be positive"),
        ({"window": ()}, "must be positive along every axis"),
        ({"volume": torch.zeros(1, 0, 20)}, r"none empty, but is \[1, 0, 20\]"),
        ({"overlap": 1.0}, "overlap=1.0 must be at least 0 and below 1"),
        ({"overlap": -0.1}, "overlap=-0.1"),
        ({"overlap": (0.5, 0.5, 0.5)}, "one for each axis of window"),
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"predict": lambda x: [x, x]}, r"one tensor of floating type, \[4, 'K', 8, 8\], but returned list"),
        ({"predict": lambda x: x.long()}, "but returned torch.int64 numbers"),
        ({"predict": lambda x: x[..., ::2]}, r"must return \[4, 1, 8, 8\] for these windows, but returned \[4, 1, 8, 4\]"),
        ({"predict": lambda x: x[:, 0]}, r"must return \[4, 'K', 8, 8\] for these windows, but returned \[4, 8, 8\]"),
        ({"skip": Skip(foreground=torch.ones(9, 20, dtype=torch.bool), answer=(0,))}, r"bool \[20, 20\], like the volume.*\[9, 20\]"),
        ({"skip": Skip(foreground=torch.ones(20, 20), answer=(0,))}, "torch.float32"),
        ({"skip": Skip(foreground=torch.ones(20, 20, dtype=torch.bool), answer=())}, "with 0 numbers"),
        (
            {"skip": Skip(foreground=torch.ones(20, 20, dtype=torch.bool), answer=(1, 0))},
            r"must return \[4, 2, 8, 8\].*returned \[4, 1, 8, 8\]",
        ),
        (
            {"accumulate_on": torch.zeros(1, 20, 21)},
            r"to fill must be of floating type, \[1, 20, 20\], but is torch.float32, \[1, 20, 21\]",
        ),
        ({"accumulate_on": torch.zeros(1, 20, 20, dtype=torch.uint8)}, "torch.uint8"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict, message: str) -> None:
    arguments = {"volume": noise(1, 20, 20), "predict": lambda x: x, "window": (8, 8), "batch_size": 4, **changed}
    with pytest.raises(ValueError, match=message):
        sliding_window(**arguments)


def test_settings_of_slabs_are_checked_at_the_call_and_not_at_the_first_slab() -> None:
    with pytest.raises(ValueError, match="overlap"):
        sliding_slabs(noise(1, 20, 20), lambda x: x, window=(8, 8), batch_size=4, overlap=2)


def test_a_network_that_changes_its_number_of_channels_is_refused() -> None:
    counts = itertools.count(1)
    with pytest.raises(ValueError, match=r"must return \[4, 1, 8, 8\].*but returned \[4, 2, 8, 8\]"):
        sliding_window(noise(1, 20, 20), lambda x: x.repeat(1, next(counts), 1, 1), window=(8, 8), batch_size=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestOnAGPU:
    volume, window = noise(1, 640, 64, 64), (32, 32, 32)

    def predict(self, windows: Tensor) -> Tensor:
        assert windows.is_cuda
        return torch.cat([windows, -windows, windows + 1], 1).half()

    @pytest.mark.parametrize("home", ["auto", "cuda", "cpu"])
    def test_the_answer_is_that_of_the_cpu_wherever_volume_and_result_are(self, home: str) -> None:
        expected = sliding_window(self.volume, lambda x: torch.cat([x, -x, x + 1], 1).half(), window=self.window, batch_size=4)
        for volume in (self.volume, self.volume.cuda()):
            found = sliding_window(volume, self.predict, window=self.window, batch_size=4, device="cuda", accumulate_on=home)
            assert found.device.type == ("cpu" if home == "cpu" else "cuda")
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=ROUNDING)

    def test_a_result_on_the_cpu_takes_a_windows_depth_of_the_gpu(self) -> None:
        whole = 3 * self.volume.numel() * 4
        call = functools.partial(
            sliding_window, self.volume, self.predict, window=self.window, batch_size=4, device="cuda", accumulate_on="cpu"
        )
        call()
        assert peak_bytes(call, device="cuda") < whole / 4

    def test_auto_takes_the_cpu_when_the_gpu_is_full(self) -> None:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        filler = torch.empty(free - 2**28, dtype=torch.uint8, device="cuda")
        volume = noise(1, 4000, 96, 96)  # a result of 442 MB
        found = sliding_window(volume, self.predict, window=self.window, batch_size=4, device="cuda")
        del filler
        assert found.device.type == "cpu"

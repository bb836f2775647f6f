"""A network over a volume of any size, window by window: overlapping windows batched, blended, and finished slab by slab.

Windows lie where MONAI's ``sliding_window_inference`` puts them and weigh what they weigh there (Cardoso et al., "MONAI: An open-source
framework for deep learning in healthcare", 2022), so the answers are equal up to rounding. They are worked off along the first axis: once
every window over a row is blended the row is final, and can leave the device.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Blend", "Predict", "Skip", "Slab", "sliding_slabs", "sliding_window", "with_flips"]

Predict = Callable[[Tensor], Tensor]
"""Windows [b, C, *window], typed as the volume -> answers [b, K, *window] of floating type. Autocast and softmax are its own business."""

Blend = Literal["gaussian", "constant"]
"""What a voxel of a window weighs: gaussian trusts the middle more than the rim (sigma is an eighth of the window), constant all alike."""

_SHARE = 0.8
"""Of the memory that a network leaves free on its GPU, a whole result may take so much."""


class Slab(NamedTuple):
    """Rows of the first axis that no window to come will change."""

    start: int
    stop: int
    values: Tensor
    """[K, stop - start, *rest] or [B, K, stop - start, *rest], float32, where the network is."""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Windows that the network need not see, because nothing of interest is in them."""

    foreground: Tensor
    """bool [*spatial] or [B, *spatial]; a window without any True is skipped."""
    answer: Sequence[float]
    """What a skipped window answers everywhere, a number for each output channel: (1, 0, 0) where the first of three is the background."""


@torch.no_grad()
def sliding_window(
    volume: Tensor,
    predict: Predict,
    *,
    window: Sequence[int],
    batch_size: int,
    overlap: float | Sequence[float] = 0.5,
    blend: Blend = "gaussian",
    padding: float = 0.0,
    device: torch.device | str | None = None,
    accumulate_on: torch.device | str | Tensor = "auto",
    skip: Skip | None = None,
) -> Tensor:
    """The network's answer for a whole volume: at each voxel the weighted mean of the windows over it.

    Args:
        volume: [C, *spatial] or [B, C, *spatial], with any number of axes, of any size, on any device, perhaps mapped from a file.
        predict: the network. It runs without gradients, and what it does to its windows does not reach the volume.
        window: the size of a window along each axis. A smaller volume is padded, half on either side, and its answer cropped.
        batch_size: how many windows are predicted together. A batch goes on into the next rows and the next volume.
        overlap: the part of a window that the next one covers, at least 0 and below 1; one number, or one for each axis.
        blend: gaussian or constant.
        padding: the value around a volume that is smaller than a window.
        device: where the network is; by default where the volume is. The volume goes there a window's depth at a time.
        accumulate_on: where the result shall be. "auto" is ``device`` if the result fits into the memory that the network leaves free, else
            the CPU. A tensor of the result's shape and any floating type, perhaps mapped from a file, is filled and returned. Unless the
            result lies on ``device``, no more of it than a window's depth is ever there.
        skip: windows to leave out. Wherever ``skip.foreground`` is True, the result is what it is without skipping.

    Returns:
        [K, *spatial] or [B, K, *spatial], float32.

    Raises:
        ValueError: if shapes or settings do not fit together; names what was found and what was expected.
    """
    grid = _grid(volume, window, overlap)
    answers = _Answers(volume, predict, grid, batch_size=batch_size, padding=padding, device=device, skip=skip)
    store = _store(accumulate_on, answers)
    deque(_blended(answers, store, blend), maxlen=0)
    return store.result if answers.batched else store.result[0]


def sliding_slabs(
    volume: Tensor,
    predict: Predict,
    *,
    window: Sequence[int],
    batch_size: int,
    overlap: float | Sequence[float] = 0.5,
    blend: Blend = "gaussian",
    padding: float = 0.0,
    device: torch.device | str | None = None,
    skip: Skip | None = None,
) -> Iterator[Slab]:
    """As ``sliding_window``, but slab after slab, so that the whole result need not exist anywhere. A label map, for instance::

        labels = np.empty(volume.shape[1:], np.uint8)
        for start, stop, probability in sliding_slabs(volume, predict, window=(96, 96, 96), batch_size=4):
            labels[start:stop] = probability.max(0).indices.cpu()  # on a CPU several times faster than argmax(0)

    The slabs follow each other without gap or overlap and hold together what ``sliding_window`` returns. A slab is the caller's to keep.
    """
    grid = _grid(volume, window, overlap)
    answers = _Answers(volume, predict, grid, batch_size=batch_size, padding=padding, device=device, skip=skip)
    return _slabs(answers, blend)


def with_flips(predict: Predict, *, axes: Sequence[int]) -> Predict:
    """``predict``, asked about its windows and their mirror images, turned back and averaged: test-time augmentation.

    Args:
        predict: the network; its answers should be probabilities, or logits if logits are to be averaged.
        axes: the spatial axes to mirror, from 0; every combination is asked, 8 for three axes.
    """
    combinations = [[axis + 2 for axis in chosen] for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]

    def predicted(windows: Tensor) -> Tensor:
        total = predict(windows).float() / len(combinations)
        for dims in combinations[1:]:
            total.add_(predict(windows.flip(dims)).flip(dims), alpha=1 / len(combinations))
        return total

    return predicted


@torch.no_grad()
def _slabs(answers: _Answers, blend: Blend) -> Iterator[Slab]:
    for start, stop, values in _blended(answers, _Rolling(answers.shape, answers.grid[0].extent, answers.device), blend):
        yield Slab(start, stop, values if answers.batched else values[0])


@dataclass(frozen=True)
class _Axis:
    """The windows along one axis. Where a window is larger than the volume it is the only one, and only its ``inside`` counts."""

    size: int
    window: int
    starts: Sequence[int]

    @property
    def extent(self) -> int:
        return min(self.window, self.size)

    @property
    def inside(self) -> slice:
        before = (self.window - self.extent) // 2
        return slice(before, before + self.extent)


def _grid(volume: Tensor, window: Sequence[int], overlap: float | Sequence[float]) -> list[_Axis]:
    rank = len(window)
    overlaps = list(overlap) if isinstance(overlap, Sequence) else [overlap] * rank
    if rank < 1 or min(window) < 1:
        raise ValueError(f"window={list(window)} must be positive along every axis")
    if volume.ndim not in (rank + 1, rank + 2) or not volume.numel():
        expected = f"[C, *spatial] or [B, C, *spatial] with {rank} spatial axes, none empty"
        raise ValueError(f"a volume for window={list(window)} must be {expected}, but is {list(volume.shape)}")
    if len(overlaps) != rank or not all(0 <= each < 1 for each in overlaps):
        raise ValueError(f"overlap={overlap} must be at least 0 and below 1: one number, or one for each axis of window={list(window)}")
    return [_axis(*each) for each in zip(volume.shape[-rank:], window, overlaps, strict=True)]


def _axis(size: int, window: int, overlap: float) -> _Axis:
    """Windows at equal steps, the last one drawn back to end where the volume ends."""
    last = max(size - window, 0)
    return _Axis(size, window, [*range(0, last, max(int(window * (1 - overlap)), 1)), last])


class _Window(NamedTuple):
    start: int
    """The first row that it covers."""
    image: int
    """Which volume of the batch."""
    place: tuple[slice, ...]
    """What it covers of the other axes."""


class _Answers:
    """The windows in the order of their first rows, each with the answer inside the volume: [K, *extent], or [K, 1, ...] if skipped."""

    def __init__(
        self,
        volume: Tensor,
        predict: Predict,
        grid: Sequence[_Axis],
        *,
        batch_size: int,
        padding: float,
        device: torch.device | str | None,
        skip: Skip | None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be positive")
        self.batched = volume.ndim == len(grid) + 2
        self.volume = volume if self.batched else volume[None]
        self.predict, self.grid, self.batch_size, self.padding = predict, grid, batch_size, padding
        self.device = torch.empty(0, device=volume.device if device is None else device).device  # "cuda" becomes cuda:0, to compare with
        self.channels = None if skip is None else len(skip.answer)
        self.foreground = None if skip is None else _foreground(skip, self.volume, self.batched)
        answer = () if skip is None else tuple(skip.answer)
        self.skipped = torch.tensor(answer, dtype=torch.float32, device=self.device).reshape(-1, *[1] * len(grid))
        self.windows = self._cut()
        self.ready: deque[tuple[_Window, Tensor]] = deque()

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, K, *spatial] of the result. The network has run once when this is known."""
        if not self.ready:
            self._predict()
        return len(self.volume), len(self.ready[0][1]), *self.volume.shape[2:]

    def __iter__(self) -> Iterator[tuple[_Window, Tensor]]:
        while self.ready or self._predict():
            yield self.ready.popleft()

    def _cut(self) -> Iterator[tuple[_Window, Tensor | None]]:
        """Each window with its part of the volume, or with None if it is to be skipped."""
        first, *others = self.grid
        places = list(itertools.product(*([slice(start, start + axis.extent) for start in axis.starts] for axis in others)))
        for start in first.starts:
            rows = slice(start, start + first.extent)
            voxels = self.volume[:, :, rows].to(self.device)
            wanted = None if self.foreground is None else self.foreground[:, rows].any(1)
            for image, place in itertools.product(range(len(voxels)), places):
                skipped = wanted is not None and not wanted[(image, *place)].any()
                yield _Window(start, image, place), None if skipped else voxels[(image, slice(None), slice(None), *place)]

    def _predict(self) -> bool:
        """Makes another batch ready, with the skipped windows on its way. False if there are no more windows."""
        taken: list[tuple[_Window, bool]] = []
        parts: list[Tensor] = []
        for window, part in self.windows:
            taken.append((window, part is None))
            if part is not None:
                parts.append(part)
            if len(parts) == self.batch_size:
                break
        answers = iter(self._asked(torch.stack(parts)) if parts else ())
        self.ready.extend((window, self.skipped if skipped else next(answers)) for window, skipped in taken)
        return bool(taken)

    def _asked(self, windows: Tensor) -> Tensor:
        around = [side for axis in reversed(self.grid) for side in (axis.inside.start, axis.window - axis.inside.stop)]
        if any(around):
            windows = F.pad(windows, around, value=self.padding)
        answers = self.predict(windows)
        shape = [len(windows), self.channels or "K", *(axis.window for axis in self.grid)]
        if not isinstance(answers, Tensor) or not answers.is_floating_point():
            found = f"{answers.dtype} numbers" if isinstance(answers, Tensor) else type(answers).__name__
            raise ValueError(f"predict must return one tensor of floating type, {shape}, but returned {found}")
        if self.channels is None and answers.ndim == len(shape):
            self.channels = shape[1] = answers.shape[1]
        if list(answers.shape) != shape:
            raise ValueError(f"predict must return {shape} for these windows, but returned {list(answers.shape)}")
        return answers[(slice(None), slice(None), *(axis.inside for axis in self.grid))]


def _foreground(skip: Skip, volume: Tensor, batched: bool) -> Tensor:
    """bool [B, *spatial], on the CPU."""
    expected = [len(volume), *volume.shape[2:]] if batched else list(volume.shape[2:])
    found = skip.foreground
    if list(found.shape) != expected or found.dtype != torch.bool or not skip.answer:
        what = f"{found.dtype} {list(found.shape)} with {len(skip.answer)} numbers"
        raise ValueError(f"skip needs foreground as bool {expected}, like the volume, and a number for each output channel, but has {what}")
    return (found if batched else found[None]).cpu()


def _blended(answers: _Answers, store: _InPlace | _Rolling | _Poured, blend: Blend) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, values [B, K, stop - start, *rest]) of one slab after another."""
    grid = answers.grid
    weights = _WEIGHTS[blend]([axis.window for axis in grid])[tuple(axis.inside for axis in grid)].to(answers.device)
    coverage = _Coverage(weights, grid)
    start = 0
    for window, answer in answers:
        if window.start != start:
            yield start, window.start, store.finish(start, window.start, coverage.rows(start, window.start))
            start = window.start
        part = store.rows(start)[window.image][(slice(None), slice(None), *window.place)]
        part.addcmul_(answer.contiguous().float(), weights)
        del answer  # or the whole batch would be held while the next one is predicted
    yield start, grid[0].size, store.finish(start, grid[0].size, coverage.rows(start, grid[0].size))


def _store(wanted: torch.device | str | Tensor, answers: _Answers) -> _InPlace | _Poured:
    """Where to gather the result: see ``accumulate_on`` of sliding_window."""
    shape, depth, device = answers.shape, answers.grid[0].extent, answers.device
    if isinstance(wanted, Tensor):
        expected = list(shape if answers.batched else shape[1:])
        if list(wanted.shape) != expected or not wanted.is_floating_point():
            raise ValueError(f"the tensor to fill must be of floating type, {expected}, but is {wanted.dtype}, {list(wanted.shape)}")
        return _Poured(wanted if answers.batched else wanted[None], depth, device)
    if wanted != "auto":
        home = torch.empty(0, device=wanted).device
    elif device.type == "cpu" or (device.type == "cuda" and 4 * math.prod(shape) <= _SHARE * torch.cuda.mem_get_info(device)[0]):
        home = device
    else:
        home = torch.device("cpu")
    return _InPlace(torch.zeros(shape, device=home), depth) if home == device else _Poured(torch.empty(shape, device=home), depth, device)


def _gaussian(window: Sequence[int]) -> Tensor:
    """exp(-d^2 / 2 sigma^2) of the distance d to the middle, sigma an eighth of the window, and never below a thousandth."""
    weights = torch.ones(())
    for size in window:
        distance = torch.arange(size) - (size - 1) / 2
        weights = weights[..., None] * torch.exp(-(distance**2) / (2 * (size / 8) ** 2))
    return weights.clamp(min=1e-3)


_WEIGHTS: dict[Blend, Callable[[Sequence[int]], Tensor]] = {"gaussian": _gaussian, "constant": torch.ones}


class _Coverage:
    """The sum of the weights of all windows over each voxel.

    The grid of windows is a product of its axes, so that the sum is taken one axis after another, whatever the weights; along the first
    axis for the rows of one slab only. Between the ends of the volume it repeats from slab to slab.
    """

    def __init__(self, weights: Tensor, grid: Sequence[_Axis]) -> None:
        self.weights, self.grid = weights, grid
        self.kept: tuple[tuple[int, ...], Tensor] = ((), weights)

    def rows(self, start: int, stop: int) -> Tensor:
        """[stop - start, *rest] for rows that begin with a window; later windows do not reach them."""
        first, *others = self.grid
        offsets = [start - each for each in first.starts if start - first.extent < each <= start]
        key = (stop - start, *offsets)
        if self.kept[0] != key:
            total = self.weights.new_zeros(stop - start, *self.weights.shape[1:])
            for offset in offsets:
                part = self.weights[offset : offset + stop - start]
                total[: len(part)] += part
            for dim, axis in reversed(list(enumerate(others, start=1))):
                total = _spread(total, dim, axis)
            self.kept = key, total
        return self.kept[1]


def _spread(part: Tensor, dim: int, axis: _Axis) -> Tensor:
    """The sum of ``part`` put at every start of the axis."""
    total = part.new_zeros(*part.shape[:dim], axis.size, *part.shape[dim + 1 :])
    for start in axis.starts:
        total.narrow(dim, start, axis.extent).add_(part)
    return total


class _InPlace:
    """Sums that grow in the result itself, [B, K, *spatial]."""

    def __init__(self, result: Tensor, depth: int) -> None:
        self.result, self.depth = result, depth

    def rows(self, start: int) -> Tensor:
        """The sums of the rows that a window at ``start`` covers."""
        return self.result[:, :, start : start + self.depth]

    def finish(self, start: int, stop: int, coverage: Tensor) -> Tensor:
        """The means, once no window to come reaches these rows."""
        return self.result[:, :, start:stop].div_(coverage)


class _Rolling:
    """As _InPlace, with the sums of a window's depth of rows and no more."""

    def __init__(self, shape: Sequence[int], depth: int, device: torch.device) -> None:
        self.sums = torch.zeros((*shape[:2], depth, *shape[3:]), device=device)

    def rows(self, start: int) -> Tensor:
        return self.sums

    def finish(self, start: int, stop: int, coverage: Tensor) -> Tensor:
        done, depth = stop - start, self.sums.shape[2]
        slab = self.sums[:, :, :done] / coverage
        for low in range(0, depth - done, done):  # pieces that do not overlap with where they come from
            high = min(low + done, depth - done)
            self.sums[:, :, low:high] = self.sums[:, :, low + done : high + done]
        self.sums[:, :, depth - done :] = 0
        return slab


class _Poured:
    """As _Rolling, with finished rows copied to a result [B, K, *spatial] that lies elsewhere."""

    def __init__(self, result: Tensor, depth: int, device: torch.device) -> None:
        self.result, self.rolling = result, _Rolling(result.shape, depth, device)

    def rows(self, start: int) -> Tensor:
        return self.rolling.rows(start)

    def finish(self, start: int, stop: int, coverage: Tensor) -> Tensor:
        return self.result[:, :, start:stop].copy_(self.rolling.finish(start, stop, coverage))

"""What one training step needs: counted without running it, at any size, or measured by running it.

Counted figures add up every tensor that every operation makes, as long as it lives. The step runs on torch's meta device, on which tensors
have sizes and no content, so the largest network is counted on any machine. Not counted is what kernels take for themselves and give
back: cuDNN's workspaces, copies in other layouts, gaps between the allocator's blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from apps.reversible_unet.blocks import PreactivatedConv, bottlenecks
from apps.reversible_unet.config_memory import NetworkConfig
from apps.reversible_unet.model import Memory, ReversibleUNet, UNet3D
from shared.attention.measure import fastest_ms, peak_bytes

__all__ = ["Measured", "Step", "count_peak", "count_step", "make_network", "measure_step", "weight_bytes"]

MOMENTS = 2
"""Of each weight, kept by Adam."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A counted training step, in bytes of float32."""

    parameters: int
    """How many, not bytes."""
    kept: int
    """Feature maps that wait for their gradients when the forward pass is over."""
    peak: int
    """Most that lives at once in the whole step, with the weights, their gradients and Adam's moments."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A training step that was run."""

    peak: int
    """Most bytes that torch held at once during forward and backward pass, above what it held before: without weights and moments."""
    counted: int
    """The same, counted."""
    milliseconds: float
    """Of one, after two that do not count."""
    device: str


def make_network(settings: NetworkConfig, memory: Memory, *, device: str = "meta") -> ReversibleUNet:
    """The network of these settings, in training mode; on the meta device it has no weights.

    Raises:
        ValueError: as ``ReversibleUNet`` and ``bottlenecks``.
    """
    levels = len(settings.channels)
    expansion, chunks = (values * levels if len(values) == 1 else values for values in (settings.expansion, settings.chunks))
    with torch.device(device):
        return ReversibleUNet(
            in_channels=settings.in_channels,
            out_channels=settings.out_channels,
            channels=settings.channels,
            encoder_depth=settings.encoder_depth,
            decoder_depth=settings.decoder_depth,
            half=PreactivatedConv if settings.block == "convolution" else bottlenecks(levels=levels, expansion=expansion, chunks=chunks),
            memory=memory,
        )


def count_step(network: ReversibleUNet | UNet3D, size: Sequence[int], *, batch: int = 1) -> Step:
    """Counts a step of a network that is on the meta device, on volumes of this size in voxels; each region's probability is kept too."""
    kept = _Kept(network)
    with _Living(), torch.autograd.graph.saved_tensors_hooks(kept, lambda value: value):
        logits = network(_image(network, size, batch))
        torch.sigmoid(logits)
    return Step(parameters=_parameters(network), kept=kept.bytes, peak=count_peak(network, size, batch=batch))


def count_peak(network: ReversibleUNet | UNet3D, size: Sequence[int], *, batch: int = 1) -> int:
    """The peak of ``count_step`` alone, which is sooner counted."""
    image = _image(network, size, batch)
    return _passes(network, image) + image.nbytes + weight_bytes(_parameters(network))


def weight_bytes(parameters: int) -> int:
    """Of weights and Adam's moments; their gradients are among what a step makes."""
    return 4 * (1 + MOMENTS) * parameters


def measure_step(settings: NetworkConfig, memory: Memory, size: Sequence[int]) -> Measured:
    """Runs forward and backward passes on the first GPU, or else on the CPU, in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = make_network(settings, memory, device=device)
    image = torch.randn(1, settings.in_channels, *size, device=device)
    step = _step(network, image)
    return Measured(
        peak=peak_bytes(step, device=device),
        counted=_passes(make_network(settings, memory), image.to("meta")),
        milliseconds=fastest_ms(step, rounds=1, device=device),
        device=torch.cuda.get_device_name() if device == "cuda" else "CPU",
    )


def _image(network: ReversibleUNet | UNet3D, size: Sequence[int], batch: int) -> Tensor:
    channels = network.stem.in_channels if isinstance(network, ReversibleUNet) else network.in_channels
    return torch.empty(batch, channels, *size, device="meta")


def _parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _step(network: nn.Module, image: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(torch.sigmoid(network(image)).sum(), list(network.parameters()))


def _passes(network: nn.Module, image: Tensor) -> int:
    with _Living() as living:
        _step(network, image)()
    return living.peak


class _Kept:
    """Adds up the storages of what autograd saves, each once, without the weights."""

    def __init__(self, network: nn.Module) -> None:
        self.seen = {weight.untyped_storage()._cdata for weight in network.parameters()}
        self.held: list[Any] = []  # or an address could be given away a second time
        self.bytes = 0

    def __call__(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.held.append(value)
            self.bytes += storage.nbytes()
        return value


class _Living(TorchDispatchMode):
    """Adds up the storages that operations make, from the operation to the end of the storage's life.

    What an operation makes of tensors of some sizes is asked of torch once, as a network repeats itself: forwards, backwards, recomputed,
    and from one depth to the next.
    """

    told: ClassVar[dict[Any, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, int] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _returns_what_it_got(func):  # a view, or a change in place
            given = {value.untyped_storage()._cdata for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)}
            made = func(*args, **kwargs)
        else:
            given = set()
            key = (func, _outline(args), _outline(tuple(kwargs.items())))
            if key not in self.told:
                self.told[key] = tree_map_only(Tensor, _Size.of, _QUICK.get(func, func)(*args, **kwargs))
            made = tree_map_only(_Size, _Size.make, self.told[key])
        for value in tree_iter(made):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage(), given)
        return made

    def _add(self, storage: Any, given: set[int]) -> None:
        if storage._cdata not in given and storage._cdata not in self.living:
            self.living[storage._cdata] = storage.nbytes()
            self.total += storage.nbytes()
            self.peak = max(self.peak, self.total)
            weakref.finalize(storage, self._end, storage._cdata)

    def _end(self, address: int) -> None:
        self.total -= self.living.pop(address)


@dataclass(frozen=True)
class _Size:
    """Of a tensor on the meta device."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Tensor) -> _Size:
        return cls(tuple(value.shape), value.stride(), value.dtype)

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


@cache
def _returns_what_it_got(operation: Any) -> bool:
    schema = operation._schema
    return any(each.alias_info is not None for each in (*schema.arguments, *schema.returns))


def _outline(value: Any) -> Any:
    """Hashable: arguments with sizes in place of tensors."""
    if isinstance(value, (list, tuple)):
        return tuple(_outline(each) for each in value)
    return _Size.of(value) if isinstance(value, Tensor) else value


_QUICK: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_group_norm.default: lambda x, weight, bias, batch, channels, voxels, groups, eps: (
        torch.empty_like(x),
        x.new_empty(batch, groups),
        x.new_empty(batch, groups),
    ),
    torch.ops.aten.native_group_norm_backward.default: lambda gradient, x, mean, scale, weight, *_: (
        torch.empty_like(x),
        torch.empty_like(weight),
        torch.empty_like(weight),
    ),
    torch.ops.aten.upsample_trilinear3d.default: lambda x, size, *_: x.new_empty(*x.shape[:2], *size),
    torch.ops.aten.upsample_trilinear3d_backward.default: lambda gradient, after, before, *_: gradient.new_empty(before),
}
"""What these make. Torch takes up to a twentieth of a second to tell, because it goes through all the steps that they could be made of."""

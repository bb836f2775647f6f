"""Reversible layers: inputs are recomputed from outputs when gradients are taken, so that memory does not grow with depth.

Gomez et al., "The Reversible Residual Network: Backpropagation Without Storing Activations", NeurIPS 2017, section 3, equations 6 and 8.
A chain of any depth keeps its output alone, and costs about a third more time in training. Float32 is recomputed to about 1e-6 a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

__all__ = ["ReversibleBlock", "ReversibleSequence"]


class ReversibleBlock(nn.Module):
    """Additive coupling of the two halves of the channels: y1 = x1 + f(x2), y2 = x2 + g(y1).

    Under autocast the halves are kept in float32, and f and g run as autocast says. Random numbers that f and g draw from torch's
    generators (dropout) are drawn again alike. Gradients of gradients are not to be had.

    Args:
        f, g: any modules that keep the shape [B, C / 2, *any], without memory of former calls.

    Raises:
        ValueError: if one of them holds a normalisation with running statistics, which recomputation would update twice.
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        for name, half in (("f", f), ("g", g)):
            _refuse_running_statistics(half, name)
        self.f = f
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *any] with an even number of channels. Returns the same shape.

        Raises:
            ValueError: if the number of channels is odd.
        """
        return _run([self], x)

    def inverse(self, y: Tensor) -> Tensor:
        """The x [B, C, *any] that gave y [B, C, *any], up to rounding, if f and g draw no random numbers. Gradients are ordinary ones."""
        return _join(*self._uncouple(*_split(y)))

    def plain(self, x: Tensor) -> Tensor:
        """As ``forward``, with ordinary gradients and the ordinary memory for them."""
        return _join(*self._couple(*_split(x)))

    def _couple(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(x2).to(x1.dtype)
        return y1, x2 + self.g(y1).to(x2.dtype)

    def _uncouple(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        x2 = y2 - self.g(y1).to(y2.dtype)
        return y1 - self.f(x2).to(y1.dtype), x2


class ReversibleSequence(nn.ModuleList):
    """Reversible blocks one after the other; only the last one's output is kept for gradients.

    Args:
        blocks: each a ``ReversibleBlock``.

    Raises:
        ValueError: if one of them is something else.
    """

    def __init__(self, blocks: Iterable[ReversibleBlock] = ()) -> None:
        blocks = list(blocks)
        for index, block in enumerate(blocks):
            if not isinstance(block, ReversibleBlock):
                raise ValueError(f"blocks[{index}] must be a ReversibleBlock, not {type(block).__name__}")
        super().__init__(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *any] with an even number of channels. Returns the same shape.

        Raises:
            ValueError: if the number of channels is odd.
        """
        return _run(list(self), x)  # type: ignore[arg-type]

    def inverse(self, y: Tensor) -> Tensor:
        """As ``ReversibleBlock.inverse``."""
        y1, y2 = _split(y)
        for block in reversed(list(self)):
            y1, y2 = block._uncouple(y1, y2)  # type: ignore[operator]
        return _join(y1, y2)


def _run(blocks: Sequence[ReversibleBlock], x: Tensor) -> Tensor:
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        # In half precision every inversion would lose bits.
        x = x if x.dtype == torch.float64 else x.float()
    # An exported program has no gradients, and its tracer no use for random states.
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        x1, x2 = _split(x)
        for block in blocks:
            x1, x2 = block._couple(x1, x2)
        return _join(x1, x2)
    return _recomputed([half for block in blocks for half in (block.f, block.g)], x)


@torch._disable_dynamo  # as torch.compiler.disable, which would import the compiler, seconds of it, with this module
def _recomputed(halves: list[nn.Module], x: Tensor) -> Tensor:
    weights = {id(weight): weight for half in halves for weight in half.parameters() if weight.requires_grad}
    position = {identity: index for index, identity in enumerate(weights)}
    names = [{name: position[id(weight)] for name, weight in half.named_parameters() if weight.requires_grad} for half in halves]
    return _Recomputed.apply(x, [_Half(half, own, x) for half, own in zip(halves, names, strict=True)], *weights.values())


class _Half:
    """An f or g, and what is needed to run it once more as it ran the first time."""

    def __init__(self, module: nn.Module, weights: dict[str, int], x: Tensor) -> None:
        self.module = module
        self.weights = weights
        """Where among all the weights its own are, by their names in it."""
        devices = [device for device in {x.device.type, "cpu"} if torch.amp.is_autocast_available(device)]
        self.autocast = [(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)) for device in devices]

    def first(self, x: Tensor) -> Tensor:
        self.random_state, self.device_random_states = torch.get_rng_state(), get_device_states(x)
        with self._autocast():
            return self.module(x).to(x.dtype)

    def again(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """With these in place of its weights: a weight may have been exchanged for the forward pass alone."""
        devices, states = self.device_random_states
        with self._autocast(), torch.random.fork_rng(devices, device_type=x.device.type if devices else "cuda"):
            torch.set_rng_state(self.random_state)
            set_device_states(devices, states, device_type=x.device.type)
            return torch.func.functional_call(self.module, weights, (x,)).to(x.dtype)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with ExitStack() as stack:
            for device, dtype, enabled in self.autocast:
                # No cache: what is cast here without gradients would be found by whoever uses the same weight next.
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield


class _Recomputed(torch.autograd.Function):
    """Half blocks in turn, each adding to one half of the channels a function of the other; keeps the last one's output only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, halves: list[_Half], *weights: Tensor) -> Tensor:
        changing, other = _split(x)
        for half in halves:
            changing, other = other, changing + half.first(other)
        y = _join(changing, other)
        ctx.halves = halves
        ctx.save_for_backward(y, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, *weights = ctx.saved_tensors
        (other, changed), (other_gradient, changed_gradient) = _split(y), _split(gradient)
        totals: list[Tensor | None] = [None] * len(weights)
        for index, half in reversed(list(enumerate(ctx.halves))):
            # What went in first, nobody asks for.
            before, through, found = _undo(half, other, changed if index else None, changed_gradient, weights)
            for place, each in zip(half.weights.values(), found, strict=True):
                total = totals[place]
                totals[place] = total if each is None else each if total is None else total + each
            # The half that was added to is what it was, and takes its turn as the other one.
            other, changed = other if before is None else before, other
            through = other_gradient if through is None else other_gradient + through
            other_gradient, changed_gradient = changed_gradient, through
        del y, other, changed
        return _join(other_gradient, changed_gradient), None, *totals


def _undo(
    half: _Half, x: Tensor, changed: Tensor | None, gradient: Tensor, weights: list[Tensor]
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """What was changed by adding what the half makes of x, as it was before; and the gradients of x and of the half's weights."""
    with torch.enable_grad():
        given = x.detach().requires_grad_()
        own = {name: weights[index].detach().requires_grad_() for name, index in half.weights.items()}
        added = half.again(given, own)
    # Before the gradients, when memory is scarcest: they need not what is added, only how it came about.
    before = None if changed is None else changed - added.detach()
    if not added.requires_grad:
        return before, None, [None] * len(own)
    edge = torch.autograd.graph.get_gradient_edge(added)
    del added
    found: list[Tensor | None] = list(torch.autograd.grad(edge, [given, *own.values()], gradient, allow_unused=True))
    return before, found[0], found[1:]


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1] % 2:
        raise ValueError(f"a reversible block needs an even number of channels, not {x.shape[1]}")
    first, second = x.chunk(2, dim=1)
    return first, second


def _join(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], dim=1)


def _refuse_running_statistics(half: nn.Module, name: str) -> None:
    for place, module in half.named_modules():
        if getattr(module, "running_mean", None) is not None:
            where = ".".join(filter(None, (name, place)))
            raise ValueError(
                f"{where}, a {type(module).__name__}, has running statistics, which recomputation would update twice; "
                "use group or instance normalisation, or track_running_stats=False"
            )

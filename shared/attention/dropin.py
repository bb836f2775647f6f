"""Attention blocks into a network that exists, without changing what it answers: training decides what they become.

The blocks hang on the layers' outputs, so that every name in the network's state dict stays and pretrained weights load as before.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from shared.attention.registry import Entry, bag, create, feature_map, find, settings_of, tokens

__all__ = ["InsertedAttention", "dropin"]

NAME = "inserted_attention"
_RANKS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
_PROBES = {0: (12,), 1: (12,), 2: (12, 12), 3: (6, 6, 6)}


class InsertedAttention(nn.Module):
    """x + gate (block(x) - x), with a gate per channel that starts at 0: the identity, until training opens it.

    Args:
        block: keeps the shape of what it is given.
        channels: channels of what it is given.
        rank: spatial axes of what it is given; 0 for tokens [B, N, C].
        flatten: the block wants tokens [B, N, C] and is given feature maps.
        gridded: the block wants to know the grid of its tokens.
        gated: False for a block that starts as the identity by itself: behind two zeros no gradient would ever pass.
    """

    def __init__(self, block: nn.Module, *, channels: int, rank: int, flatten: bool, gridded: bool, gated: bool) -> None:
        super().__init__()
        self.block = block
        self.gate = nn.Parameter(torch.zeros(channels, *(1,) * rank)) if gated else None
        self._flatten, self._gridded = flatten, gridded

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial] or [B, N, C]. Returns the same shape."""
        y = self._attended(x)
        return y if self.gate is None else x + self.gate * (y - x)

    def _attended(self, x: Tensor) -> Tensor:
        if not self._flatten:
            return self.block(x)
        flat = x.flatten(2).mT
        return (self.block(flat, grid=tuple(x.shape[2:])) if self._gridded else self.block(flat)).mT.reshape(x.shape)


def dropin(model: nn.Module, *, where: str, block: str, example: Tensor | None = None, **settings: Any) -> list[str]:
    """Hangs a new block on the output of every layer called ``where``; the model answers as before until it is trained.

    Works on any network (timm, MONAI, torchvision, your own) whose chosen layers return a feature map [B, C, *spatial] or tokens [B, N, C].
    To load a trained model, build the network, call this with the same arguments, then ``load_state_dict``.

    Args:
        model: is changed in place: each of the layers gets a submodule ``inserted_attention``.
        where: names of layers as in ``model.named_modules()``, with wildcards: "decoder.*", "layer4". A layer within another one that
            matches is left alone.
        block: a name of ``list_blocks()``; it must keep the shape of its input.
        example: an input of the model, from which channels and axes of each layer are read; without one they are read from the layers'
            last convolution, normalisation or linear layer.
        settings: of the block, beside ``channels`` and ``rank``.

    Returns:
        The names of the layers that got a block.

    Raises:
        ValueError: if no layer matches, a layer's output cannot be told without an example, or the block does not fit there.
    """
    entry = find(block)
    if entry.inputs not in (feature_map, tokens, bag):
        raise ValueError(f"{block!r} takes more than one input and cannot be hung on a layer")
    layers = dict(model.named_modules())
    matching = [name for name in layers if name and fnmatchcase(name, where)]
    chosen = [name for name in matching if not any(name.startswith(f"{other}.") for other in matching)]
    if not chosen:
        raise ValueError(f"no layer matches {where!r}; there are: {', '.join(filter(None, layers))}"[:1000])
    taken = [name for name in chosen if hasattr(layers[name], NAME)]
    if taken:
        raise ValueError(f"{taken[0]} has an inserted block already")
    shapes = (
        _shapes_by_running(model, layers, chosen, example)
        if example is not None
        else {name: _shape_of(name, layers[name]) for name in chosen}
    )
    made = {name: _made(entry, name, *shapes[name], settings) for name in chosen}
    for name, inserted in made.items():
        parameter = next(layers[name].parameters(), None)
        inserted.train(layers[name].training)
        layers[name].add_module(NAME, inserted if parameter is None else inserted.to(parameter.device, parameter.dtype))
        layers[name].register_forward_hook(_apply)
    return chosen


def _apply(module: nn.Module, _: Any, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"a layer with an inserted attention block must return one tensor, not {type(output).__name__}")
    return getattr(module, NAME)(output)


def _made(entry: Entry, name: str, channels: int, rank: int, settings: dict[str, Any]) -> InsertedAttention:
    is_tokens = entry.inputs in (tokens, bag)
    if is_tokens and entry.inputs is tokens and rank == 0:
        raise ValueError(f"{name} gives tokens, and {entry.name!r} needs to know their grid")
    if (not is_tokens or entry.ranks) and rank not in entry.ranks:
        raise ValueError(
            f"{name} gives {_described(rank)}, and {entry.name!r} takes {' or '.join(_described(each) for each in entry.ranks)}"
        )
    parameters = settings_of(entry.name).__dataclass_fields__  # type: ignore[attr-defined]
    known = {"channels": channels} | ({"rank": rank} if "rank" in parameters and rank else {})
    attention = create(entry.name, **known, **settings)
    probe = torch.randn(2, channels, *_PROBES[rank]) if rank else torch.randn(2, *_PROBES[0], channels)
    inserted = InsertedAttention(
        attention, channels=channels, rank=rank, flatten=is_tokens and rank > 0, gridded=entry.inputs is tokens, gated=False
    ).eval()
    with torch.no_grad():
        answer = inserted(probe)
    if answer.shape != probe.shape:
        raise ValueError(f"{entry.name!r} turns {tuple(probe.shape)} into {tuple(answer.shape)} and cannot be hung on {name}")
    if not torch.equal(answer, probe):
        inserted.gate = nn.Parameter(torch.zeros(channels, *(1,) * rank))
    return inserted


def _described(rank: int) -> str:
    return f"feature maps of {rank} axes" if rank else "tokens"


def _shapes_by_running(model: nn.Module, layers: dict[str, nn.Module], chosen: list[str], example: Tensor) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    handles = [
        layers[name].register_forward_hook(lambda module, arguments, output, name=name: found.update({name: _shape(name, output)}))
        for name in chosen
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    idle = [name for name in chosen if name not in found]
    if idle:
        raise ValueError(f"{idle[0]} did not run on the example; narrow the pattern")
    return found


def _shape(name: str, output: Any) -> tuple[int, int]:
    """Channels and spatial axes. Three axes are tokens: 1-D feature maps have to be told by their convolution."""
    if not isinstance(output, Tensor) or not 3 <= output.ndim <= 5:
        raise ValueError(
            f"{name} gives {tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}, no feature map and no tokens"
        )
    return (output.shape[2], 0) if output.ndim == 3 else (output.shape[1], output.ndim - 2)


def _shape_of(name: str, layer: nn.Module) -> tuple[int, int]:
    modules = list(layer.modules())
    ranks = [_RANKS[type(module)] for module in modules if type(module) in _RANKS]
    for module in reversed(modules):
        for attribute in ("out_channels", "num_features", "out_features", "normalized_shape"):
            width = getattr(module, attribute, None)
            if width is not None:
                channels = width[-1] if isinstance(width, tuple) else width
                return int(channels), ranks[-1] if ranks else 0
    raise ValueError(f"what {name} gives cannot be read from its layers; pass example=, an input of the model")

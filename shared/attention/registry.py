"""Blocks by name, for configs and tables. In code, import the class.

A block enters with ``@register(...)`` on its class. Its settings are its constructor's keyword arguments, with their types and defaults:
nothing is said twice.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shared.attention.cost import Cost

__all__ = ["Entry", "bag", "cost_of", "create", "feature_map", "find", "list_blocks", "load_published", "register", "settings_of", "tokens"]

Inputs = Callable[..., dict[str, Any]]
"""(settings, batch, grid) -> the forward's arguments by name."""
Rename = Mapping[str, str] | Callable[[dict[str, Tensor]], dict[str, Tensor]]
Block = TypeVar("Block", bound=type[nn.Module])

_REQUIRED = "required"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a block."""

    name: str
    block: type[nn.Module]
    paper: str
    """Authors, title or model, venue and year, section or equation."""
    ranks: tuple[int, ...]
    """Numbers of spatial axes that it takes; () for sequences, which have none."""
    cost: Callable[[Any, tuple[int, ...]], Cost]
    """(settings, grid) -> Cost."""
    inputs: Inputs
    example: Mapping[str, Any]
    """Settings beside the required ones, for tables and tests, where the defaults do not fit a small input."""
    preset: Mapping[str, Any]
    """Settings that this name stands for: how a published form with a known fault is asked for by name."""
    published: Rename
    """The authors' state dict to ours: beginnings of names, or a function."""

    @property
    def summary(self) -> str:
        line = (inspect.getdoc(self.block) or "").partition("\n")[0]
        fixed = ", ".join(f"{key}={value!r}" for key, value in self.preset.items())
        return f"{line} Here {fixed}." if fixed else line


_entries: dict[str, Entry] = {}


def feature_map(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    """Inputs of a block that takes a feature map [B, C, *spatial]."""
    return {"x": torch.randn(batch, settings.channels, *grid)}


def tokens(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    """Inputs of a block that takes tokens [B, N, C] and needs to know their grid."""
    return {"x": torch.randn(batch, math.prod(grid), settings.channels), "grid": grid}


def bag(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    """Inputs of a block that takes tokens [B, N, C] of no known place."""
    return {"x": torch.randn(batch, math.prod(grid), settings.channels)}


def register(
    name: str,
    *,
    paper: str,
    ranks: tuple[int, ...],
    cost: Callable[[Any, tuple[int, ...]], Cost],
    inputs: Inputs = feature_map,
    example: Mapping[str, Any] | None = None,
    preset: Mapping[str, Any] | None = None,
    published: Rename | None = None,
) -> Callable[[Block], Block]:
    """Enters a block under ``name``; arguments as in ``Entry``. One class may be entered under several names with different presets.

    Raises:
        ValueError: if the name is taken.
    """

    def enter(block: Block) -> Block:
        if name in _entries:
            raise ValueError(f"two blocks are called {name!r}: {_entries[name].block.__qualname__} and {block.__qualname__}")
        _entries[name] = Entry(
            name=name,
            block=block,
            paper=paper,
            ranks=ranks,
            cost=cost,
            inputs=inputs,
            example=example or {},
            preset=preset or {},
            published=published or {},
        )
        return block

    return enter


def find(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        ValueError: if there is none; suggests the nearest.
    """
    if name not in _entries:
        raise ValueError(f"no attention block is called {name!r}{_nearest(name, _entries)}")
    return _entries[name]


def list_blocks(*, rank: int | None = None) -> Iterator[Entry]:
    """All blocks by name; with ``rank``, those that take feature maps or token grids of so many spatial axes."""
    return (entry for _, entry in sorted(_entries.items()) if rank is None or rank in entry.ranks)


def create(name: str, **settings: Any) -> nn.Module:
    """A block by name: ``create("scse", channels=64)``.

    Args:
        name: as ``list_blocks`` and ``python -m shared.attention`` show.
        settings: the constructor's arguments.

    Raises:
        ValueError: if there is no such block or no such setting (suggests the nearest), a required setting is missing, a setting is of
            the wrong type, or as the block's constructor.
    """
    entry = find(name)
    checked = _check(entry, settings)
    return entry.block(**entry.preset, **checked)


def settings_of(name: str) -> type:
    """The settings of a block as a keyword-only dataclass, for typed configs: ``settings_of("scse")(channels=64)``.

    Raises:
        ValueError: if there is no such block.
    """
    fields: list[tuple[str, Any, Any]] = []
    for key, (kind, default) in _parameters(find(name)).items():
        fields.append((key, kind, dataclasses.field(**({} if default is _REQUIRED else {"default": default}))))
    return dataclasses.make_dataclass(f"{find(name).block.__name__}Settings", fields, kw_only=True)


def cost_of(name: str, grid: tuple[int, ...], **settings: Any) -> Cost:
    """Parameters and multiply-adds of a block for one sample with so many positions along each axis. Nothing is built.

    Raises:
        ValueError: as ``create``.
    """
    entry = find(name)
    checked = _check(entry, settings)
    return entry.cost(settings_of(name)(**checked | dict(entry.preset)), tuple(grid))


def load_published(name: str, block: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the authors' weights of one block.

    Args:
        name: the block's name here.
        block: made by ``create(name, ...)``.
        state: the authors' state dict, its names beginning at this block.

    Raises:
        RuntimeError: if the weights are not this block's: names what is missing, too many or of another shape.
    """
    rename = find(name).published
    block.load_state_dict(rename(dict(state)) if callable(rename) else {_renamed(key, rename): value for key, value in state.items()})


def _renamed(key: str, prefixes: Mapping[str, str]) -> str:
    for theirs in sorted(prefixes, key=len, reverse=True):
        if key == theirs or key.startswith(f"{theirs}."):
            return f"{prefixes[theirs]}{key.removeprefix(theirs)}"
    return key


def _parameters(entry: Entry) -> dict[str, tuple[Any, Any]]:
    hints = typing.get_type_hints(entry.block.__init__)
    listed = inspect.signature(entry.block.__init__).parameters
    return {
        key: (hints.get(key, Any), entry.preset.get(key, _REQUIRED if parameter.default is parameter.empty else parameter.default))
        for key, parameter in listed.items()
        if key != "self"
    }


def _check(entry: Entry, settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in _parameters(entry).items() if key not in entry.preset}
    for key, value in settings.items():
        if key in entry.preset:
            raise ValueError(f"{entry.name}: {key} is {entry.preset[key]!r} in this form of {entry.block.__name__}")
        if key not in known:
            raise ValueError(f"{entry.name} has no setting {key!r}{_nearest(key, known)}")
        if not _fits(value, known[key][0]):
            raise ValueError(f"{entry.name}: {key} must be {_text(known[key][0])}, not {value!r}")
    missing = [key for key, (_, default) in known.items() if default is _REQUIRED and key not in settings]
    if missing:
        raise ValueError(f"{entry.name} needs {' and '.join(missing)}")
    return dict(settings)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is not None:
        is_group = isinstance(value, origin) or (isinstance(value, (list, tuple)) and issubclass(origin, (tuple, list, typing.Sequence)))
        items = [each for each in arguments if each is not Ellipsis]
        return is_group and (not items or not isinstance(value, (list, tuple)) or all(_fits(each, items[0]) for each in value))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind is type(None) else isinstance(value, kind)


def _text(kind: Any) -> str:
    return (
        kind.__name__
        if isinstance(kind, type) and not typing.get_args(kind)
        else str(kind).replace("typing.", "").replace("NoneType", "None")
    )


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known))}"

"""``with record(model) as maps``: what every attention in a network looked at, with its kernels still fused and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shared.attention.maps import AttentionMap, GivenMap, ProductMap, SoftmaxMap

__all__ = ["Recording", "note", "record", "recording", "unseen"]

Reducer = Callable[[str, AttentionMap], Any]

_fused_attention = F.scaled_dot_product_attention


class Recording(Mapping[str, Any]):
    """What was recorded, by the name of the module that attended: ``maps["blocks.3.attn"].dense(queries=0)``.

    A module that attends more than once adds the part's name ("blocks.3.attn.high") or, when called again, a number ("gate#2").
    Values are ``AttentionMap``, or whatever the reducer answered.
    """

    def __init__(self, where: str, reduce: Reducer | None, gradients: bool) -> None:
        self._where, self._reduce, self._gradients = where, reduce, gradients
        self._names: list[str] = []
        self._found: dict[str, Any] = {}
        self._calls: dict[str, int] = {}

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        lines = [f"  {name}: {list(value.shape) if hasattr(value, 'shape') else value!r}" for name, value in self._found.items()]
        return "\n".join([f"{len(self)} attention maps", *lines])

    def _add(self, found: AttentionMap, output: Tensor | None, part: str) -> None:
        if not self._names or not fnmatchcase(self._names[-1], self._where):
            return
        module = self._names[-1]
        if self._gradients and isinstance(found, GivenMap):
            found.watch()
        elif self._gradients and isinstance(found, ProductMap) and output is not None:
            found.watch(output)
        name = ".".join(filter(None, (module, part)))
        self._calls[name] = count = self._calls.get(name, 0) + 1
        name = name if count == 1 else f"{name}#{count}"
        self._found[name] = found if self._reduce is None else self._reduce(name, found)


class _State(threading.local):
    active: Recording | None = None
    unseen = False


_state = _State()


def recording() -> bool:
    """Whether maps are wanted now. Never while a graph is being traced, so that what is compiled or exported holds none of this."""
    return not torch.compiler.is_compiling() and _state.active is not None


def note(found: AttentionMap, output: Tensor | None = None, *, part: str = "") -> None:
    """Called by blocks, where ``recording()`` says so.

    Args:
        output: the product of the map and the values, before any projection; what gradients of the map are computed from.
        part: which of a block's attentions this is, if it has several.
    """
    if _state.active is not None:
        _state.active._add(found, output, part)


@contextmanager
def unseen() -> Iterator[None]:
    """What is called within is noted by its caller, who knows more of it: windows, names of parts."""
    before, _state.unseen = _state.unseen, True
    try:
        yield
    finally:
        _state.unseen = before


@contextmanager
def record(model: nn.Module, *, where: str = "*", reduce: Reducer | None = None, gradients: bool = False) -> Iterator[Recording]:
    """Records the attention of every forward pass of ``model`` within the context, in this thread.

    Blocks of this library are recorded, and any other attention that calls ``torch.nn.functional.scaled_dot_product_attention``: timm's,
    torchvision's, ``torch.nn.TransformerEncoder``'s. Outputs stay those of the fused kernels. Only queries,
    keys and values are kept, and the maps are computed when they are asked for. A compiled model runs uncompiled within the context.

    Args:
        model: any module.
        where: which modules, by name, with wildcards: "encoder.*", "*.attn".
        reduce: is called with the name and the map as soon as each attention has run, and its answer is kept instead of the map; so that
            memory does not grow with depth. ``lambda name, found: found.dense(queries=0).cpu()`` keeps the class token's rows.
        gradients: also keep what is needed for ``AttentionMap.gradient``.

    Raises:
        RuntimeError: if another recording is running in this thread.
    """
    if _state.active is not None:
        raise RuntimeError("a recording is running already; end it, or record the outer model only")
    found = Recording(where, reduce, gradients)

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if _state.active is found:
                found._names.append(name)

        return hook

    def leave(*_: Any) -> None:
        if _state.active is found and found._names:
            found._names.pop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            for handle in (module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave, always_call=True)):
                stack.callback(handle.remove)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_Watch())
        stack.callback(setattr, _state, "active", None)
        _state.active = found
        yield found


class _Watch(TorchFunctionMode):
    """Sees calls of torch's fused attention that were not made by ``attend``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:
            # Nothing that it calls reaches this mode: it is given a fused attention that tells.
            F.scaled_dot_product_attention = _telling  # type: ignore[assignment]
            try:
                return func(*args, **(kwargs or {}))
            finally:
                F.scaled_dot_product_attention = _fused_attention
        return (_telling if func is _fused_attention else func)(*args, **(kwargs or {}))


def _telling(*args: Any, **kwargs: Any) -> Tensor:
    output = _fused_attention(*args, **kwargs)
    if _state.active is not None and not _state.unseen:
        _note_fused(output, *args, **kwargs)
    return output


def _note_fused(output: Tensor, *args: Any, **kwargs: Any) -> None:
    """Arguments as torch's fused attention. Dropout is not in the map: it is drawn anew at every call."""
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
    query, key, value = given["query"], given["key"], given["value"]
    if query.ndim != 4:
        return
    if key.shape[1] != query.shape[1]:  # shared by several heads
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    attn_mask, scale = given.get("attn_mask"), given.get("scale")
    causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril() if given.get("is_causal") else None
    boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    found = SoftmaxMap(
        query,
        key,
        value,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        bias=None if boolean else attn_mask,
        mask=attn_mask if boolean else causal,
        layout=None,
    )
    note(found, output)

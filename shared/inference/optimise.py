"""Makes a trained network faster at equal output."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

__all__ = ["optimise", "prepack"]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def optimise(model: nn.Module) -> nn.Module:
    """A copy for inference: eval mode, batch norms folded into the convolutions before them, weights channels-last.

    The output is the same up to rounding. What torch.fx cannot trace as a whole is folded part by part; what it cannot trace at all stays.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model = _folded(model)
    for weight in model.parameters():
        if weight.ndim in _CHANNELS_LAST:
            weight.data = weight.data.contiguous(memory_format=_CHANNELS_LAST[weight.ndim])
    return model


def prepack(model: nn.Module) -> nn.Module:
    """``model``, changed in place: its 2-D convolutions keep their weights in the layout that oneDNN computes in, float32 on a CPU.

    Else each call brings the weights into that layout again, which on single images costs as much as a fifth of the time. The output is
    the same up to rounding; the result cannot be exported or trained. Where this torch has no oneDNN, nothing is changed.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
        return model
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d) and child.padding_mode == "zeros" and not isinstance(child.padding, str):
            setattr(model, name, _PackedConv2d(child))
        else:
            prepack(child)
    return model


class _PackedConv2d(nn.Module):
    """A Conv2d of float32 on the CPU whose weight is laid out once for images of one size, and again when the size changes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)  # type: ignore[arg-type]
        self.packed: tuple[torch.Size, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed
        if packed is None or packed[0] != x.shape[1:]:
            weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, list(x.shape))
            packed = self.packed = (x.shape[1:], weight)
        return torch.ops.mkldnn._convolution_pointwise(x, packed[1], self.bias, *self.geometry, "none", [], "")


def _folded(module: nn.Module) -> nn.Module:
    children = list(module.named_children())
    if not children:
        return module
    try:
        return fuse(module)
    except Exception:  # tracing runs the module's own code and fails in as many ways
        for name, child in children:
            setattr(module, name, _folded(child))
        return module

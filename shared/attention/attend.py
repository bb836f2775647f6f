"""Softmax attention through torch's fused kernels: the one place where queries meet keys.

Vaswani et al., "Attention is all you need", NeurIPS 2017, equation 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.attention.maps import Layout, SoftmaxMap
from shared.attention.recording import note, recording, unseen

__all__ = ["attend", "check_heads", "explain_backend", "merge_heads", "split_heads"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    layout: Callable[[], Layout] | None = None,
    part: str = "",
) -> Tensor:
    """softmax(scale q k^T + bias) v. The map is never held; ``record`` has it rebuilt where it is wanted.

    Args:
        query: [B, h, N, d].
        key: [B, h, M, d].
        value: [B, h, M, e]; e may differ from d.
        scale: d ** -0.5 by default.
        bias: added to the logits; broadcasts to [B, h, N, M].
        mask: bool, broadcasts to [B, h, N, M]; False: this key is not seen. A query that sees no key gets zeros.
        layout: for windows folded into the batch, where their tokens lie; called only when somebody records.
        part: name of this attention, for blocks that have several.

    Returns:
        [B, h, N, e].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if not recording():
        return _fused(query, key, value, scale, bias, mask)
    with unseen():
        output = _fused(query, key, value, scale, bias, mask)
    note(SoftmaxMap(query, key, value, scale=scale, bias=bias, mask=mask, layout=layout() if layout else None), output, part=part)
    return output


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    width, out_width = query.shape[-1], value.shape[-1]
    if width != out_width:
        # Fused kernels want one width. Zeros change no dot product, and cost less than a map in memory.
        short = abs(width - out_width)
        if width < out_width:
            query, key = F.pad(query, (0, short)), F.pad(key, (0, short))
        else:
            value = F.pad(value, (0, short))
    combined = None
    if mask is not None or bias is not None:
        # Of numbers, not of bools: those would be written out in the full size of the map by the kernel's preparation.
        combined = _combine(torch.zeros((), dtype=query.dtype, device=query.device) if bias is None else bias.to(query.dtype), mask)
        combined = combined.reshape((1,) * (4 - combined.ndim) + tuple(combined.shape)).expand(-1, -1, query.shape[2], key.shape[2])
    query, key, value = (_last_axis_dense(x) for x in (query, key, value))
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=combined, scale=scale)
    return output if out_width >= width else output[..., :out_width]


def _combine(bias: Tensor, mask: Tensor | None) -> Tensor:
    return bias if mask is None else torch.where(mask, bias, float("-inf"))


def _last_axis_dense(x: Tensor) -> Tensor:
    """The fused kernels refuse tensors whose last axis is strided."""
    return x if x.stride(-1) == 1 else x.contiguous()


def check_heads(channels: int, heads: int) -> None:
    """Raises ValueError if ``heads`` does not divide ``channels``."""
    if heads < 1 or channels % heads:
        raise ValueError(f"heads={heads} must divide channels={channels}")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, h d] to [B, h, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, h, N, d] to [B, N, h d]."""
    return x.transpose(1, 2).flatten(2)


def explain_backend(query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None = None, mask: Tensor | None = None) -> str:
    """Which of torch's kernels ``attend`` gets for these tensors, and why it is not a fused one. Shapes as ``attend``."""
    width = max(query.shape[-1], value.shape[-1])
    query, key, value = (F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    combined = mask if bias is None else _combine(bias, mask)
    names = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}
    chosen = names.get(torch._fused_sdp_choice(query, key, value, attn_mask=combined), "another")
    if chosen != "math":
        return f"{chosen}: fused, no map in memory"
    reasons = []
    if bias is not None and bias.requires_grad:
        reasons.append("the bias is trained, and its gradient is as large as the map")
    if query.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        reasons.append(f"the data type is {query.dtype}")
    return "math: the map is held in memory, because " + ("; ".join(reasons) or "the fused kernels refuse these shapes or are switched off")

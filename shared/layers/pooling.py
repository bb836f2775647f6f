"""Pooling in one, two or three dimensions under one name each: the input says which."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

__all__ = ["average_pool", "average_pool_to", "max_pool"]

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_AVERAGE_TO = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def max_pool(x: Tensor, kernel: int, *, stride: int | None = None, padding: int = 0) -> Tensor:
    """x: [B, C, *spatial]. Windows that reach over the far end are kept: at stride 2, sizes are halved and rounded up.

    Args:
        stride: ``kernel`` by default.
        padding: how far the first window begins before the map; nothing there is ever the largest.
    """
    # With padding the far end is covered already, and one window more would begin outside.
    return _MAX[x.ndim - 2](x, kernel, stride=stride, padding=padding, ceil_mode=not padding)


def average_pool(x: Tensor, kernel: int | tuple[int, ...]) -> Tensor:
    """x: [B, C, *spatial], averaged in windows side by side; one that reaches over the far end averages what there is."""
    return _AVERAGE[x.ndim - 2](x, kernel, ceil_mode=True, count_include_pad=False)


def average_pool_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """x: [B, C, *spatial], averaged in as many windows as ``size`` says, which overlap where they have to. Returns [B, C, *size]."""
    return _AVERAGE_TO[x.ndim - 2](x, tuple(size))  # type: ignore[arg-type]

"""Convolutions and resizing in one, two or three dimensions under one name each."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvNorm", "conv", "interpolation_mode", "norm", "resize"]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def conv(
    channels: int,
    out_channels: int,
    *,
    kernel: int | Sequence[int],
    dilation: int = 1,
    stride: int = 1,
    groups: int = 1,
    rank: int = 2,
    bias: bool = True,
) -> nn.Module:
    """A convolution that keeps the size at stride 1: [B, channels, *spatial] to [B, out_channels, *spatial].

    Args:
        kernel: side of the window, odd; one number, or one for each axis.
        groups: as many as ``channels`` for a depthwise convolution.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if a kernel side is even, ``groups`` does not divide both channel counts, or ``rank`` is not 1, 2 or 3.
    """
    if rank not in _CONV:
        raise ValueError(f"rank must be 1, 2 or 3, not {rank}")
    sides = (kernel,) * rank if isinstance(kernel, int) else tuple(kernel)
    if len(sides) != rank or any(side % 2 == 0 for side in sides):
        raise ValueError(f"kernel must be odd in each of {rank} axes, not {kernel}")
    padding = tuple(dilation * (side // 2) for side in sides)
    window = {"kernel_size": sides, "stride": stride, "padding": padding, "dilation": dilation}
    return _CONV[rank](channels, out_channels, groups=groups, bias=bias, **window)  # type: ignore[arg-type]


def norm(channels: int, *, rank: int = 2, momentum: float = 0.1) -> nn.Module:
    """Batch normalisation of [B, channels, *spatial] with ``rank`` spatial axes; ``momentum`` is how much of the last batch is kept."""
    if rank not in _NORM:
        raise ValueError(f"rank must be 1, 2 or 3, not {rank}")
    return _NORM[rank](channels, momentum=momentum)


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch normalisation. No activation.

    Args:
        channels, out_channels, kernel, dilation, stride, rank: as ``conv``.
    """

    def __init__(
        self, channels: int, out_channels: int, *, kernel: int | Sequence[int], dilation: int = 1, stride: int = 1, rank: int = 2
    ) -> None:
        super().__init__()
        self.add_module("conv", conv(channels, out_channels, kernel=kernel, dilation=dilation, stride=stride, rank=rank, bias=False))
        self.add_module("norm", norm(out_channels, rank=rank))


def interpolation_mode(x: Tensor) -> str:
    """The linear interpolation for a feature map [B, C, *spatial]: linear, bilinear or trilinear."""
    return _LINEAR[x.ndim - 2]


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """x: [B, C, *spatial], linearly interpolated (no antialias) to ``size``. Does nothing when the size is the same already."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=interpolation_mode(x), align_corners=align_corners)

"""Context-mixing convolution: every position filters its neighbourhood with kernels made from how it relates to the whole map.

Lou and Yu, "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels", CVPR 2025, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, linear_cost, norm_cost, product_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import register
from shared.attention.window_sums import relative_bias, weigh_neighbours
from shared.layers import ConvNorm, conv, norm, resize
from shared.layers.folding import merge_norm
from shared.layers.pooling import average_pool_to

__all__ = ["ContMix"]

_NARROWEST = 16
_REDUCTION = 8


def _enlarged(grid: Sequence[int], kernel: int) -> list[int]:
    short = min(grid)
    return list(grid) if short >= kernel else [extent * kernel // short for extent in grid]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, rank, n, groups = settings.channels, settings.rank, math.prod(grid), 2 * settings.heads
    wide, inner = settings.expansion * channels, max(channels // _REDUCTION, _NARROWEST)
    enlarged, pooled = math.prod(_enlarged(grid, settings.kernel)), settings.pooled**rank
    taps = settings.kernel**rank + settings.small_kernel**rank

    def depthwise(width: int, kernel: int, *, bias: bool) -> Cost:
        return conv_cost(width, width, n, kernel=kernel, rank=rank, groups=width, bias=bias)

    def projected(out_channels: int, positions: int) -> Cost:
        return linear_cost(channels, out_channels, positions, bias=False) + norm_cost(out_channels)

    position = norm_cost(channels)
    for kernel, _ in ((settings.kernel, 1), *settings.branches):
        position += depthwise(channels, kernel, bias=False) + norm_cost(channels)
    tables = groups * ((2 * settings.kernel - 1) ** rank + (2 * settings.small_kernel - 1) ** rank)
    kernels = product_cost(channels // 2, pooled, taps) + product_cost(channels // 2, taps, enlarged) + Cost(taps * (pooled + 1) + tables)
    squeeze = linear_cost(channels, inner, 1) + linear_cost(inner, channels, 1)
    out = norm_cost(channels) + linear_cost(channels, channels, n)
    mixing = projected(channels // 2, enlarged) + projected(channels // 2, pooled) + projected(channels, enlarged) + kernels
    around = 2 * depthwise(channels, 3, bias=True) + 2 * norm_cost(channels) + 2 * projected(channels, n) + Cost(4 * channels)
    perceptron = linear_cost(channels, wide, n) + depthwise(wide, 3, bias=True) + Cost(2 * wide) + linear_cost(wide, channels, n)
    return around + position + mixing + squeeze + out + perceptron


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "rpb1": "small_table",
        "rpb2": "large_table",
        "dwconv1": "local1",
        "dwconv2": "local2",
        "weight_query.0": "query.conv",
        "weight_query.1": "query.norm",
        "weight_key.1": "key.conv",
        "weight_key.2": "key.norm",
        "weight_value.0": "value.conv",
        "weight_value.1": "value.norm",
        "weight_proj": "kernels",
        "fusion_proj.0": "fuse.conv",
        "fusion_proj.1": "fuse.norm",
        "lepe.1": "position.norm",
        "se_layer.proj.1": "squeeze",
        "se_layer.proj.3": "excite",
        "gate.0": "gate.conv",
        "gate.1": "gate.norm",
        "proj.0": "out_norm",
        "proj.1": "out",
        "mlp.0": "perceptron.expand",
        "mlp.2": "perceptron.local",
        "mlp.3.gamma": "perceptron.response.weight",
        "mlp.3.beta": "perceptron.response.bias",
        "mlp.4": "perceptron.out",
        "ls1": "scale1",
        "ls2": "scale2",
    }
    branches = [name.removeprefix("lepe.0.dil_conv_").removesuffix(".weight") for name in state if name.startswith("lepe.0.dil_conv_")]
    names |= {"lepe.0.lk_origin": "position.branches.0.conv", "lepe.0.origin_bn": "position.branches.0.norm"}
    for index, branch in enumerate(branches, start=1):
        names |= {
            f"lepe.0.dil_conv_{branch}": f"position.branches.{index}.conv",
            f"lepe.0.dil_bn_{branch}": f"position.branches.{index}.norm",
        }
    renamed = {}
    for name, value in state.items():
        theirs = max((each for each in names if name == each or name.startswith(f"{each}.")), key=len, default="")
        if theirs in ("weight_proj", "mlp.3.gamma", "mlp.3.beta", "ls1", "ls2"):
            value = value.squeeze() if value.ndim > 1 else value
        renamed[names.get(theirs, "") + name.removeprefix(theirs)] = value
    return renamed


class _DepthwiseNorm(nn.Sequential):
    """A depthwise convolution, then batch normalisation."""

    def __init__(self, channels: int, kernel: int, dilation: int, rank: int) -> None:
        super().__init__()
        self.add_module("conv", conv(channels, channels, kernel=kernel, dilation=dilation, groups=channels, rank=rank, bias=False))
        self.add_module("norm", norm(channels, rank=rank))


class _PositionFilter(nn.Module):
    """A large depthwise convolution that is trained as the sum of itself and of small dilated ones."""

    def __init__(self, channels: int, kernel: int, branches: Sequence[tuple[int, int]], rank: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_DepthwiseNorm(channels, *branch, rank) for branch in ((kernel, 1), *branches))
        self.norm: Any = norm(channels, rank=rank)
        self.kernel, self.rank = kernel, rank

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return self.norm(total)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The one depthwise convolution that does the same in evaluation."""
        branches: list[Any] = list(self.branches)
        large = branches[0].conv
        total, bias = torch.zeros_like(large.weight), torch.zeros_like(branches[0].norm.bias)
        for branch in branches:
            weight, shift = merge_norm(branch.conv.weight, branch.norm)
            # A dilated kernel is a large one with zeros between its weights.
            dilation, *_ = branch.conv.dilation
            side, *_ = branch.conv.kernel_size
            span = dilation * (side - 1) + 1
            places: Any = (..., *(slice((self.kernel - span) // 2, (self.kernel + span) // 2, dilation) for _ in range(self.rank)))
            total[places] += weight
            bias += shift
        weight, shift = merge_norm(total, self.norm)
        one = conv(large.in_channels, large.in_channels, kernel=self.kernel, groups=large.groups, rank=self.rank).to(weight)
        # A sum of biases goes through the last norm like a kernel of one.
        scaled, _ = merge_norm(bias, self.norm)
        one.load_state_dict({"weight": weight, "bias": shift + scaled})
        return one


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation of each position's channels, [B, C, *spatial]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Affine(nn.Module):
    """A weight and a bias for each channel of [B, C, *spatial]."""

    def __init__(self, channels: int, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), weight))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *(1 for _ in x.shape[2:]))
        return x * self.weight.reshape(shape) + self.bias.reshape(shape)


class _Perceptron(nn.Module):
    """Widens the channels, filters each, lets them compete (Woo et al., ConvNeXt V2, CVPR 2023, section 3.2), and narrows them again."""

    def __init__(self, channels: int, inner: int, rank: int) -> None:
        super().__init__()
        self.expand = conv(channels, inner, kernel=1, rank=rank)
        self.local = conv(inner, inner, kernel=3, groups=inner, rank=rank)
        self.response = _Affine(inner, 0.0)
        self.out = conv(inner, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.expand(x))
        x = x + self.local(x)
        strength = torch.linalg.vector_norm(x, dim=tuple(range(2, x.ndim)), keepdim=True)
        x = x + self.response(x * (strength / (strength.mean(1, keepdim=True) + 1e-6)))
        return self.out(x)


@register(
    "contmix",
    paper="Lou and Yu, OverLoCK, CVPR 2025, section 3.2",
    ranks=(1, 2, 3),
    cost=_cost,
    example={"kernel": 3, "small_kernel": 3, "pooled": 3, "branches": ((3, 1),), "expansion": 2},
    published=_published,
)
class ContMix(nn.Module):
    """Filters each position's neighbourhood with two kernels of its own, made of its affinities to a coarse view of the whole map.

    Around that, as published: a gate, a large static filter, squeeze and excitation, and a perceptron. Near a border, windows are moved
    inside. A map with a side shorter than the kernel is enlarged for the mixing. The neighbours' copies are never held in memory.

    Args:
        channels: channels of the feature map; a multiple of ``4 * heads``.
        kernel: side of the large window and of the static filter; odd.
        small_kernel: side of the small window; odd.
        heads: half the number of groups of channels that share their kernels.
        pooled: side of the coarse view.
        branches: kernel and dilation of the convolutions that are trained beside the static filter; none may reach further than it.
        expansion: how many times wider the perceptron is inside.
        layer_scale: what the two residual branches begin scaled with.
        scale_identity: scale what they are added to instead.
        rank: number of spatial axes, 1 to 3; published for 2.

    Raises:
        ValueError: if ``channels`` is not a multiple of ``4 * heads``, a kernel is even, the small one the larger, a branch reaches
            further than ``kernel``, another number is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(
        self,
        *,
        channels: int,
        kernel: int = 7,
        small_kernel: int = 5,
        heads: int = 2,
        pooled: int = 7,
        branches: Sequence[tuple[int, int]] = ((5, 1), (3, 1), (3, 2), (3, 3)),
        expansion: int = 4,
        layer_scale: float = 1.0,
        scale_identity: bool = False,
        rank: int = 2,
    ) -> None:
        super().__init__()
        if heads < 1 or channels < 1 or channels % (4 * heads):
            raise ValueError(f"channels={channels} must be a multiple of 4 * heads, with heads={heads}")
        if min(pooled, expansion) < 1:
            raise ValueError(f"must be positive: pooled={pooled}, expansion={expansion}")
        if min(kernel, small_kernel) < 1 or kernel % 2 == 0 or small_kernel % 2 == 0 or small_kernel > kernel:
            raise ValueError(f"kernel={kernel} and small_kernel={small_kernel} must be odd, and the small one not the larger")
        for side, dilation in branches:
            if dilation * (side - 1) + 1 > kernel:
                raise ValueError(f"a branch with a kernel of {side} and a dilation of {dilation} reaches further than kernel={kernel}")
        groups, inner = 2 * heads, max(channels // _REDUCTION, _NARROWEST)
        self.local1 = conv(channels, channels, kernel=3, groups=channels, rank=rank)
        self.norm1 = _ChannelNorm(channels, eps=1e-6)
        self.gate = ConvNorm(channels, channels, kernel=1, rank=rank)
        self.position: nn.Module = _PositionFilter(channels, kernel, branches, rank)
        self.query = ConvNorm(channels, channels // 2, kernel=1, rank=rank)
        self.key = ConvNorm(channels, channels // 2, kernel=1, rank=rank)
        self.value = ConvNorm(channels, channels, kernel=1, rank=rank)
        self.kernels = nn.Linear(pooled**rank, small_kernel**rank + kernel**rank)
        self.small_table = nn.Parameter(torch.zeros(groups, *(2 * small_kernel - 1 for _ in range(rank))))
        self.large_table = nn.Parameter(torch.zeros(groups, *(2 * kernel - 1 for _ in range(rank))))
        self.fuse = ConvNorm(channels, channels, kernel=1, rank=rank)
        self.squeeze = conv(channels, inner, kernel=1, rank=rank)
        self.excite = conv(inner, channels, kernel=1, rank=rank)
        self.out_norm = norm(channels, rank=rank)
        self.out = conv(channels, channels, kernel=1, rank=rank)
        self.scale1 = _Affine(channels, layer_scale)
        self.local2 = conv(channels, channels, kernel=3, groups=channels, rank=rank)
        self.norm2 = _ChannelNorm(channels, eps=1e-6)
        self.perceptron = _Perceptron(channels, expansion * channels, rank)
        self.scale2 = _Affine(channels, layer_scale)
        self.kernel, self.small_kernel, self.groups, self.pooled, self.rank = kernel, small_kernel, groups, pooled, rank
        self.scale = (channels / groups) ** -0.5
        self.scale_identity = scale_identity

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        x = x + self.local1(x)
        inside = self.norm1(x)
        gate = F.silu(self.gate(inside))
        inside = self.fuse(self._mix(inside)) + self.position(inside)
        means = inside.flatten(2).mean(-1).reshape(*inside.shape[:2], *(1 for _ in range(self.rank)))
        inside = inside * torch.sigmoid(self.excite(F.gelu(self.squeeze(means))))
        x = self._add(x, self.out(self.out_norm(gate * inside)), self.scale1)
        x = x + self.local2(x)
        return self._add(x, self.perceptron(self.norm2(x)), self.scale2)

    def reparam(self) -> None:
        """Makes the static filter and its branches one convolution, for inference. For good: the state dict changes."""
        if isinstance(self.position, _PositionFilter):
            self.position = self.position.merged()

    def _add(self, x: Tensor, change: Tensor, scale: _Affine) -> Tensor:
        return scale(x) + change if self.scale_identity else x + scale(change)

    def _mix(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = resize(x, _enlarged(size, self.kernel))
        small, large = self._kernels(x)
        values = self.value(x).unflatten(1, (2, self.groups, -1))
        mixed = [weigh_neighbours(weights, values[:, index], self.rank) for index, weights in enumerate((small, large))]
        x = torch.cat([each.flatten(1, 2) for each in mixed], dim=1)
        return x if tuple(x.shape[2:]) == tuple(size) else average_pool_to(x, size)

    def _kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of each position's small and large window, each [B, groups, taps, *spatial], summing to 1 over the taps."""
        query = (self.scale * self.query(x)).flatten(2).unflatten(1, (self.groups, -1))
        key = self.key(average_pool_to(x, (self.pooled,) * self.rank)).flatten(2).unflatten(1, (self.groups, -1))
        # Projecting the few keys instead of every position's affinities to them is the same, and much less work.
        logits = F.linear(key, self.kernels.weight).mT @ query + self.kernels.bias[:, None]
        weights = []
        for part, table, kernel in (("small", self.small_table, self.small_kernel), ("large", self.large_table, self.kernel)):
            taps = kernel**self.rank
            own, logits = logits[:, :, :taps], logits[:, :, taps:]
            softmax = torch.softmax(own + relative_bias(table, x.shape[2:], kernel).flatten(2), dim=2)
            if recording():
                note(GivenMap(softmax.mT), part=part)
            weights.append(softmax.unflatten(3, x.shape[2:]))
        return weights[0], weights[1]

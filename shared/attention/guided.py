"""Guided attention: a small encoder and decoder tells dual attention what to look at.

Sinha and Dolz, "Multi-scale self-guided attention for medical image segmentation", IEEE JBHI 2021, section III-C.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, linear_cost, norm_cost
from shared.attention.dual_layer import DualLayer
from shared.attention.registry import cost_of, feature_map, find, register
from shared.layers import ConvNorm, conv
from shared.layers.folding import fold_bias
from shared.layers.pooling import max_pool

__all__ = ["GuidedAttention", "GuidedStep", "SemanticModule"]

_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _halved(grid: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-extent // 2) for extent in grid)


def _pair_cost(channels: int, out_channels: int, n: int, rank: int) -> Cost:
    first = conv_cost(channels, out_channels, n, kernel=3, rank=rank, bias=False)
    second = conv_cost(out_channels, out_channels, n, kernel=3, rank=rank, bias=False)
    return first + second + 2 * norm_cost(out_channels)


def _up_cost(channels: int, n: int, rank: int) -> Cost:
    weights = channels**2 * 2**rank
    return Cost(weights + channels, weights * n)


def _semantic_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, rank = settings.channels, settings.rank
    half = _halved(grid)
    n, n_half, n_quarter = math.prod(grid), math.prod(half), math.prod(_halved(half))
    encoder = _pair_cost(channels, 2 * channels, n, rank) + _pair_cost(2 * channels, 4 * channels, n_half, rank)
    decoder = _pair_cost(4 * channels, 2 * channels, n_quarter, rank) + _pair_cost(2 * channels, channels, n_half, rank)
    return encoder + decoder + _up_cost(2 * channels, n_quarter, rank) + _up_cost(channels, n_half, rank)


def _published_semantic(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ "enc1.encode.3.weight" is the second convolution of the first encoder; "dec1.decode.6" the transposed one."""
    layers = {"0": "pair.0.conv", "1": "pair.0.norm", "3": "pair.1.conv", "4": "pair.1.norm", "6": "up"}
    renamed = {}
    for name, value in state.items():
        place, _, index, kind = name.split(".")
        renamed[f"{place}.{layers[index]}.{kind}"] = value
    for place in ("enc1", "enc2", "dec1", "dec2"):
        for each in ("pair.0", "pair.1"):
            renamed = fold_bias(renamed, conv=f"{place}.{each}.conv", norm=f"{place}.{each}.norm")
    ours = {"enc1": "encode.0", "enc2": "encode.1", "dec2": "decode.0", "dec1": "decode.1"}
    return {ours[name[:4]] + name[4:]: value for name, value in renamed.items()}


class _Pair(nn.Module):
    """Two convolutions with a norm and a ReLU each; in a decoder, then a transposed convolution that doubles the size."""

    def __init__(self, channels: int, out_channels: int, rank: int, *, up: bool) -> None:
        super().__init__()
        self.pair = nn.ModuleList(
            [ConvNorm(channels, out_channels, kernel=3, rank=rank), ConvNorm(out_channels, out_channels, kernel=3, rank=rank)]
        )
        self.up = _TRANSPOSED[rank](out_channels, out_channels, 2, stride=2) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.pair:
            x = F.relu(layer(x))
        return self.up(x)


@register(
    "semantic",
    paper="Sinha and Dolz, multi-scale self-guided attention, JBHI 2021, section III-C",
    ranks=(1, 2, 3),
    cost=_semantic_cost,
    example={"channels": 4},
    published=_published_semantic,
)
class SemanticModule(nn.Module):
    """A small encoder and decoder: its code says what is in the picture, and its answer guides an attention.

    Two poolings, and no connections past the code. Sizes that 4 does not divide are pooled rounding up, and the answer is cropped; the
    published code resizes instead, where it does not stop. It also flattens the code over the whole batch (``code.flatten()``), so that a
    loss of cosines compares batches, not pictures.

    Args:
        channels: channels of the input and of the answer; the code has four times as many.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, rank: int = 2) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, not {channels}")
        self.encode = nn.ModuleList(
            [_Pair(channels, 2 * channels, rank, up=False), _Pair(2 * channels, 4 * channels, rank, up=False)],
        )
        self.decode = nn.ModuleList(
            [_Pair(4 * channels, 2 * channels, rank, up=True), _Pair(2 * channels, channels, rank, up=True)],
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, C, *spatial]. Returns the code, one vector for each sample [B, 4 C n] of n quarter-size places, and [B, C, *spatial]."""
        sizes, coded = [], x
        for layer in self.encode:
            sizes.append(coded.shape[2:])
            coded = max_pool(layer(coded), 2)
        decoded = coded
        for layer in self.decode:
            decoded = _crop(layer(decoded), sizes.pop())
        return coded.flatten(1), decoded


def _crop(x: Tensor, size: torch.Size) -> Tensor:
    for axis, extent in enumerate(size, start=2):
        x = x.narrow(axis, 0, extent)
    return x


def _guided_cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n, rank = settings.channels, math.prod(grid), settings.rank
    common = {"channels": 2 * channels, "rank": rank}
    dual = sum((cost_of(name, grid, **common, reduction=settings.reduction) for name in ("dual_layer", "dual_layer_channel")), Cost())
    return (
        dual
        + cost_of("semantic", grid, **common)
        + conv_cost(2 * channels, channels, n, kernel=3, rank=rank)
        + linear_cost(channels, channels, n)
    )


def _guided_inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return feature_map(settings, batch, grid) | {"context": torch.randn(batch, settings.channels, *grid)}


def _published_guided(state: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = {"pam": ("position", "dual_layer"), "cam": ("channel", "dual_layer"), "sem": ("semantic", "semantic")}
    renamed = {
        f"{theirs}.{name}": state[f"{old}.{name}"]
        for old, theirs in (("conv_sem", "expand"), ("conv8", "out"))
        for name in ("weight", "bias")
    }
    for theirs, (ours, block) in parts.items():
        inner = {name.removeprefix(f"{theirs}."): value for name, value in state.items() if name.startswith(f"{theirs}.")}
        renamed |= {f"{ours}.{name}": value for name, value in find(block).published(inner).items()}  # type: ignore[operator]
    return renamed


class GuidedStep(NamedTuple):
    """What one guided step answers, for losses on the semantic module."""

    attention: Tensor
    """[B, C, *spatial]: what the features of all scales are multiplied with."""
    code: Tensor
    """[B, 8 C n], as ``SemanticModule``."""
    decoded: Tensor
    """[B, 2 C, *spatial], as ``SemanticModule``."""


@register(
    "guided",
    paper="Sinha and Dolz, multi-scale self-guided attention, JBHI 2021, section III-C",
    ranks=(1, 2, 3),
    cost=_guided_cost,
    inputs=_guided_inputs,
    example={"channels": 2, "reduction": 1},
    published=_published_guided,
)
class GuidedAttention(nn.Module):
    """Dual attention of one scale and the fusion of all scales, weighted by what a semantic module makes of them.

    A first step's answer times the fused features goes, with the scale's own features, into a second step.

    Args:
        channels: channels of each of the two inputs and of the output; 64 as published.
        reduction: of the position attention's queries and keys.
        semantic: a semantic module of ``2 * channels`` that several scales share, as published; by default this one has its own.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``channels`` is smaller than ``reduction``, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, reduction: int = 8, semantic: SemanticModule | None = None, rank: int = 2) -> None:
        super().__init__()
        self.position = DualLayer(channels=2 * channels, reduction=reduction, rank=rank)
        self.channel = DualLayer(channels=2 * channels, attention="channel", rank=rank)
        self.semantic = SemanticModule(channels=2 * channels, rank=rank) if semantic is None else semantic
        self.expand = conv(2 * channels, channels, kernel=3, rank=rank)
        self.out = conv(channels, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: one scale's features [B, C, *spatial]; context: all scales', fused, of the same shape. Returns their attention, again that."""
        return self.step(x, context).attention

    def step(self, x: Tensor, context: Tensor) -> GuidedStep:
        """As ``forward``, with what the semantic module made of the features."""
        both = torch.cat([x, context], dim=1)
        code, decoded = self.semantic(both)
        attention = self.out((self.channel(both) + self.position(both)) * self.expand(decoded))
        return GuidedStep(attention, code, decoded)

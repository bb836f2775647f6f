"""Attention gates: a decoder tells an encoder's skip connection where to look.

Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018, section 2.2, equations 1 and 2; Schlemper et al.,
"Attention gated networks", Medical Image Analysis 2019; Bouget et al., "Meningioma segmentation in T1-weighted MRI leveraging global
context and attention mechanisms", Frontiers in Radiology 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, conv_cost, linear_cost, norm_cost
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.attention.registry import feature_map, register
from shared.attention.windows import per_axis
from shared.layers import ConvNorm, conv, resize
from shared.layers.folding import fold_bias

__all__ = ["AdditiveGate", "AttentionGate", "ConcatenationGate", "SoftmaxAttentionGate"]

_STRIDED = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def _coarse(grid: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-extent // 2) for extent in grid)


def _coarse_context(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return feature_map(settings, batch, grid) | {"context": torch.randn(batch, settings.gate_channels, *_coarse(grid))}


def _same_context(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return feature_map(settings, batch, grid) | {"context": torch.randn(batch, settings.gate_channels, *grid)}


def _width(settings: Any) -> int:
    return settings.inner_channels or max(settings.channels // 2, 1)


def _gate_cost(settings: Any, grid: tuple[int, ...], *, score_bias: bool = True) -> Cost:
    channels, inner, rank, n = settings.channels, _width(settings), settings.rank, math.prod(grid)
    stride = per_axis(settings.stride, rank, name="stride")
    strided = math.prod(extent // side for extent, side in zip(grid, stride, strict=True))
    return (
        conv_cost(channels, inner, strided, kernel=stride, rank=rank, bias=False)
        + linear_cost(settings.gate_channels, inner, math.prod(_coarse(grid)))
        + linear_cost(inner, 1, strided, bias=score_bias)
        + linear_cost(channels, channels, n, bias=False)
        + norm_cost(channels)
    )


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"theta.": "scores.skip.", "phi.": "scores.gate.", "psi.": "scores.score.", "W.0.": "out.conv.", "W.1.": "out.norm."}
    renamed = {}
    for name, value in fold_bias(state, conv="W.0", norm="W.1").items():
        start = next(start for start in names if name.startswith(start))
        renamed[names[start] + name.removeprefix(start)] = value
    return renamed


def _published_softmax(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = _published(state)
    # The same number for all positions: a softmax over positions does not see it.
    del renamed["scores.score.bias"]
    return renamed


class _GateScores(nn.Module):
    """How well each place of the skip connection, at the gate's coarser grid, agrees with the gating signal: [B, 1, *strided]."""

    def __init__(
        self, channels: int, gate_channels: int, inner_channels: int | None, stride: int | Sequence[int], rank: int, bias: bool
    ) -> None:
        super().__init__()
        inner = _inner(channels, gate_channels, inner_channels)
        self.gate = conv(gate_channels, inner, kernel=1, rank=rank)
        sides = per_axis(stride, rank, name="stride")
        self.skip = _STRIDED[rank](channels, inner, sides, stride=sides, bias=False)  # type: ignore[arg-type]
        self.score = conv(inner, 1, kernel=1, rank=rank, bias=bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        skip = self.skip(x)
        return self.score(F.relu(skip + resize(self.gate(context), skip.shape[2:])))


@register(
    "attn_gate",
    paper="Oktay et al., Attention U-Net, MIDL 2018, eq. 1-2",
    ranks=(1, 2, 3),
    cost=_gate_cost,
    inputs=_coarse_context,
    example={"gate_channels": 12},
    published=_published,
)
class AttentionGate(nn.Module):
    """Scales a skip connection by a map in (0, 1) computed from it and from a coarser gating signal, and mixes its channels.

    As published with its output convolution. Where ``stride`` does not divide the size, the last places are left out of the map's
    computation, and it is interpolated to the whole size.

    Args:
        channels: channels of the skip connection.
        gate_channels: channels of the gating signal.
        inner_channels: channels of the space in which the two are added; half of ``channels`` by default.
        stride: how much coarser than the skip connection the map is computed; one number or one for each axis.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if a channel count or a stride is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(
        self, *, channels: int, gate_channels: int, inner_channels: int | None = None, stride: int | Sequence[int] = 2, rank: int = 2
    ) -> None:
        super().__init__()
        self.scores = _GateScores(channels, gate_channels, inner_channels, stride, rank, bias=True)
        self.out = ConvNorm(channels, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: skip connection [B, C, *spatial]; context: gating signal [B, G, *coarser]. Returns [B, C, *spatial]."""
        gate = resize(torch.sigmoid(self.scores(x, context)), x.shape[2:])
        if recording():
            note(GivenMap(gate))
        return self.out(x * gate)


@register(
    "attn_gate_softmax",
    paper="Schlemper et al., attention gated networks, MedIA 2019 ('concatenation_residual')",
    ranks=(1, 2, 3),
    cost=lambda settings, grid: _gate_cost(settings, grid, score_bias=False),
    inputs=_coarse_context,
    example={"gate_channels": 12},
    published=_published_softmax,
)
class SoftmaxAttentionGate(nn.Module):
    """An attention gate whose map is a softmax over all positions: places compete, and their weights sum to one.

    They sum to one on the coarser grid where they are computed, before they are interpolated.

    Args:
        channels, gate_channels, inner_channels, stride, rank: as ``AttentionGate``.

    Raises:
        ValueError: as ``AttentionGate``.
    """

    def __init__(
        self, *, channels: int, gate_channels: int, inner_channels: int | None = None, stride: int | Sequence[int] = 2, rank: int = 2
    ) -> None:
        super().__init__()
        self.scores = _GateScores(channels, gate_channels, inner_channels, stride, rank, bias=False)
        self.out = ConvNorm(channels, channels, kernel=1, rank=rank)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: skip connection [B, C, *spatial]; context: gating signal [B, G, *coarser]. Returns [B, C, *spatial]."""
        scores = self.scores(x, context)
        gate = resize(torch.softmax(scores.flatten(2), dim=-1).reshape(scores.shape), x.shape[2:])
        if recording():
            note(GivenMap(gate))
        return self.out(x * gate)


def _plain_cost(settings: Any, grid: tuple[int, ...], *, scored: int) -> Cost:
    inner, n = _width(settings), math.prod(grid)
    skip, gate = (linear_cost(channels, inner, n, bias=False) for channels in (settings.channels, settings.gate_channels))
    return skip + gate + 2 * norm_cost(inner) + linear_cost(scored * inner, 1, n, bias=False) + norm_cost(1)


def _published_plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names, renamed = {"W_g": "gate", "W_x": "skip", "psi": "score"}, {}
    for name, value in state.items():
        # "W_g.0.weight", or "W_g.0.conv.weight" in MONAI, is the convolution; "W_g.1.weight" is the norm.
        theirs, index, *_, kind = name.split(".")
        renamed[f"{names[theirs]}.{'conv' if index == '0' else 'norm'}.{kind}"] = value
    for ours in names.values():
        renamed = fold_bias(renamed, conv=f"{ours}.conv", norm=f"{ours}.norm")
    return renamed


@register(
    "attn_gate_additive",
    paper="Oktay et al., Attention U-Net, MIDL 2018, eq. 1-2, normalised, at one resolution",
    ranks=(1, 2, 3),
    cost=lambda settings, grid: _plain_cost(settings, grid, scored=1),
    inputs=_same_context,
    example={"gate_channels": 12},
    published=_published_plain,
)
class AdditiveGate(nn.Module):
    """Scales a skip connection by a map in (0, 1) from normalised projections of it and of a gating signal, which are added.

    The form that most 2-D and 3-D attention U-Nets use, MONAI's among them: at the skip connection's own resolution, and without an output
    convolution. A gating signal of another size is resized.

    Args:
        channels: channels of the skip connection.
        gate_channels: channels of the gating signal.
        inner_channels: channels of the space in which the two meet; half of ``channels`` by default.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if a channel count is not positive, or ``rank`` is not 1, 2 or 3.
    """

    def __init__(self, *, channels: int, gate_channels: int, inner_channels: int | None = None, rank: int = 2) -> None:
        super().__init__()
        inner = _inner(channels, gate_channels, inner_channels)
        self.gate = ConvNorm(gate_channels, inner, kernel=1, rank=rank)
        self.skip = ConvNorm(channels, inner, kernel=1, rank=rank)
        self.score = ConvNorm(inner, 1, kernel=1, rank=rank)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: skip connection [B, C, *spatial]; context: gating signal [B, G, *any]. Returns [B, C, *spatial]."""
        gate = torch.sigmoid(self.score(F.relu(self.skip(x) + resize(self.gate(context), x.shape[2:]))))
        if recording():
            note(GivenMap(gate))
        return x * gate


@register(
    "attn_gate_concat",
    paper="Bouget et al., AGU-Net, Frontiers in Radiology 2021",
    ranks=(1, 2, 3),
    cost=lambda settings, grid: _plain_cost(settings, grid, scored=2),
    inputs=_same_context,
    example={"gate_channels": 12},
)
class ConcatenationGate(nn.Module):
    """Scales a skip connection by a map in (0, 1) from normalised projections of it and of a gating signal, side by side (AGU-Net).

    AGU-Net's article draws the two added; its code concatenates them, and so does this.

    Args:
        channels, gate_channels, inner_channels, rank: as ``AdditiveGate``.
        eps: of the normalisations; Keras' default, which AGU-Net has.
        momentum: the last batch's part of their statistics.

    Raises:
        ValueError: as ``AdditiveGate``.
    """

    def __init__(
        self,
        *,
        channels: int,
        gate_channels: int,
        inner_channels: int | None = None,
        eps: float = 1e-3,
        momentum: float = 0.01,
        rank: int = 2,
    ) -> None:
        super().__init__()
        inner = _inner(channels, gate_channels, inner_channels)
        self.gate = ConvNorm(gate_channels, inner, kernel=1, rank=rank)
        self.skip = ConvNorm(channels, inner, kernel=1, rank=rank)
        self.score = ConvNorm(2 * inner, 1, kernel=1, rank=rank)
        for layer in (self.gate, self.skip, self.score):
            layer.norm.eps, layer.norm.momentum = eps, momentum  # type: ignore[assignment,union-attr]

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: skip connection [B, C, *spatial]; context: gating signal [B, G, *any]. Returns [B, C, *spatial]."""
        both = torch.cat([resize(self.gate(context), x.shape[2:]), self.skip(x)], dim=1)
        gate = torch.sigmoid(self.score(F.relu(both)))
        if recording():
            note(GivenMap(gate))
        return x * gate


def _inner(channels: int, gate_channels: int, inner_channels: int | None) -> int:
    inner = max(channels // 2, 1) if inner_channels is None else inner_channels
    if min(channels, gate_channels, inner) < 1:
        raise ValueError(f"must be positive: channels={channels}, gate_channels={gate_channels}, inner_channels={inner}")
    return inner

"""Attention through a few latent tokens, which read a long input, think, and write back.

Jaegle et al., "Perceiver: General perception with iterative attention", ICML 2021; Jabri et al., "Scalable adaptive computation for
iterative generation" (RIN), ICML 2023.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention.cost import Cost, attention_cost, linear_cost, norm_cost
from shared.attention.decoder import QueryAttention
from shared.attention.registry import bag, register

__all__ = ["LatentCrossAttention"]

LATENTS = 10
"""How many latents the costs are counted for."""


def _inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    width = settings.channels if settings.latent_channels is None else settings.latent_channels
    return bag(settings, batch, grid) | {"latents": torch.randn(batch, LATENTS, width)}


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    width = channels if settings.latent_channels is None else settings.latent_channels

    def step(asking: int, queries: int, asked: int, keys: int) -> Cost:
        attention = 2 * linear_cost(asking, asking, queries) + 2 * linear_cost(asked, asking, keys) + attention_cost(queries, keys, asking)
        inner = settings.expansion * asking
        network = linear_cost(asking, inner, queries) + linear_cost(inner, asking, queries)
        return attention + network + 2 * norm_cost(asking)

    read = step(width, LATENTS, channels, n) + norm_cost(channels)
    write = step(channels, n, width, LATENTS) + norm_cost(width)
    return read + settings.depth * step(width, LATENTS, width, LATENTS) + write


@register("latent_cross", paper="Jabri et al., RIN, ICML 2023", ranks=(), cost=_cost, inputs=_inputs)
class LatentCrossAttention(nn.Module):
    """A few latents read all tokens, attend to one another, and write back: cost grows with the number of tokens, not its square.

    From the papers; no published code was compared, and norms before each attention and network are our reading.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        latent_channels: width of the latents; a multiple of ``heads``, as ``channels`` by default.
        heads: number of heads.
        depth: number of self-attentions of the latents.
        expansion: how many times wider the networks' hidden layers are.

    Raises:
        ValueError: if ``heads`` does not divide a width, or ``depth`` or ``expansion`` is not positive.
    """

    def __init__(self, *, channels: int, latent_channels: int | None = None, heads: int = 8, depth: int = 4, expansion: int = 4) -> None:
        super().__init__()
        if min(depth, expansion) < 1:
            raise ValueError(f"must be positive: depth={depth}, expansion={expansion}")
        width = channels if latent_channels is None else latent_channels
        self.read = _Step(width, channels, heads, expansion)
        self.think = nn.ModuleList(_Step(width, None, heads, expansion) for _ in range(depth))
        self.write = _Step(channels, width, heads, expansion)

    def forward(self, x: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, N, C]; latents: [B, L, latent_channels]. Returns both, changed, for the next block."""
        latents = self.read(latents, x)
        for step in self.think:
            latents = step(latents)
        return self.write(x, latents), latents


class _Step(nn.Module):
    """Attention to a context, or to itself, and a small network, each with a skip connection."""

    def __init__(self, channels: int, context_channels: int | None, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.context_norm = None if context_channels is None else nn.LayerNorm(context_channels)
        self.attention = QueryAttention(channels=channels, heads=heads, context_channels=context_channels)
        self.network_norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, expansion * channels)
        self.out = nn.Linear(expansion * channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        query = self.norm(x)
        asked = query if context is None or self.context_norm is None else self.context_norm(context)
        x = x + self.attention(query, asked, asked)
        return x + self.out(F.gelu(self.hidden(self.network_norm(x))))

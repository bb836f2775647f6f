"""The encoder of WAVE: a sequence of whole-brain activity to one vector, in the space of CLIP's images and texts.

Wang et al., "WAVE: a whole-brain fMRI foundation model", arXiv 2411.07121: parcellated BOLD (1,024 DiFuMo components) through a causal
GPT-2, whose class token is projected and trained by contrast. Its published prompts are not here: they are token numbers cut off to
integers, so that nothing is learned through them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import MultiHeadAttention

__all__ = ["WaveAnswer", "WaveEncoder"]

TIME_STEP_S = 0.2
LONGEST_S = 300


class WaveAnswer(NamedTuple):
    """What the encoder knows of a sequence."""

    hidden: Tensor
    """[B, T + 1, C]: the sequence with the class token after its last scan."""
    valid: Tensor
    """bool [B, T + 1]: the scans and the class token."""
    pooled: Tensor
    """[B, C], -1 to 1: of the class token."""
    embedding: Tensor
    """[B, projection], in CLIP's space; not normalised."""


class WaveEncoder(nn.Module):
    """BOLD sequences to embeddings.

    Args:
        parcels: components that the brain is divided into.
        channels: width of the transformer; a multiple of ``heads``.
        layers, heads: of the transformer.
        positions: longest sequence, class token included.
        projection: width of the embedding; CLIP ViT-L/14's by default.
        dropout: on embeddings, attention outputs and networks, in training.
    """

    def __init__(
        self,
        *,
        parcels: int = 1024,
        channels: int = 768,
        layers: int = 4,
        heads: int = 12,
        positions: int = 512,
        projection: int = 768,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.class_scan = nn.Parameter(torch.zeros(parcels))
        self.embed = nn.Linear(parcels, channels)
        self.embed_norm = nn.LayerNorm(channels)
        self.times = nn.Embedding(round(LONGEST_S / TIME_STEP_S) + 1, channels)
        self.positions = nn.Embedding(positions, channels)
        self.blocks = nn.ModuleList(_Block(channels=channels, heads=heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        self.pool = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, projection)
        self.dropout = nn.Dropout(dropout)
        self.image_scale, self.text_scale = (nn.Parameter(torch.tensor(math.log(1 / 0.07))) for _ in range(2))

    def forward(self, bold: Tensor, valid: Tensor, seconds: Tensor) -> WaveAnswer:
        """Encodes sequences.

        Args:
            bold: [B, T, parcels]; rows after a sequence's end are not looked at.
            valid: bool [B, T], True up to each sequence's end.
            seconds: [B, T], when each scan was taken, from 0 to below 300.

        Raises:
            ValueError: if a time is out of range, or a sequence is longer than the positions known.
        """
        batch, scans, _ = bold.shape
        if seconds.max() >= LONGEST_S:
            raise ValueError(f"scans at up to {float(seconds.max()):g} s; times below {LONGEST_S} s are known")
        if scans + 1 > self.positions.num_embeddings:
            raise ValueError(f"{scans} scans; at most {self.positions.num_embeddings - 1} are known")
        ends = valid.sum(1)
        place = torch.arange(scans + 1, device=bold.device)
        is_class = place == ends[:, None]
        source = (place - (place > ends[:, None]).long()).clamp(0, scans - 1)
        known = bold * valid[..., None]
        rows = known.gather(1, source[..., None].expand(-1, -1, bold.shape[2]))
        rows = torch.where(is_class[..., None], self.class_scan, rows)
        times = torch.where(is_class, -torch.ones((), device=bold.device), seconds.gather(1, source))
        seen = place <= ends[:, None]
        x = self.dropout(self.embed_norm(self.embed(rows))) + self.times(self._time_index(times))
        x = self.dropout(x + self.positions(place))
        causal = torch.ones(scans + 1, scans + 1, dtype=torch.bool, device=bold.device).tril()
        mask = (causal & seen[:, None, :])[:, None]
        for block in self.blocks:
            x = block(x, mask)
        hidden = self.norm(x)
        pooled = torch.tanh(self.pool(hidden[torch.arange(batch, device=bold.device), ends]))
        return WaveAnswer(hidden, seen, pooled, self.project(self.dropout(pooled)))

    def _time_index(self, seconds: Tensor) -> Tensor:
        """A row for each fifth of a second, and the last one for the class token."""
        index = (torch.round(seconds / TIME_STEP_S) * TIME_STEP_S * 5).long()
        return torch.where(seconds < 0, self.times.num_embeddings - 1, index)


class _Block(nn.Module):
    """A layer of GPT-2 (Radford et al., 2019): causal attention and a network, each after a norm, each added to what came before."""

    def __init__(self, *, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.out_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = MultiHeadAttention(channels=channels, heads=heads)
        self.hidden, self.out = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, N, C]; mask: bool [B, 1, N, N]. Returns [B, N, C]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        network = self.out(F.gelu(self.hidden(self.out_norm(x)), approximate="tanh"))
        return x + self.dropout(network)

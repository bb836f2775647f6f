"""TransMIL: a transformer over all instances of a slide, with attention through landmarks and convolutions over their order.

Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image Classification", NeurIPS 2021;
Xiong et al., "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention", AAAI 2021.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.acmil.losses import slide_loss
from apps.acmil.model import Answer, check_bag

__all__ = ["NystromAttention", "PositionEncoding", "TransMIL", "TransformerLayer", "pseudo_inverse"]


class TransMIL(nn.Module):
    """TransMIL. Unlike the other networks it depends on the order of the instances; keep that of the feature file.

    Args:
        features, classes: as ``ACMIL``.
        channels: width; a multiple of ``heads``.
        heads: of the attention. There are ``channels // 2`` landmarks.
        dropout: after each attention.
    """

    def __init__(self, *, features: int, classes: int, channels: int = 512, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.reduction = nn.Linear(features, channels)
        self.class_token = nn.Parameter(torch.randn(1, channels))
        self.first = TransformerLayer(channels=channels, heads=heads, dropout=dropout)
        self.position = PositionEncoding(channels=channels)
        self.second = TransformerLayer(channels=channels, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, bag: Tensor) -> Answer:
        """bag: [N, features]; the attention is the size of what the class token takes from each instance in the second layer."""
        x = self.position(self.first(self.tokens(bag)))
        logits = self._classify(self.second(x))
        return Answer(logits, logits[None], self._attention(x.detach(), len(bag)))

    def losses(self, bag: Tensor, label: Tensor) -> dict[str, Tensor]:
        """As ``ACMIL.losses``."""
        return {"slide": slide_loss(self._classify(self.second(self.position(self.first(self.tokens(bag))))), label)}

    def tokens(self, bag: Tensor) -> Tensor:
        """[1 + side * side, channels]: the class token, the instances, and the first of them again until a square is full."""
        x = F.relu(self.reduction(check_bag(bag)))
        side = math.isqrt(len(x) - 1) + 1
        return torch.cat([self.class_token.to(x.dtype), x, x[: side * side - len(x)]])

    def _classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(x[0]))

    def _attention(self, x: Tensor, count: int) -> Tensor:
        """[1, N]; what goes to the repeated instances is theirs."""
        row = self.second.attention.first_row(self.second.norm(x)).abs().mean(0)[1:]
        taken = row[:count].clone()
        taken[: len(row) - count] += row[count:]
        return (taken / taken.sum().clamp(min=torch.finfo(taken.dtype).tiny))[None]


class TransformerLayer(nn.Module):
    """Attention on normed tokens, added to them. There is no perceptron."""

    def __init__(self, *, channels: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = NystromAttention(channels=channels, heads=heads, landmarks=channels // 2, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels]. Returns the same shape."""
        return x + self.attention(self.norm(x))


class PositionEncoding(nn.Module):
    """Depth-wise convolutions over the tokens laid out as a square, row by row (PPEG); the class token passes by."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels) for side in (7, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x: [1 + side * side, channels]. Returns the same shape."""
        side = math.isqrt(len(x) - 1)
        square = x[1:].mT.reshape(1, x.shape[1], side, side)
        square = square + sum(convolve(square) for convolve in self.convolutions)
        return torch.cat([x[:1], square.flatten(2)[0].mT])


class NystromAttention(nn.Module):
    """Self-attention through landmarks: softmax(q k') (softmax(q' k'))+ softmax(q' k) v, where q' and k' are means over stretches.

    The two long products are fused attentions, multiplied from the right, so that no matrix of tokens by landmarks is kept: at 100,000
    tokens that is what fits into memory. The stretches are of equal length, with zeros before the first token, as published.

    Args:
        channels, heads, dropout: as ``TransMIL``.
        landmarks: how many.
        iterations: of the pseudo-inverse.
        kernel: length of the depth-wise convolution over the values that is added.
    """

    def __init__(
        self, *, channels: int, heads: int = 8, landmarks: int = 256, iterations: int = 6, kernel: int = 33, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels={channels} must be a multiple of heads={heads}")
        self.project = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.residual = nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels]. Returns the same shape."""
        queries, keys, values = self._projected(x)
        near, far, inverse = self._landmarks(queries, keys, len(x))
        summary = F.scaled_dot_product_attention(near, keys, values, scale=1.0)
        result = F.scaled_dot_product_attention(queries, far, inverse.to(values.dtype) @ summary, scale=1.0)
        result = result + self.residual(values)
        return self.dropout(self.out(result[0].transpose(0, 1).flatten(1)[-len(x) :]))

    def first_row(self, x: Tensor) -> Tensor:
        """x: [N, channels]. Returns [heads, N]: the first token's row of the product of the three; may be negative here and there."""
        queries, keys, _ = self._projected(x)
        near, far, inverse = self._landmarks(queries, keys, len(x))
        padding = keys.shape[2] - len(x)
        row = torch.softmax((queries[0, :, padding : padding + 1] @ far[0].mT).float(), dim=-1) @ inverse[0].float()
        # One head at a time: its landmarks by all tokens is the largest matrix that is ever made.
        heads = [one @ torch.softmax((own @ key.mT).float(), dim=-1) for one, own, key in zip(row, near[0], keys[0], strict=True)]
        return torch.stack(heads)[:, 0, padding:]

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values, [1, heads, padded N, channels / heads] each."""
        padding = -len(x) % self.landmarks
        projected = self.project(F.pad(x, (0, 0, padding, 0))).view(len(x) + padding, 3, self.heads, -1)
        queries, keys, values = projected.permute(1, 2, 0, 3)[:, None]
        return queries * queries.shape[-1] ** -0.5, keys, values

    def _landmarks(self, queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The landmarks of queries and keys [1, heads, landmarks, channels / heads], and the pseudo-inverse of their attention."""
        length = math.ceil(count / self.landmarks)
        near, far = (x.unflatten(2, (-1, length)).mean(3) for x in (queries, keys))
        return near, far, pseudo_inverse(torch.softmax((near @ far.mT).float(), dim=-1), iterations=self.iterations)


def pseudo_inverse(x: Tensor, *, iterations: int = 6) -> Tensor:
    """Moore-Penrose inverse by iteration (Xiong et al., section 3.2, eq. 11). x: [..., M, M]; rows add up to 1."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    z = x.mT / (x.abs().sum(-1).max() * x.abs().sum(-2).max())
    for _ in range(iterations):
        xz = x @ z
        z = 0.25 * z @ (13 * eye - xz @ (15 * eye - xz @ (7 * eye - xz)))
    return z

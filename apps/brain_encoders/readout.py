"""From tokens to units: which query's token each vertex or voxel reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["QueryReadout", "UnitReadout"]


class QueryReadout(nn.Module):
    """Each unit is a linear function of the tokens of the queries that it belongs to.

    prediction[v] = sum over q of membership[q, v] * (weight[v] . token[q] + bias[v]). With memberships of 0 and 1 it is the published
    readout, in which a vertex of several regions adds up their predictions, biases and all; with columns that sum to 1 it reads the mean.
    The published code computes every token for every unit and masks it, 24 of 25 parts for nothing; here each unit is computed once.

    Args:
        membership: [Q, V], not negative; every unit belongs somewhere.
        channels: width of the tokens.

    Raises:
        ValueError: if a unit belongs to no query.
    """

    def __init__(self, *, membership: Tensor, channels: int) -> None:
        super().__init__()
        membership = membership.float()
        if membership.ndim != 2 or not (membership.sum(0) > 0).all():
            lonely = int((membership.sum(0) <= 0).sum()) if membership.ndim == 2 else "all"
            raise ValueError(f"membership must be [queries, units] with every unit in some query; {lonely} units are in none")
        linear = nn.Linear(channels, membership.shape[1])
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("membership", membership)
        # Units that belong to the same queries read the same sum of tokens, so one product answers all of them.
        patterns, which = membership.unique(dim=1, return_inverse=True)
        order = which.argsort(stable=True)
        self.register_buffer("patterns", patterns.T.contiguous(), persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("places", order.argsort(), persistent=False)
        self.sizes = which.bincount(minlength=patterns.shape[1]).tolist()

    @property
    def queries(self) -> int:
        """Q."""
        return self.membership.shape[0]

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, Q, C]. Returns [B, V]."""
        read = (self.patterns.to(tokens) @ tokens).unbind(1)
        weights = self.weight.index_select(0, self.order).split(self.sizes)
        parts = [F.linear(token, weight) for token, weight in zip(read, weights, strict=True)]
        return torch.cat(parts, dim=1).index_select(1, self.places) + self.bias * self.membership.sum(0)


class UnitReadout(nn.Module):
    """One query for each unit: prediction[v] = weight[v] . token[v] + bias[v]; the published code computes V x V of these to keep V.

    Args:
        units: V.
        channels: width of the tokens.
    """

    def __init__(self, *, units: int, channels: int) -> None:
        super().__init__()
        linear = nn.Linear(channels, units)
        self.weight, self.bias = linear.weight, linear.bias

    @property
    def queries(self) -> int:
        """V."""
        return len(self.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, V, C]. Returns [B, V]."""
        return torch.einsum("bvc,vc->bv", tokens, self.weight) + self.bias

"""Linear attention: keys and values are summed up first, so that time and memory grow with the number of tokens and not with its square.

Shen et al., "Efficient attention: attention with linear complexities", WACV 2021; Katharopoulos et al., "Transformers are
RNNs: fast autoregressive transformers with linear attention", ICML 2020, equations 4 to 6. Which features stand for queries and keys is
what the families differ in: ``flatten``, ``inline``, ``flow``, ``galerkin``, ``feature_maps``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shared.attention.cost import Cost, product_cost
from shared.attention.maps import Layout, LinearMap
from shared.attention.recording import note, recording

__all__ = ["full_precision", "linear_attend", "linear_attend_cost", "widen"]


def linear_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    normaliser: Tensor | float | None = None,
    offset: Tensor | None = None,
    eps: Tensor | float = 0.0,
    layout: Callable[[], Layout] | None = None,
    part: str = "",
) -> Tensor:
    """phi(q) (phi(k)^T v), normalised. Sums over tokens are in float32, under autocast too: in half precision they overflow.

    Args:
        query: the features phi(q), [B, h, N, f].
        key: the features phi(k), [B, h, M, f]; zeros for keys that are not to be seen.
        value: [B, h, M, e].
        normaliser: what the weights of each query are multiplied by, [B, h, N, 1] or a number; by default one over their sum.
        offset: is added to every weight of a query after that, [B, h, N, 1].
        eps: is added to the sum of a query's weights before the division; a number, or broadcast to [B, h, N, 1].
        layout, part: as ``shared.attention.attend``.

    Returns:
        [B, h, N, e], of the value's data type. ``record`` has the weights phi(q_i) . phi(k_j) z_i computed where they are wanted.
    """
    with full_precision(value):
        query, key, wide = widen(query), widen(key), widen(value)
        if normaliser is None:
            normaliser = 1 / (query @ key.sum(-2, keepdim=True).mT + eps)
        output = query @ (key.mT @ wide) * normaliser
        if offset is not None:
            output = output + offset * wide.sum(-2, keepdim=True)
    output = output.to(value.dtype)
    if recording():
        found = LinearMap(query, key, value, normaliser=normaliser, offset=offset, layout=layout() if layout else None)
        note(found, output, part=part)
    return output


def linear_attend_cost(queries: int, keys: int, features: int, *, width: int, heads: int = 1, normalised: bool = True) -> Cost:
    """Of ``linear_attend`` with so many features and so wide a value per head; ``normalised`` where it divides by the weights' sum."""
    cost = product_cost(heads, features, width, queries + keys)
    return cost + product_cost(heads, features, queries) if normalised else cost


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which autocast is off on the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False)


def widen(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()

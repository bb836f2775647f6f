"""Attention that predicts, from a cheap low-rank sketch, which pairs of tokens are worth looking at.

Wei et al., "Sparsifiner: Learning sparse instance-dependent attention for efficient vision transformers", CVPR 2023, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.attention.attend import attend, check_heads, merge_heads, split_heads
from shared.attention.cost import Cost, attention_cost, linear_cost, product_cost
from shared.attention.registry import register
from shared.attention.windows import per_axis
from shared.layers import resize

__all__ = ["Connectivity", "Sparsifiner", "kept_tokens"]


class Connectivity(NamedTuple):
    """What the predictor of a ``Sparsifiner`` found, for N tokens with the class token first, and r basis vectors."""

    coefficients: Tensor
    """[B, heads, N - 1, r]: how much of each basis vector makes a token's row; small ones are 0. The class token has no row."""
    approximation: Tensor
    """[B, heads, N - 1, N]: the predicted map, differentiable."""
    mask: Tensor
    """bool [B, heads, N, N]: True where a query sees a key. The class token's row is all True."""


def kept_tokens(attention: Tensor, keep: float) -> Tensor:
    """Which tokens the class token looks at most, for pruning the others.

    Args:
        attention: [B, heads, N]: the class token's row of the map, class token first.
        keep: the share of the N - 1 others that is kept, in (0, 1].

    Returns:
        bool [B, N - 1].
    """
    score = attention[..., 1:].mean(1)
    return _best(score, _share(keep))


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, heads, n = settings.channels, settings.heads, 1 + math.prod(grid)
    published = 1 + math.prod(per_axis(settings.extent, settings.rank))
    basis, width = published // settings.token_reduction, channels // heads
    inner = width // settings.channel_reduction
    predictor = linear_cost(width, inner, heads * (n - 1)) + linear_cost(width, inner, heads * n) + Cost(2 * published * basis)
    predictor += product_cost(heads, inner, n, basis) + product_cost(heads, n - 1, inner, basis) + product_cost(heads, n - 1, basis, n)
    projections = linear_cost(channels, 3 * channels, n, bias=settings.qkv_bias) + linear_cost(channels, channels, n)
    return projections + attention_cost(n, n, channels) + predictor


def _inputs(settings: Any, batch: int, grid: tuple[int, ...]) -> dict[str, Any]:
    return {"x": torch.randn(batch, 1 + math.prod(grid), settings.channels), "grid": grid}


_PUBLISHED = {
    "proj": "out",
    "mask_predictor.proj_n": "token_projection",
    "mask_predictor.proj_back_n": "token_basis",
    "mask_predictor.proj_c_q": "query_reduce",
    "mask_predictor.proj_c_k": "key_reduce",
}
_PAPER = "Wei et al., Sparsifiner, CVPR 2023, section 3"


@register(
    "sparsifiner_published",
    paper=_PAPER,
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=_inputs,
    example={"extent": 4, "token_reduction": 2},
    preset={"scale_by_heads": True},
    published=_PUBLISHED,
)
@register(
    "sparsifiner",
    paper=_PAPER,
    ranks=(1, 2, 3),
    cost=_cost,
    inputs=_inputs,
    example={"extent": 4, "token_reduction": 2},
    published=_PUBLISHED,
)
class Sparsifiner(nn.Module):
    """Self-attention of a class token and patches, each patch with the few keys that a low-rank predictor chooses for it.

    The published predictor divides its logits by the root of the number of HEADS, where the width of a head is meant; its projections
    are of one number of tokens only, here they are interpolated on the grid. No step is saved: the map is predicted densely, then
    attended with a mask. The choice passes no gradient; ``connectivity`` gives the prediction, to be trained towards the full map.

    Args:
        channels: width of the tokens; a multiple of ``heads``.
        heads: number of heads.
        keep: share of the keys that each query sees, rounded up; in (0, 1].
        extent: sides of the grid that the projections are made for; one number, or one per axis.
        token_reduction: tokens per basis vector.
        channel_reduction: the predictor's queries and keys are so many times narrower than a head.
        coefficient_threshold: coefficients up to this are set to 0.
        basis_threshold: so are the basis vectors' values.
        scale_by_heads: the published scale.
        qkv_bias: whether queries, keys and values have a bias.
        rank: number of axes of the grid, 1 to 3.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``, ``keep`` is outside (0, 1], a reduction leaves nothing, or ``extent`` is
            not positive or not one per axis.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int = 8,
        keep: float = 0.25,
        extent: int | Sequence[int] = 14,
        token_reduction: int = 8,
        channel_reduction: int = 2,
        coefficient_threshold: float = 0.01,
        basis_threshold: float = 0.01,
        scale_by_heads: bool = False,
        qkv_bias: bool = True,
        rank: int = 2,
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.grid = per_axis(extent, rank, name="extent")
        width, tokens = channels // heads, 1 + math.prod(self.grid)
        if not 1 <= channel_reduction <= width or not 1 <= token_reduction <= tokens:
            raise ValueError(
                f"channel_reduction={channel_reduction} must be from 1 to the width of a head, {width}; "
                f"token_reduction={token_reduction} from 1 to the number of tokens, {tokens}"
            )
        self.heads, self.keep = heads, _share(keep)
        self.coefficient_threshold, self.basis_threshold = coefficient_threshold, basis_threshold
        self.scale = (heads if scale_by_heads else width) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out = nn.Linear(channels, channels)
        self.query_reduce = nn.Linear(width, width // channel_reduction)
        self.key_reduce = nn.Linear(width, width // channel_reduction)
        self.token_projection = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, tokens // token_reduction), std=0.02))
        self.token_basis = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, tokens // token_reduction), std=0.02))

    def forward(self, x: Tensor, *, grid: Sequence[int]) -> Tensor:
        """x: [B, 1 + N, C], the class token, then N patches on a grid. Returns the same shape."""
        query, key, value = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        with torch.no_grad():
            mask = self._predict(query, key, _patches(x, grid)).mask
        return self.out(merge_heads(attend(query, key, value, mask=mask)))

    def connectivity(self, x: Tensor, *, grid: Sequence[int]) -> Connectivity:
        """The predicted map, and what of it is kept. x: as ``forward``."""
        query, key, _ = (split_heads(each, self.heads) for each in self.qkv(x).chunk(3, dim=-1))
        return self._predict(query, key, _patches(x, grid))

    def _predict(self, query: Tensor, key: Tensor, grid: tuple[int, ...]) -> Connectivity:
        # A sum over tokens: of more tokens, each counts for less.
        share = self.token_projection.shape[0] / key.shape[2]
        keys = self.key_reduce(key).mT @ (self._on_grid(self.token_projection, grid) * share)
        coefficients = (self.scale * self.query_reduce(query[:, :, 1:]) @ keys).softmax(-1)
        coefficients = torch.where(coefficients > self.coefficient_threshold, coefficients, 0.0)
        basis = self._on_grid(self.token_basis, grid).abs().mT
        approximation = coefficients @ torch.where(basis > self.basis_threshold, basis, 0.0)
        chosen = _best(approximation, self.keep)
        return Connectivity(coefficients, approximation, torch.cat([torch.ones_like(chosen[:, :, :1]), chosen], dim=2))

    def _on_grid(self, weight: Tensor, grid: tuple[int, ...]) -> Tensor:
        """weight: [1 + places of the own grid, r]. Returns [1 + places of the given grid, r]."""
        if grid == self.grid:
            return weight
        places = resize(weight[1:].mT.reshape(1, -1, *self.grid), grid)
        return torch.cat([weight[:1], places[0].flatten(1).mT])


def _patches(x: Tensor, grid: Sequence[int]) -> tuple[int, ...]:
    if not torch.compiler.is_compiling() and 1 + math.prod(grid) != x.shape[1]:
        raise ValueError(f"{x.shape[1]} tokens are not a class token and a grid of {tuple(grid)}")
    return tuple(grid)


def _share(share: float) -> tuple[int, int]:
    """As numerator and denominator: 0.1 of 30 is 3, where floating point rounds it up to 4."""
    if not 0 < share <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, not {share}")
    return max(Fraction(share).limit_denominator(10_000), Fraction(1, 10_000)).as_integer_ratio()


def _best(score: Tensor, share: tuple[int, int]) -> Tensor:
    """True at the largest of each row of scores [..., n]; their number is rounded up."""
    count = -(-score.shape[-1] * share[0] // share[1])
    best = score.topk(count, dim=-1).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, best, True)

"""Multi-axis attention: within windows, and within sparse grids that reach over the whole map, with biases by relative place.

Tu et al., "MaxViT: Multi-Axis Vision Transformer", ECCV 2022, section 3.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.attention.cost import Cost, attention_cost, linear_cost, norm_cost
from shared.attention.perceptron import Perceptron, perceptron_cost
from shared.attention.registry import register
from shared.attention.windows import merge_grid, padded_grid, per_axis, split_grid, window_attend
from shared.layers import resize

__all__ = ["PartitionAttention", "RelativeBias"]


class RelativeBias(nn.Module):
    """A learned number for each offset between two places of a window, and each head.

    Args:
        heads: number of heads.
        window: side of the window along each axis, 1 to 3 axes.
        table_window: the window that the table is for; where it is another one, the table is interpolated, so that offsets are understood
            relative to the window's side.

    Raises:
        ValueError: if there are not 1 to 3 axes.
    """

    index: Tensor

    def __init__(self, *, heads: int, window: tuple[int, ...], table_window: tuple[int, ...] | None = None) -> None:
        super().__init__()
        if not 1 <= len(window) <= 3:
            raise ValueError(f"window must have 1 to 3 axes, not {len(window)}")
        self.sides = tuple(2 * side - 1 for side in window)
        self.table = nn.Parameter(torch.empty(heads, *(2 * side - 1 for side in table_window or window)))
        nn.init.trunc_normal_(self.table, std=0.02)
        places = torch.cartesian_prod(*(torch.arange(side) for side in window)).reshape(-1, len(window))
        offsets = places[:, None] - places[None] + torch.tensor(window) - 1
        strides = torch.tensor([math.prod(self.sides[axis + 1 :]) for axis in range(len(window))])
        self.register_buffer("index", (offsets * strides).sum(-1), persistent=False)

    def forward(self) -> Tensor:
        """[heads, n, n]: of queries to keys, places of the window in order."""
        table = resize(self.table.unsqueeze(0), self.sides, align_corners=True)
        return table.flatten(2)[0][:, self.index]


def _cost(settings: Any, grid: tuple[int, ...]) -> Cost:
    channels, n = settings.channels, math.prod(grid)
    window = per_axis(settings.window, len(grid))
    table = window if settings.table_window is None else per_axis(settings.table_window, len(grid))
    return (
        norm_cost(channels)
        + linear_cost(channels, 3 * channels, n)
        + attention_cost(math.prod(padded_grid(grid, window)), math.prod(window), channels)
        + linear_cost(channels, channels, n)
        + Cost(channels // settings.head_channels * math.prod(2 * side - 1 for side in table))
        + perceptron_cost(channels, n, expansion=settings.expansion)
    )


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's two forms, told apart by their table: [offsets, heads], or [heads, *offsets] in what comes from TensorFlow.

    The first has each head's query, key and value side by side; the second counts offsets from the query and not from the key.
    """
    names = {"norm1": "norm", "attn.qkv": "qkv", "attn.proj": "out", "norm2": "perceptron.norm"}
    names |= {"mlp.fc1": "perceptron.expand", "mlp.fc2": "perceptron.contract"}
    table = state["attn.rel_pos.relative_position_bias_table"]
    ours = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if layer == "attn.rel_pos":
            continue
        if layer == "attn.qkv" and table.ndim == 2:
            value = value.unflatten(0, (table.shape[1], 3, -1)).transpose(0, 1).flatten(0, 2)
        ours[f"{names[layer]}.{kind}"] = value
    if table.ndim == 2:
        side = math.isqrt(table.shape[0])
        ours["bias.table"] = table.mT.unflatten(1, (side, side))
    else:
        ours["bias.table"] = table.flip(*range(1, table.ndim))
    return ours


_PARTITION: dict[str, Any] = {
    "ranks": (1, 2, 3),
    "cost": _cost,
    "example": {"head_channels": 8, "window": 4},
    "published": _published,
}


@register("maxvit_block", paper="Tu et al., MaxViT, ECCV 2022, section 3, block attention", preset={"strided": False}, **_PARTITION)
@register("maxvit_grid", paper="Tu et al., MaxViT, ECCV 2022, section 3, grid attention", preset={"strided": True}, **_PARTITION)
class PartitionAttention(nn.Module):
    """MaxViT's attention among the positions of a window, or of a grid over the whole map; then a perceptron.

    Args:
        channels: channels of the feature map; a multiple of ``head_channels``.
        head_channels: width of a head.
        window: positions along each axis that see each other; one number, or one for each axis.
        strided: False: they are neighbours (block attention); True: they lie as far apart as the map allows (grid attention).
        table_window: the window for which the biases were learned, where it is another one; they are interpolated to this one.
        expansion: how many times wider the perceptron's hidden layer is.
        eps: of the layer normalisations; 1e-5 in weights that come from TensorFlow.
        gelu: "none" for the exact one; "tanh", its approximation, in weights that come from TensorFlow.
        rank: number of spatial axes, 1 to 3.

    Raises:
        ValueError: if ``head_channels`` does not divide ``channels``, a side or ``expansion`` is not positive, or ``rank`` is not 1 to 3.
    """

    def __init__(
        self,
        *,
        channels: int,
        head_channels: int = 32,
        window: int | tuple[int, ...] = 7,
        strided: bool = False,
        table_window: int | tuple[int, ...] | None = None,
        expansion: int = 4,
        eps: float = 1e-6,
        gelu: Literal["none", "tanh"] = "none",
        rank: int = 2,
    ) -> None:
        super().__init__()
        if head_channels < 1 or channels % head_channels:
            raise ValueError(f"head_channels={head_channels} must divide channels={channels}")
        if rank not in (1, 2, 3):
            raise ValueError(f"rank must be 1, 2 or 3, not {rank}")
        self.heads = channels // head_channels
        self.window, self.strided = per_axis(window, rank), strided
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.bias = RelativeBias(
            heads=self.heads,
            window=self.window,
            table_window=None if table_window is None else per_axis(table_window, rank, name="table_window"),
        )
        self.out = nn.Linear(channels, channels)
        self.perceptron = Perceptron(channels=channels, expansion=expansion, eps=eps, gelu=gelu)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        x = x.movedim(1, -1)
        query, key, value = (split_grid(each, self.heads) for each in self.qkv(self.norm(x)).chunk(3, dim=-1))
        attended = merge_grid(window_attend(query, key, value, window=self.window, strided=self.strided, bias=self.bias()))
        return self.perceptron(x + self.out(attended)).movedim(-1, 1)

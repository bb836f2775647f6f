"""From backbone features to a brain: what reads the features at each vertex or voxel (a unit).

Hosseini Adeli, Sun, Kriegeskorte, "Transformer brain encoders explain human high-level visual responses", NeurIPS 2025
(arXiv 2505.17329): the transformer, and the readouts that it is compared with.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.brain_encoders.readout import QueryReadout, UnitReadout
from shared.attention import RoutingCrossAttention, attend
from shared.attention.attend import check_heads, merge_heads, split_heads
from shared.attention.decoder import QueryAttention

__all__ = [
    "BrainEncoder",
    "FactorisedReadout",
    "LinearReadout",
    "RidgeReadout",
    "RoutingTransformer",
    "UnprojectedRouting",
    "sine_positions",
]


class BrainEncoder(nn.Module):
    """A frozen backbone and a readout: images in, one response for each unit out.

    Args:
        backbone: images [B, 3, H, W], normalised, to features [B, C, h, w].
        readout: features to responses [B, V].
    """

    def __init__(self, *, backbone: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.backbone, self.readout = backbone.requires_grad_(False), readout

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, 3, H, W], normalised. Returns responses [B, V] in the units trained on (z-scored, for most data)."""
        return self.readout(self.backbone(image))


class RoutingTransformer(nn.Module):
    """Learned queries, one for each region, hemisphere or unit, read the image by cross-attention; each unit reads its region's token.

    ``record(model)["decoder.0.attention"].mean()`` is the routing: [B, Q, h * w], what each query looked at.

    Args:
        feature_channels: C of the features; if it is not ``channels``, a 1 x 1 convolution brings it there.
        readout: tokens to units; says how many queries there are.
        channels: width of queries and tokens; a multiple of ``heads``.
        heads: attention heads; 16 in the paper.
        inner_channels: hidden width of the layers' networks.
        encoder_layers: self-attention layers over the features before the queries read them; none in the paper.
        decoder_layers: times that the queries read.
        norm_first: norms before attention and network (the paper's) rather than after.
        memory_layer: which encoder layer's output is read, from 0; -1 is the last. The published code has its backbone's number here.
        projects_values: False is the published "custom_transformer": no value projection, no residual around the attention and no last
            norm, so that tokens are weighted means of the features themselves.
    """

    def __init__(
        self,
        *,
        feature_channels: int,
        readout: QueryReadout | UnitReadout,
        channels: int = 768,
        heads: int = 16,
        inner_channels: int = 1024,
        encoder_layers: int = 0,
        decoder_layers: int = 1,
        norm_first: bool = True,
        memory_layer: int = -1,
        projects_values: bool = True,
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        if channels % 4:
            raise ValueError(f"channels={channels} must be a multiple of 4: the position code has sines and cosines along two axes")
        if encoder_layers and not -encoder_layers <= memory_layer < encoder_layers:
            raise ValueError(f"memory_layer={memory_layer} is not one of {encoder_layers} encoder layers")
        self.memory_layer = memory_layer
        self.project = nn.Identity() if feature_channels == channels else nn.Conv2d(feature_channels, channels, kernel_size=1)
        self.encoder = nn.ModuleList(
            EncoderLayer(channels=channels, heads=heads, inner_channels=inner_channels, norm_first=norm_first)
            for _ in range(encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(channels) if encoder_layers and norm_first else nn.Identity()
        width = {"channels": channels, "heads": heads, "inner_channels": inner_channels}
        self.decoder = nn.ModuleList(
            RoutingCrossAttention(**width, norm_first=norm_first) if projects_values else UnprojectedRouting(**width)
            for _ in range(decoder_layers)
        )
        self.norm = nn.LayerNorm(channels) if projects_values else nn.Identity()
        self.queries = nn.Parameter(torch.randn(readout.queries, channels))
        self.readout = readout

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """features: [B, C, h, w]; valid: bool [B, h, w], False where a batch's smaller images were padded. Returns [B, V]."""
        return self.readout(self.tokens(features, valid))

    def tokens(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """What each query has read: [B, Q, channels]."""
        features = self.project(features)
        batch, channels, height, width = features.shape
        seen = torch.ones(1, height, width, dtype=torch.bool, device=features.device) if valid is None else valid
        position = sine_positions(seen, channels=channels).to(features).flatten(2).mT
        mask = None if valid is None else valid.flatten(1)
        memory = self._memory(features.flatten(2).mT, position, mask)
        queries = self.queries.expand(batch, -1, -1)
        target = torch.zeros_like(queries)
        for layer in self.decoder:
            target = layer(queries, memory, position=position, target=target, mask=mask)
        return self.norm(target)

    def _memory(self, tokens: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        if not self.encoder:
            return tokens
        layers = []
        for layer in self.encoder:
            tokens = layer(tokens, position=position, mask=mask)
            layers.append(tokens)
        return self.encoder_norm(layers[self.memory_layer])


class EncoderLayer(nn.Module):
    """Self-attention among image tokens as in DETR (Carion et al., ECCV 2020, section A.3): positions on queries and keys only."""

    def __init__(self, *, channels: int, heads: int, inner_channels: int, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = QueryAttention(channels=channels, heads=heads)
        self.hidden = nn.Linear(channels, inner_channels)
        self.out = nn.Linear(inner_channels, channels)
        for layer in (self.attention.out, self.hidden, self.out):
            nn.init.xavier_uniform_(layer.weight)
        self.attention_norm, self.out_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, x: Tensor, *, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, C]; position: broadcasts to it; mask: bool [B, N], False: padding. Returns [B, N, C]."""
        if self.norm_first:
            normed = self.attention_norm(x)
            x = x + self.attention(normed + position, normed + position, normed, mask)
            return x + self._network(self.out_norm(x))
        x = self.attention_norm(x + self.attention(x + position, x + position, x, mask))
        return self.out_norm(x + self._network(x))

    def _network(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(x)))


class UnprojectedRouting(nn.Module):
    """The published "custom" layer: attention over the features as they are, replacing the target, then a network with a residual.

    Args:
        channels: width of queries and features; a multiple of ``heads``.
        heads: number of heads; 16, whatever is asked for, in the published code.
        inner_channels: width of the network's hidden layer.
    """

    def __init__(self, *, channels: int, heads: int = 16, inner_channels: int = 1024) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.attention = UnprojectedAttention(channels=channels, heads=heads)
        self.out_norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, inner_channels)
        self.out = nn.Linear(inner_channels, channels)

    def forward(
        self, x: Tensor, context: Tensor, *, position: Tensor | None = None, target: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x: queries [B, Q, C]; context: features [B, N, C]; position, target and mask as RoutingCrossAttention. Returns [B, Q, C]."""
        keys = context if position is None else context + position
        read = self.attention(x if target is None else target + x, keys, context, mask)
        return read + self.out(F.relu(self.hidden(self.out_norm(read))))


class UnprojectedAttention(nn.Module):
    """Multi-head attention whose values are the features themselves, cut into heads."""

    def __init__(self, *, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.out = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query: [B, Q, C]; key, value: [B, N, C]; mask: bool [B, N]. Returns [B, Q, C]."""
        parts = (split_heads(each, self.heads) for each in (self.query(query), self.key(key), value))
        return self.out(merge_heads(attend(*parts, mask=None if mask is None else mask[:, None, None, :])))


class FactorisedReadout(nn.Module):
    """Where and what apart: each query has one map over the places of the image, the same for every image, and its units read the mean.

    Klindt et al., "Neural system identification for large populations separating what and where", NeurIPS 2017; the published
    "spatial_feature" passes the maps through a softmax.

    Args:
        feature_channels: C of the features.
        grid: height and width of the features.
        readout: tokens to units.
    """

    def __init__(self, *, feature_channels: int, grid: tuple[int, int], readout: QueryReadout | UnitReadout) -> None:
        super().__init__()
        self.grid = grid
        self.maps = nn.Parameter(torch.randn(readout.queries, math.prod(grid)))
        self.readout = readout

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, C, h, w] of the grid. Returns [B, V]."""
        return self.readout(self.tokens(features))

    def tokens(self, features: Tensor) -> Tensor:
        """[B, Q, C].

        Raises:
            ValueError: if the features are of another grid.
        """
        if features.shape[2:] != self.grid:
            raise ValueError(f"features of {tuple(features.shape[2:])} places; this readout has maps for {self.grid}")
        return self.maps.softmax(dim=-1) @ features.flatten(2).mT

    def routing(self) -> Tensor:
        """The maps, [Q, h, w], each of which sums to 1."""
        return self.maps.softmax(dim=-1).unflatten(1, self.grid)


class LinearReadout(nn.Module):
    """Every place and channel to every unit: a 3 x 3 convolution of stride 3 to 256 channels, flattened, and one linear map.

    Args:
        feature_channels: C of the features.
        grid: height and width of the features.
        units: V.
        channels: of the convolution.
        stride: of the convolution; 3 for DINOv2 (31 x 31), 2 for CLIP (16 x 16), as published.
    """

    def __init__(self, *, feature_channels: int, grid: tuple[int, int], units: int, channels: int = 256, stride: int = 3) -> None:
        super().__init__()
        self.project = nn.Conv2d(feature_channels, channels, kernel_size=3, stride=stride, padding=1)
        places = math.prod((side - 1) // stride + 1 for side in grid)
        self.readout = nn.Linear(channels * places, units)

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, C, h, w] of the grid. Returns [B, V]."""
        return self.readout(self.tokens(features))

    def tokens(self, features: Tensor) -> Tensor:
        """[B, channels * places]."""
        return self.project(features).flatten(1)

    def penalty(self, hemispheres: tuple[int, ...]) -> Tensor:
        """The sum of the L2 norms (not squared, as published) of each hemisphere's weights and biases; the paper adds 0.02 times it."""
        parts = [*self.readout.weight.split(hemispheres), *self.readout.bias.split(hemispheres)]
        return torch.stack([part.norm() for part in parts]).sum()


class RidgeReadout(nn.Module):
    """A linear map from pooled features, as ridge regression found it; nothing here is trained by gradients.

    Args:
        feature_channels, grid: of the features.
        components: width after the projection; None: features are not projected.
        units: V.
        pool: height and width that the features are averaged to before they are flattened; (1, 1) is the mean over the image.
    """

    def __init__(
        self, *, feature_channels: int, grid: tuple[int, int], units: int, components: int | None = None, pool: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        self.pool = (min(pool[0], grid[0]), min(pool[1], grid[1]))
        inputs = feature_channels * math.prod(self.pool)
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.register_buffer("components", torch.zeros(components, inputs) if components else torch.empty(0))
        self.readout = nn.Linear(components or inputs, units).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, C, h, w]. Returns [B, V]."""
        return self.readout(self.tokens(features))

    def tokens(self, features: Tensor) -> Tensor:
        """The regressors: pooled, standardised by the training images, projected."""
        vectors = (self.vectors(features) - self.centre) / self.scale
        return vectors @ self.components.mT if self.components.numel() else vectors

    def vectors(self, features: Tensor) -> Tensor:
        """[B, C * pooled places]: what the projection is fitted on."""
        return pooled(features, self.pool)


def pooled(features: Tensor, places: tuple[int, int]) -> Tensor:
    """Features [B, C, h, w] averaged to ``places`` and flattened: [B, C * places]."""
    return F.adaptive_avg_pool2d(features, places).flatten(1)


def sine_positions(valid: Tensor, *, channels: int, temperature: float = 10_000.0) -> Tensor:
    """DETR's code of places: sines and cosines of the row, then of the column, each counted over valid places only.

    Args:
        valid: bool [B, h, w], False: padding.
        channels: of the code, half for each axis.

    Returns:
        [B, channels, h, w]. Coordinates count from 1 and are divided by the last, then run to 2 pi (Carion et al., ECCV 2020, A.4).
    """
    count = valid.float()
    half = channels // 2
    index = torch.arange(half, device=valid.device)
    period = temperature ** (2 * (index // 2) / half)

    def code(axis: int) -> Tensor:
        place = count.cumsum(axis)
        last = place.narrow(axis, place.shape[axis] - 1, 1)
        angle = (place / (last + 1e-6) * 2 * math.pi)[..., None] / period
        return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)

    return torch.cat([code(1), code(2)], dim=-1).movedim(-1, 1)

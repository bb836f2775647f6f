"""AGUNet and DAUNet: 3-D U-Nets whose decoder chooses from the skip connections, or whose bottom sees the whole volume at once.

Bouget, Pedersen, Hosainey, Solheim and Reinertsen, "Meningioma segmentation in T1-weighted MRI leveraging global context and attention
mechanisms", Frontiers in Radiology 2021. Where the article's figures and its code disagree, this follows the code, which was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from shared.attention import ChannelAttention, PositionAttention
from shared.attention.gate import ConcatenationGate
from shared.attention.maps import GivenMap
from shared.attention.recording import note, recording
from shared.layers import ConvNorm, conv

__all__ = ["AGUNet", "DAUNet", "PublishedChannelAttention"]

CHANNELS = (16, 32, 128, 256, 256)
"""The published widths, from full resolution down; for volumes of 128 x 128 x 144."""

EPSILON = 1e-3
"""Of Keras' batch normalisation."""


class AGUNet(nn.Module):
    """A 3-D U-Net with an attention gate on every skip connection.

    Args:
        in_channels: channels of the image.
        classes: with the background, which is class 0.
        channels: widths, from the full resolution to the bottom; each next one has half the resolution.
        multi_scale_input: the encoder sees the image at each of its resolutions but the coarsest.
        deep_supervision: a head at every resolution of the decoder, for training; otherwise at the full one only.
        attention_gates: False for the ablation: skip connections as they are.
        dropout: of whole channels, after each convolution of a block.
        momentum: the last batch's part of the normalisations' statistics.
        checkpointing: activations are computed again for the gradients instead of being kept: less memory, about a third more time.

    Raises:
        ValueError: if there are fewer than two widths or two classes, or a count is not positive.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 2,
        channels: Sequence[int] = CHANNELS,
        multi_scale_input: bool = True,
        deep_supervision: bool = True,
        attention_gates: bool = True,
        dropout: float = 0.0,
        momentum: float = 0.01,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check(in_channels, classes, channels)
        self.encoder = _encoder(in_channels, channels, multi_scale_input, dropout)
        self.bottom = ConvBlock(channels[-2], channels[-1], dropout)
        self.decoder = nn.ModuleList(
            GatedDecoder(below, width, attention_gate=attention_gates, dropout=dropout) for width, below in pairwise(channels)
        )
        self.heads = _heads(channels, classes, deep_supervision)
        self.checkpointing = checkpointing
        _begin_like_keras(self, momentum)

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, C, X, Y, Z], scaled to 0 to 1, each axis a multiple of 2 ** (widths - 1). Returns logits [B, classes, X, Y, Z].

        The published program also refuses an axis of 4 voxels or fewer before its last pooling; here it may be pooled.

        Raises:
            ValueError: if an axis is no such multiple.
        """
        return self.heads[0](self.features(image)[0])

    def side_outputs(self, image: Tensor) -> tuple[Tensor, ...]:
        """The logits of every head at its own resolution, the full one first: [B, classes, X / 2 ** i, Y / 2 ** i, Z / 2 ** i]."""
        return tuple(head(x) for head, x in zip(self.heads, self.features(image), strict=False))

    def features(self, image: Tensor) -> list[Tensor]:
        """What the decoder makes at each resolution, the full one first; what heads are put on."""
        run = _runner(self.checkpointing)
        x, skips = _encode(self.encoder, image, run)
        x = run(self.bottom, x)
        decoded: list[Tensor] = []
        for decoder, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = run(decoder, x, skip)
            decoded.insert(0, x)
        return decoded


class DAUNet(nn.Module):
    """A 3-D U-Net with dual attention at its bottom, of every position to all and of every channel to all, which guides the decoder.

    Released weights (folder DAGUNet) belong to ``channel_attention=PublishedChannelAttention``; ``apps.agunet.published`` sees to that.

    Args:
        in_channels, classes, channels, multi_scale_input, deep_supervision, dropout, momentum, checkpointing: as ``AGUNet``.
        dual_attention: False for the ablation: nothing but convolutions at the bottom.
        guidance: the bottom is brought to every level of the decoder; False for the ablation. The article draws it at the top level only.
        channel_attention: makes the channel half, ``channel_attention(channels=...)``.
        attention_dropout: of whole channels within and after the dual attention.

    Raises:
        ValueError: as ``AGUNet``, and if there is dual attention and the last width is below 8.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 2,
        channels: Sequence[int] = CHANNELS,
        multi_scale_input: bool = True,
        deep_supervision: bool = True,
        dual_attention: bool = True,
        guidance: bool = True,
        channel_attention: Callable[..., nn.Module] = ChannelAttention,
        dropout: float = 0.0,
        attention_dropout: float = 0.5,
        momentum: float = 0.01,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check(in_channels, classes, channels)
        self.encoder = _encoder(in_channels, channels, multi_scale_input, dropout)
        self.bottom = ConvBlock(channels[-2], channels[-1], dropout)
        self.attention = DualAttention(channels[-1], channel_attention, attention_dropout) if dual_attention else nn.Identity()
        self.decoder = nn.ModuleList(
            GuidedDecoder(below, width, guide_channels=channels[-1] if guidance else 0, guide_stride=2**steps, dropout=dropout)
            for steps, (width, below) in zip(range(len(channels) - 1, 0, -1), pairwise(channels), strict=True)
        )
        self.heads = _heads(channels, classes, deep_supervision)
        self.checkpointing = checkpointing
        _begin_like_keras(self, momentum)

    def forward(self, image: Tensor) -> Tensor:
        """As ``AGUNet.forward``."""
        return self.heads[0](self.features(image)[0])

    def side_outputs(self, image: Tensor) -> tuple[Tensor, ...]:
        """As ``AGUNet.side_outputs``."""
        return tuple(head(x) for head, x in zip(self.heads, self.features(image), strict=False))

    def features(self, image: Tensor) -> list[Tensor]:
        """As ``AGUNet.features``."""
        run = _runner(self.checkpointing)
        x, skips = _encode(self.encoder, image, run)
        x = bottom = run(self.attention, run(self.bottom, x))
        decoded: list[Tensor] = []
        for decoder, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = run(decoder, x, skip, bottom)
            decoded.insert(0, x)
        return decoded


class ConvBlock(nn.Module):
    """Twice: 3 x 3 x 3 convolution, normalisation, ReLU, dropout of whole channels. [B, C, *spatial] to [B, out, *spatial]."""

    def __init__(self, channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.first = ConvNorm(channels, out_channels, kernel=3, rank=3)
        self.second = ConvNorm(out_channels, out_channels, kernel=3, rank=3)
        self.dropout = nn.Dropout3d(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.first(x), inplace=True))
        return self.dropout(F.relu(self.second(x), inplace=True))


class EncoderLevel(nn.Module):
    """A block, and before it, where ``image_channels`` is not 0, a look at the image at this resolution. Returns [B, out, *spatial]."""

    def __init__(self, channels: int, out_channels: int, image_channels: int, dropout: float) -> None:
        super().__init__()
        self.look = conv(image_channels, out_channels, kernel=3, rank=3) if image_channels else None
        self.block = ConvBlock(channels + (out_channels if image_channels else 0), out_channels, dropout)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        if self.look is not None:
            x = torch.cat([F.relu(self.look(image), inplace=True), x], dim=1)
        return self.block(x)


class Upsampling(nn.Module):
    """A 3 x 3 x 3 transposed convolution to exactly ``stride`` times the size, each axis, aligned as TensorFlow's "same" aligns it.

    The first voxel of the input is centred on the second of the output; torch's padding=1 would shift everything by one voxel. Voxels
    that no kernel reaches (strides above 3) hold the bias.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(channels, out_channels, 3, stride=stride, output_padding=max(stride - 3, 0))

    def forward(self, x: Tensor) -> Tensor:
        stride = self.conv.stride[0]
        up = self.conv(x)
        return up[:, :, :-1, :-1, :-1] if stride == 2 else up


class GatedDecoder(nn.Module):
    """One step of AGUNet's decoder: up, gate the skip connection, join, convolve."""

    def __init__(self, channels: int, out_channels: int, *, attention_gate: bool, dropout: float) -> None:
        super().__init__()
        self.up = Upsampling(channels, out_channels, stride=2)
        self.norm = nn.BatchNorm3d(out_channels)
        self.gate = ConcatenationGate(channels=out_channels, gate_channels=out_channels, rank=3) if attention_gate else None
        self.block = ConvBlock(2 * out_channels, out_channels, dropout)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: [B, C, X/2, Y/2, Z/2]; skip: [B, out, X, Y, Z]. Returns [B, out, X, Y, Z]."""
        x = F.relu(self.norm(self.up(x)), inplace=True)
        if self.gate is not None:
            skip = self.gate(skip, x)
        return self.block(torch.cat([x, skip], dim=1))


class GuidedDecoder(nn.Module):
    """One step of DAUNet's decoder: up, join the skip connection and, where ``guide_channels`` is not 0, the bottom; then convolve."""

    def __init__(self, channels: int, out_channels: int, *, guide_channels: int, guide_stride: int, dropout: float) -> None:
        super().__init__()
        self.up = Upsampling(channels, out_channels, stride=2)
        self.guide = Upsampling(guide_channels, out_channels, stride=guide_stride) if guide_channels else None
        joined = (3 if guide_channels else 2) * out_channels
        self.norm = nn.BatchNorm3d(joined)
        self.block = ConvBlock(joined, out_channels, dropout)

    def forward(self, x: Tensor, skip: Tensor, bottom: Tensor) -> Tensor:
        """x: [B, C, X/2, Y/2, Z/2]; skip: [B, out, X, Y, Z]; bottom: [B, G, *coarsest]. Returns [B, out, X, Y, Z]."""
        joined = [skip, self.up(x)]
        if self.guide is not None:
            joined.insert(0, self.guide(bottom))
        return self.block(F.relu(self.norm(torch.cat(joined, dim=1)), inplace=True))


class DualAttention(nn.Module):
    """Position and channel attention side by side, each refined by convolutions, then added. [B, C, *spatial] to the same shape."""

    def __init__(self, channels: int, channel_attention: Callable[..., nn.Module], dropout: float) -> None:
        super().__init__()
        self.position = PositionAttention(channels=channels, bias=False, rank=3)
        self.position_branch = _branch(channels, dropout)
        self.channel = channel_attention(channels=channels)
        self.channel_branch = _branch(channels, dropout)
        self.dropout = nn.Dropout3d(dropout)
        self.fuse = ConvNorm(channels, channels, kernel=1, rank=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.dropout(self.position_branch(self.position(x)) + self.channel_branch(self.channel(x))))


class PublishedChannelAttention(nn.Module):
    """The channel attention that released weights rely on: each channel is handed out to the channels that are most like it.

    A fault of the published code, next to the dual attention that it cites (``shared.attention.ChannelAttention``, Fu et al., CVPR 2019):
    it sums over the wrong axis of the softmax. What a channel gives adds up to one, not what it receives, so a channel that many resemble
    grows, and others receive nothing. Energies are summed in float32.

    Args:
        channels: channels of the feature map; any number works.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, not {channels}")
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, *spatial]. Returns the same shape."""
        flat = x.flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            wide = flat if flat.dtype == torch.float64 else flat.float()
            weights = torch.softmax(wide @ wide.mT, dim=-1).mT.to(flat.dtype)
        if recording():
            note(GivenMap(weights.unsqueeze(1)))
        return self.gamma * (weights @ flat).reshape(x.shape) + x


def _check(in_channels: int, classes: int, channels: Sequence[int]) -> None:
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"channels must be two or more positive widths, not {tuple(channels)}")
    if in_channels < 1 or classes < 2:
        raise ValueError(f"at least one input channel and two classes (one is the background) are needed, not {in_channels} and {classes}")


def _encoder(in_channels: int, channels: Sequence[int], multi_scale_input: bool, dropout: float) -> nn.ModuleList:
    widths = [in_channels, *channels[:-1]]
    return nn.ModuleList(
        EncoderLevel(before, width, in_channels if multi_scale_input and level else 0, dropout)
        for level, (before, width) in enumerate(pairwise(widths))
    )


def _heads(channels: Sequence[int], classes: int, deep_supervision: bool) -> nn.ModuleList:
    return nn.ModuleList(conv(width, classes, kernel=1, rank=3) for width in (channels[:-1] if deep_supervision else channels[:1]))


def _branch(channels: int, dropout: float) -> nn.Sequential:
    refined = ConvNorm(channels, channels, kernel=3, rank=3)
    return nn.Sequential(refined, nn.ReLU(inplace=True), nn.Dropout3d(dropout), conv(channels, channels, kernel=3, rank=3))


def _begin_like_keras(network: nn.Module, momentum: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps, module.momentum = EPSILON, momentum
        elif isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _encode(levels: nn.ModuleList, image: Tensor, run: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What the bottom is given, and each level's skip connection."""
    multiple = 2 ** len(levels)
    if image.ndim != 5 or any(size % multiple for size in image.shape[2:]):
        raise ValueError(
            f"the image must be [B, C, X, Y, Z] with each of X, Y, Z a multiple of {multiple}, not {list(image.shape)}; pad or crop it"
        )
    x, skips = image, []
    for level in levels:
        skips.append(run(level, x, image))
        x, image = F.max_pool3d(skips[-1], 2), F.avg_pool3d(image, 2)
    return x, skips


def _runner(checkpointing: bool) -> Callable[..., Tensor]:
    return _run_twice if checkpointing and torch.is_grad_enabled() else _run


def _run(module: nn.Module, *inputs: Tensor) -> Tensor:
    return module(*inputs)


def _run_twice(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Now, and once more for the gradients, when nothing of this run is kept but its inputs."""
    if torch.compiler.is_compiling():
        # The compiler takes the updating of statistics out of what is run again, and wants no contexts.
        return checkpoint(module, *inputs, use_reentrant=False)
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=partial(_contexts, module))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch normalisation in training, as ever, but without counting the batch in its running statistics once more."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in module.modules() if isinstance(norm, _BatchNorm)]
    for norm, _, _ in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, tracked in kept:
            norm.momentum, norm.num_batches_tracked = momentum, tracked

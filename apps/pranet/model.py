"""PraNet: a global map from the deep features, then three reverse-attention steps that recover the boundary.

Fan et al., "PraNet: Parallel Reverse Attention Network for Polyp Segmentation", MICCAI 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import ReverseAttention
from shared.layers import ConvNorm, resize

__all__ = ["PartialDecoder", "PraNet", "ReceptiveFieldBlock", "Stages", "UNet"]

STRIDES = (8, 16, 32)


class Stages(NamedTuple):
    """Logits of every stage at its own resolution: each step refines the one before it."""

    coarse: Tensor
    """[B, 1, H/8, W/8], from the partial decoder."""
    stride32: Tensor
    """[B, 1, H/32, W/32]"""
    stride16: Tensor
    """[B, 1, H/16, W/16]"""
    stride8: Tensor
    """[B, 1, H/8, W/8], the prediction."""


class PraNet(nn.Module):
    """Binary segmentation of polyps in colonoscopy frames.

    Args:
        backbone: a timm model with features at strides 8, 16 and 32. ``res2net50d`` is the paper's Res2Net-50 v1b.
        channels: width of the receptive-field blocks and the decoder (paper, section 2.2).
        pretrained: load timm's ImageNet weights for the backbone; downloads them.

    Raises:
        ValueError: if the backbone is unknown to timm, or lacks features at one of the strides.
    """

    def __init__(self, *, backbone: str = "res2net50d", channels: int = 32, pretrained: bool = False) -> None:
        super().__init__()
        self.backbone, self.levels, widths = _encoder(backbone, pretrained)
        self.receptive = nn.ModuleList(ReceptiveFieldBlock(width, channels) for width in widths)
        self.decoder = PartialDecoder(channels)
        self.reverse8 = ReverseAttention(channels=widths[0], inner_channels=64)
        self.reverse16 = ReverseAttention(channels=widths[1], inner_channels=64)
        self.reverse32 = ReverseAttention(channels=widths[2], inner_channels=256, depth=3, kernel=5, out_kernel=1)

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, 3, H, W], normalised, H and W multiples of 32. Returns logits [B, 1, H, W]."""
        return resize(self.stages(image).stride8, image.shape[2:])

    def side_outputs(self, image: Tensor) -> tuple[Tensor, ...]:
        """The logits of every stage at the size of the image, [B, 1, H, W] each, coarsest first; training supervises each of them."""
        return tuple(resize(stage, image.shape[2:]) for stage in self.stages(image))

    def stages(self, image: Tensor) -> Stages:
        """The logits of every stage at its own resolution.

        Raises:
            ValueError: if H or W is not a multiple of 32.
        """
        if image.shape[2] % 32 or image.shape[3] % 32:
            raise ValueError(f"height and width must be multiples of 32, not {tuple(image.shape[2:])}; resize or pad the image")
        features = self.backbone(image)
        x8, x16, x32 = (features[level] for level in self.levels)
        coarse = self.decoder(*(block(x) for block, x in zip(self.receptive, (x8, x16, x32), strict=True)))
        stride32 = self.reverse32(x32, coarse)
        stride16 = self.reverse16(x16, stride32)
        return Stages(coarse, stride32, stride16, self.reverse8(x8, stride16))


class UNet(nn.Module):
    """The baseline that users report to come close: U-Net (Ronneberger et al., 2015) with a ResNet-34 encoder.

    Args:
        encoder: an encoder name of segmentation-models-pytorch.
        pretrained: load ImageNet weights for the encoder; downloads them.
    """

    def __init__(self, *, encoder: str = "resnet34", pretrained: bool = False) -> None:
        super().__init__()
        self.network = smp.Unet(encoder_name=encoder, encoder_weights="imagenet" if pretrained else None, in_channels=3, classes=1)

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, 3, H, W], normalised, H and W multiples of 32. Returns logits [B, 1, H, W]."""
        return self.network(image)

    def side_outputs(self, image: Tensor) -> tuple[Tensor, ...]:
        """The one output, as ``PraNet.side_outputs``."""
        return (self.network(image),)


class ReceptiveFieldBlock(nn.Module):
    """Four branches of growing receptive field, fused (paper, section 2.2; after Liu et al., "Receptive Field Block Net", ECCV 2018).

    The only non-linearity is the last ReLU: the published unit holds one that its forward never calls.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self._branch(channels, out_channels, side) for side in (1, 3, 5, 7))
        self.fuse = ConvNorm(4 * out_channels, out_channels, kernel=3)
        self.shortcut = ConvNorm(channels, out_channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]. Returns [B, out_channels, H, W]."""
        return F.relu(self.fuse(torch.cat([branch(x) for branch in self.branches], dim=1)) + self.shortcut(x))

    @staticmethod
    def _branch(channels: int, out_channels: int, side: int) -> nn.Sequential:
        layers = [ConvNorm(channels, out_channels, kernel=1)]
        if side > 1:
            layers.append(ConvNorm(out_channels, out_channels, kernel=(1, side)))
            layers.append(ConvNorm(out_channels, out_channels, kernel=(side, 1)))
            layers.append(ConvNorm(out_channels, out_channels, kernel=3, dilation=side))
        return nn.Sequential(*layers)


class PartialDecoder(nn.Module):
    """Joins three levels by products and concatenations into one map (paper, section 2.2; Wu et al., "Cascaded Partial Decoder", 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up16 = ConvNorm(channels, channels, kernel=3)
        self.up8_from32 = ConvNorm(channels, channels, kernel=3)
        self.up8_from16 = ConvNorm(channels, channels, kernel=3)
        self.lift16 = ConvNorm(channels, channels, kernel=3)
        self.lift8 = ConvNorm(2 * channels, 2 * channels, kernel=3)
        self.join16 = ConvNorm(2 * channels, 2 * channels, kernel=3)
        self.join8 = ConvNorm(3 * channels, 3 * channels, kernel=3)
        self.smooth = ConvNorm(3 * channels, 3 * channels, kernel=3)
        self.score = nn.Conv2d(3 * channels, 1, kernel_size=1)

    def forward(self, x8: Tensor, x16: Tensor, x32: Tensor) -> Tensor:
        """x8, x16, x32: [B, C, H/8, W/8] and coarser. Returns logits [B, 1, H/8, W/8]."""
        from32 = _double(x32)
        product16 = self.up16(from32) * x16
        product8 = self.up8_from32(_double(from32)) * self.up8_from16(_double(x16)) * x8
        joined16 = self.join16(torch.cat([product16, self.lift16(from32)], dim=1))
        joined8 = self.join8(torch.cat([product8, self.lift8(_double(joined16))], dim=1))
        return self.score(self.smooth(joined8))


def _double(x: Tensor) -> Tensor:
    # The only resizing in PraNet whose corners are aligned; the published weights expect it.
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def _encoder(name: str, pretrained: bool) -> tuple[nn.Module, list[int], list[int]]:
    """The backbone, which of its features have strides 8, 16 and 32, and their widths."""
    try:
        encoder = timm.create_model(name, features_only=True, pretrained=pretrained)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"backbone {name!r} cannot be made by timm with features_only: {error}") from error
    strides = encoder.feature_info.reduction()
    if missing := [stride for stride in STRIDES if stride not in strides]:
        raise ValueError(f"backbone {name!r} has features at strides {strides}; PraNet also needs {missing}")
    levels = [strides.index(stride) for stride in STRIDES]
    return encoder, levels, [encoder.feature_info.channels()[level] for level in levels]

"""Frozen networks that turn images into features [B, C, h, w]: any layer of any timm or transformers model by name, or Gabor energies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.brain_encoders.hub import quiet_hub
from shared.errors import UserError

__all__ = ["GaborPyramid", "LayerFeatures", "as_maps", "build_backbone", "published_dino", "resample_positions"]


class LayerFeatures(nn.Module):
    """What one layer of a network answers, as maps.

    Args:
        network: images [B, 3, H, W] to anything.
        layer: name of a module within it: "blocks.9", "layer4", "blocks.11.attn.qkv".
        part: "whole", or "query", "key", "value": that third of the layer's channels, for layers that compute all three at once.
        norm: name of a module that is applied to the layer's answer, such as a transformer's last norm; empty: none.
        prefix: tokens before those of patches (class token, registers); they are left out.
        grid: height and width of the patches' tokens; None: square.
    """

    def __init__(
        self, network: nn.Module, *, layer: str, part: str = "whole", norm: str = "", prefix: int = 0, grid: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        modules = dict(network.named_modules())
        for name in filter(None, (layer, norm)):
            if name not in modules:
                some = ", ".join([each for each in modules if each and each.count(".") < 2][:30])
                raise UserError(f"backbone.layer: the network has no module {name!r}. Some that it has: {some}.")
        self.network, self.layer, self.part, self.norm, self.prefix, self.grid = network, layer, part, norm, prefix, grid

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, 3, H, W]. Returns [B, C, h, w]."""
        seen: list[Any] = []
        hook = self.network.get_submodule(self.layer).register_forward_hook(lambda module, arguments, answer: seen.append(answer))
        try:
            self.network(image)
        finally:
            hook.remove()
        found = first_tensor(seen[-1])
        if self.part != "whole":
            found = found.chunk(3, dim=-1)[("query", "key", "value").index(self.part)]
        if self.norm:
            found = self.network.get_submodule(self.norm)(found)
        channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return as_maps(found, prefix=self.prefix, grid=self.grid, channels_last=channels_last)


class GaborPyramid(nn.Module):
    """Local energies of Gabor wavelets and colour: a model of early vision that needs no weights.

    Kay et al., "Identifying natural images from human brain activity", Nature 2008: quadrature pairs at several orientations and scales;
    the energy is the square root of their summed squares, its logarithm is averaged over each cell of the grid. Local contrast and mean
    colour are added.

    Args:
        cell: side of a cell of the grid in pixels.
        orientations: number of orientations.
        wavelengths: in pixels, one for each scale.
    """

    def __init__(self, *, cell: int = 8, orientations: int = 4, wavelengths: tuple[float, ...] = (4.0, 8.0, 16.0)) -> None:
        super().__init__()
        self.cell = cell
        self.scales = len(wavelengths)
        for index, wavelength in enumerate(wavelengths):
            self.register_buffer(f"wavelets_{index}", _wavelets(wavelength, orientations), persistent=False)
        self.channels = orientations * self.scales + 4

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, 3, H, W], any normalisation of RGB. Returns [B, channels, H // cell, W // cell]."""
        light = image.mean(1, keepdim=True)
        energies = []
        for index in range(self.scales):
            wavelets = getattr(self, f"wavelets_{index}")
            margin = wavelets.shape[-1] // 2
            answer = F.conv2d(F.pad(light, [margin] * 4, mode="replicate"), wavelets)
            energies.append(torch.log1p(10 * answer.unflatten(1, (-1, 2)).square().sum(2).sqrt()))
        mean = F.avg_pool2d(light, self.cell)
        contrast = (F.avg_pool2d(light.square(), self.cell) - mean.square()).clamp(min=0).sqrt()
        colour = torch.cat([image[:, :1] - image[:, 1:2], image[:, 2:] - image[:, :2].mean(1, keepdim=True)], dim=1)
        energy = F.avg_pool2d(torch.cat(energies, dim=1), self.cell)
        # Offsets and gains of photographs, so that all channels have about mean 0 and variance 1 there.
        parts = [2.5 * (energy - 0.6), mean, 3.5 * (contrast - 0.4), 4 * F.avg_pool2d(colour, self.cell)]
        return torch.cat(parts, dim=1)


def build_backbone(
    source: str,
    *,
    name: str,
    layer: str,
    part: str = "whole",
    norm: str = "",
    size: int | tuple[int, int] = 224,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A backbone in eval mode, for images of ``size`` x ``size`` after padding.

    Args:
        source: "gabor"; "timm"; "transformers", whose name may be a folder that ``save_pretrained`` wrote.
        name: of the model there.
        layer, part, norm: see LayerFeatures.
        size: side of the square image, or height and width.
        pretrained: take the published weights, which downloads them; for timm's DINOv2 the position code is resampled as published.
        options: other arguments of the model's constructor (of its configuration, for transformers).

    Raises:
        UserError: if there is no such model or layer, or its weights cannot be had.
    """
    options = dict(options or {})
    try:
        if source == "gabor":
            return GaborPyramid(**options).eval()
        with quiet_hub():
            return (
                _timm(name, layer, part, norm, size, pretrained, options)
                if source == "timm"
                else _transformers(name, layer, part, norm, pretrained, options)
            )
    except UserError:
        raise
    except OSError as error:
        wanted = "backbone.pretrained needs weights that cannot be had here"
        raise UserError(
            f"{wanted} ({' '.join(str(error).split())[:200]}). Give a file with backbone.weights, or a folder as backbone.name."
        ) from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"backbone: {source} model {name!r} cannot be made: {' '.join(str(error).split())[:300]}") from error


def published_dino(state: Mapping[str, Tensor], *, grid: tuple[int, int]) -> dict[str, Tensor]:
    """DINOv2's own weights for timm's network at another image size: the position code resampled as published, the mask token left out."""
    state = {name: value for name, value in state.items() if name != "mask_token"}
    return {**state, "pos_embed": resample_positions(state["pos_embed"], grid)}


def resample_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """DINOv2's position code for another grid: bicubic by scale factors with an offset of 0.1, without antialiasing (Oquab et al., 2023).

    timm and transformers resample to a size, which gives other numbers.

    Args:
        table: [1, 1 + side * side, C], the class token first.
        grid: height and width in patches.

    Returns:
        [1, 1 + height * width, C]; ``table`` itself for its own grid.
    """
    side = math.isqrt(table.shape[1] - 1)
    if grid == (side, side):
        return table
    patches = table[:, 1:].float().unflatten(1, (side, side)).movedim(-1, 1)
    factors = tuple((places + 0.1) / side for places in grid)
    resampled = F.interpolate(patches, scale_factor=factors, mode="bicubic", antialias=False)
    if resampled.shape[2:] != grid:
        raise ValueError(f"a position code of {side} x {side} does not resample to {grid[0]} x {grid[1]}")
    return torch.cat([table[:, :1], resampled.flatten(2).mT.to(table)], dim=1)


def as_maps(found: Tensor, *, prefix: int = 0, grid: tuple[int, int] | None = None, channels_last: bool = False) -> Tensor:
    """Whatever a layer answers as maps [B, C, h, w]: maps themselves, tokens [B, N, C] without their prefix, or vectors [B, C]."""
    if found.ndim == 4:
        return found.movedim(-1, 1) if channels_last else found
    if found.ndim == 2:
        return found[:, :, None, None]
    tokens = found[:, prefix:]
    side = math.isqrt(tokens.shape[1])
    height, width = grid or (side, side)
    if height * width != tokens.shape[1]:
        height, width = 1, tokens.shape[1]  # a sequence, not a picture
    return tokens.mT.unflatten(2, (height, width))


def first_tensor(answer: Any) -> Tensor:
    """The first tensor of a layer's answer, which may be a tuple or one of transformers' outputs."""
    if isinstance(answer, Tensor):
        return answer
    values = answer.values() if isinstance(answer, Mapping) else answer
    return next(first_tensor(value) for value in values if value is not None)


def _timm(name: str, layer: str, part: str, norm: str, size: int | tuple[int, int], pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    sized = "vit_" in name or "deit" in name or "beit" in name or "eva" in name or "swin" in name
    arguments = {**options, **({"img_size": size} if sized else {})}
    if pretrained and "dinov2" in name:
        network = timm.create_model(name, pretrained=False, **arguments)
        own = timm.create_model(name, pretrained=True, **options).state_dict()
        network.load_state_dict(published_dino(own, grid=tuple(network.patch_embed.grid_size)))
    else:
        network = timm.create_model(name, pretrained=pretrained, **arguments)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    prefix = getattr(network, "num_prefix_tokens", 0)
    return LayerFeatures(
        network, layer=layer, part=part, norm=norm, prefix=prefix, grid=None if grid is None else (int(grid[0]), int(grid[1]))
    ).eval()


def _transformers(name: str, layer: str, part: str, norm: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    prefix = options.pop("prefix", 1)
    if pretrained:
        network = AutoModel.from_pretrained(name, **options)
    else:
        kind = options.pop("model_type", None)
        configuration = AutoConfig.for_model(kind, **options) if kind else AutoConfig.from_pretrained(name, **options)
        network = AutoModel.from_config(configuration)
    network = getattr(network, "vision_model", network)  # of joint models such as CLIP: their side that takes images alone
    return LayerFeatures(network, layer=layer, part=part, norm=norm, prefix=prefix).eval()


def _wavelets(wavelength: float, orientations: int) -> Tensor:
    """Sine and cosine of each orientation, [2 * orientations, 1, side, side]; the Gaussian's deviation is 0.4 wavelengths."""
    sigma = 0.4 * wavelength
    radius = math.ceil(2.5 * sigma)
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    envelope = torch.exp(-(x.square() + y.square()) / (2 * sigma**2))
    wavelets = []
    for index in range(orientations):
        angle = math.pi * index / orientations
        phase = 2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
        for wave in (phase.sin(), phase.cos()):
            wavelet = envelope * wave
            wavelet = wavelet - envelope * (wavelet.sum() / envelope.sum())  # blind to uniform light
            wavelets.append(wavelet / wavelet.abs().sum())
    return torch.stack(wavelets)[:, None]

"""Blocks that several apps use. Pure torch."""

from shared.layers.convolution import ConvNorm, conv, interpolation_mode, norm, resize

__all__ = ["ConvNorm", "conv", "interpolation_mode", "norm", "resize"]

"""A batch normalisation and the convolution before it, as one: in evaluation both are linear, in training a bias between them is idle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["fold_bias", "merge_norm"]


def fold_bias(state: Mapping[str, Tensor], *, conv: str, norm: str) -> dict[str, Tensor]:
    """Takes out the bias of a convolution that a batch normalisation follows: it only shifts the mean which that subtracts.

    Published code often has such a bias; ``shared.layers.ConvNorm`` does not.

    Args:
        state: a state dict; it is not changed.
        conv: name of the convolution in it.
        norm: name of the normalisation.
    """
    folded = dict(state)
    bias = folded.pop(f"{conv}.bias")
    folded[f"{norm}.running_mean"] = folded[f"{norm}.running_mean"] - bias
    return folded


def merge_norm(weight: Tensor, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The convolution that does in evaluation what one without bias and the batch normalisation after it do together.

    Args:
        weight: of the convolution, [out, in, *kernel].
        norm: its batch normalisation, with a weight and a bias.

    Returns:
        The weight, and the bias [out].
    """
    factor = norm.weight * torch.rsqrt(norm.get_buffer("running_var") + norm.eps)
    return weight * factor.reshape(-1, *(1 for _ in weight.shape[1:])), norm.bias - norm.get_buffer("running_mean") * factor

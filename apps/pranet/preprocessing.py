"""From a frame to what the network takes. Training, inference and the exported models agree because all of them use this."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["MEAN", "STD", "resize", "to_input", "to_target"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for values 0 to 1."""


def to_input(image: NDArray[np.uint8], *, size: int) -> Tensor:
    """An RGB frame [H, W, 3] as [3, size, size], resized and normalised."""
    scaled = (resize(image, size).astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32))


def to_target(grey: NDArray[np.uint8], *, size: int) -> Tensor:
    """A mask [H, W] of grey values 0 to 255 as [1, size, size], 0 to 1; resizing leaves values between, and they stay, as published."""
    return torch.from_numpy(resize(grey, size).astype(np.float32) / 255)[None]


def resize(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[H, W] or [H, W, 3] as a square of ``size``, bilinear with Pillow's antialias; the aspect ratio is not kept (paper, section 3.1)."""
    return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BILINEAR))

"""From a picture to what the backbone takes. Training, inference and the exported models agree because all of them use this."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["MEAN", "STD", "padded_side", "to_input"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for values 0 to 1; the published program uses them for every backbone, CLIP too."""


def to_input(image: NDArray[np.uint8], *, size: int, multiple: int = 1) -> Tensor:
    """An RGB picture [H, W, 3] as [3, S, S]: resized to a square, normalised, and then padded with zeros at the bottom and the right."""
    square = (
        image if image.shape[:2] == (size, size) else np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    )
    scaled = (square.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    side = padded_side(size, multiple)
    result = torch.zeros(3, side, side)
    result[:, :size, :size] = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
    return result


def padded_side(size: int, multiple: int) -> int:
    """The next multiple: 425 becomes 434 with patches of 14."""
    return -(-size // multiple) * multiple

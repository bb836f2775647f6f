"""Weights, bit by bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch

__all__ = ["fingerprint"]


def fingerprint(bundle: Path) -> dict[str, str]:
    """Name -> checksum of every tensor of a bundle."""
    state = safetensors.torch.load_file(bundle / "model.safetensors")
    return {name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in state.items()}

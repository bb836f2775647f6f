"""Which device to compute on, and in which precision: decided by what the machine can do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from shared.errors import UserError

__all__ = ["autocast", "resolve_device", "resolve_precision"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """auto (the first CUDA GPU, else Apple's, else the CPU), or any name that torch knows, such as cpu or cuda:1.

    Raises:
        UserError: if there is no such device here; names those that there are.
    """
    available = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())] + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return torch.device(next((device for device in available[1:]), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in [
        f"{torch.device(other).type}:{torch.device(other).index or 0}" for other in available
    ]:
        raise UserError(f"device {name!r} is not here. Available: auto, {', '.join(available)}.")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """auto, fp32, bf16 or fp16, as one of the last three.

    auto takes bf16 on a GPU with native bf16 (compute capability 8.0 and later), fp16 on older CUDA GPUs, and fp32 everywhere else: on a
    CPU bf16 changes the answer in the third decimal, and without bf16 instructions it is several times slower.
    """
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a network computes in ``precision`` (fp32, bf16 or fp16) on ``device``."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=_TYPES[precision])

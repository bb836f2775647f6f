"""Time and peak memory of a call, measured and not estimated."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["fastest_ms", "peak_bytes"]

# Read by the profiler when it first starts: otherwise each start and stop is a line on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "9")


def fastest_ms(call: Callable[[], object], *, rounds: int = 5, device: str = "cpu") -> float:
    """Milliseconds of the fastest of some rounds, after one that does not count."""
    call()
    best = float("inf")
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 1000 * best


def peak_bytes(call: Callable[[], object], *, device: str = "cpu") -> int:
    """Most memory that torch held at once during the call, above what it held before, in bytes.

    On a CPU it is added up from the allocator's own events, so that it is exact, and the same at every call.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = peak = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)

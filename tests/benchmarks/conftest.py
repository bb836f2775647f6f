"""Speed and memory beside a reference of the same run; ``pytest tests/benchmarks --benchmark-only`` ends with the ratios."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest
import torch

from shared.attention.measure import peak_bytes


@dataclass
class Measured:
    seconds: float
    bytes: int
    images: int


@dataclass
class Ledger:
    """What was measured: group -> way -> figures; the first way of a group is its reference."""

    groups: dict[str, dict[str, Measured]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        for group, ways in self.groups.items():
            reference = next(iter(ways.values()))
            yield group
            yield f"  {'way':<44}{'samples/s':>10}{'peak MiB':>10}{'speed':>9}{'memory':>9}"
            for way, one in ways.items():
                memory = f"x{one.bytes / reference.bytes:.2f}" if reference.bytes else "-"
                speed = f"x{reference.seconds / one.seconds:.2f}"
                yield f"  {way:<44}{one.images / one.seconds:>10.2f}{one.bytes / 2**20:>10.1f}{speed:>9}{memory:>9}"


LEDGER = Ledger()


def pytest_addoption(parser) -> None:
    parser.addoption("--full-size", action="store_true", help="also measure the sizes of real studies, which take minutes each")


@pytest.fixture
def measure(benchmark) -> Callable[..., None]:
    """measure(group, way, function, images=n): the fastest of some rounds, and the peak memory above what stood before.

    ``tensors_only`` counts what torch allocates, exactly, where the default watches the whole process. A single round is one of minutes:
    it is timed and watched at once, and none goes before it.
    """

    def run(group: str, way: str, function: Callable[[], object], *, images: int, rounds: int = 5, tensors_only: bool = False) -> None:
        def watched() -> int:
            return peak_bytes(function, device="cuda" if torch.cuda.is_available() else "cpu") if tensors_only else _peak_bytes(function)

        benchmark.group = group
        if rounds == 1:
            peak = benchmark.pedantic(watched, rounds=1)
        else:
            function()
            peak = watched()
            benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
        LEDGER.groups.setdefault(group, {})[way] = Measured(benchmark.stats.stats.min, peak, images)

    return run


def pytest_terminal_summary(terminalreporter) -> None:
    if LEDGER.groups:
        terminalreporter.section("ratios to the first way of each group (fastest round; peak memory above the start)")
        for line in LEDGER.lines():
            terminalreporter.write_line(line)


def _peak_bytes(function: Callable[[], object]) -> int:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    process, stop, peak = psutil.Process(), threading.Event(), 0
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    stop.set()
    watcher.join()
    return peak

"""``python -m shared.attention``: every block with what it costs, by formula and by measurement."""

from __future__ import annotations

import argparse
import csv
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.attention.measure import fastest_ms, peak_bytes
from shared.attention.registry import Entry, cost_of, create, find, list_blocks, settings_of

__all__ = ["main"]

Row = dict[str, Any]
MARKERS = "os^vD*PX<>dphH8"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m shared.attention", description=__doc__)
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help="some blocks by name; all by default")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--grid", type=int, nargs="+", default=[32, 32], metavar="N", help="positions along each of one to three axes")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest counts")
    parser.add_argument("--costs-only", action="store_true", help="formulas alone: nothing is run")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table here too")
    parser.add_argument("--growth", type=Path, metavar="FILE.png", help="draw how time, memory and FLOPs grow with the number of positions")
    chosen = parser.parse_args(arguments)
    if not 1 <= len(chosen.grid) <= 3 or min([*chosen.grid, chosen.channels, chosen.batch, chosen.rounds]) < 1:
        parser.error("--grid takes one to three sizes, and all numbers must be positive")
    try:
        entries = [find(name) for name in chosen.blocks] or list(list_blocks())
    except ValueError as error:
        parser.error(str(error))
    device = torch.device(chosen.device)
    if device.type == "cpu":
        torch.set_num_threads(1)

    rows = []
    print(_HEADING.format(*_COLUMNS))
    for entry in entries:
        row = measured(
            entry, chosen.channels, tuple(chosen.grid), batch=chosen.batch, device=chosen.device, rounds=chosen.rounds, run=not chosen.costs_only
        )
        rows.append(row)
        print(_line(row), flush=True)
    if chosen.csv:
        with chosen.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(_KEYS))
            writer.writeheader()
            writer.writerows({key: row.get(key) for key in _KEYS} for row in rows)
    if chosen.growth:
        _draw_growth(entries, chosen.channels, len(chosen.grid), chosen.growth, device=chosen.device)
        print(f"drawn: {chosen.growth}")
    return 0


def measured(entry: Entry, channels: int, grid: tuple[int, ...], *, batch: int, device: str, rounds: int, run: bool = True) -> Row:
    """One row: what the formulas say, and if ``run``, what a forward and a backward pass took."""
    row: Row = {"block": entry.name, "paper": entry.paper, "ranks": ", ".join(f"{rank}-D" for rank in entry.ranks) or "sequence"}
    if entry.ranks and len(grid) not in entry.ranks:
        return row | {"remark": f"not for {len(grid)} axes"}
    accepted = inspect.signature(entry.block.__init__).parameters
    settings = dict(entry.example) | {key: value for key, value in {"channels": channels, "rank": len(grid)}.items() if key in accepted}
    settings = {key: value for key, value in settings.items() if key not in entry.preset}
    try:
        block = create(entry.name, **settings).to(device)
        cost = cost_of(entry.name, grid, **settings)
        row |= {"parameters": cost.parameters, "mflop": 2e-6 * cost.macs}
        if run:
            row |= _run(block, entry.inputs(settings_of(entry.name)(**settings), batch, grid), device, rounds)
    except (ValueError, RuntimeError) as error:
        row["remark"] = str(error).splitlines()[0]
    return row


def _run(block: torch.nn.Module, inputs: dict[str, Any], device: str, rounds: int) -> Row:
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    floats = [value.requires_grad_() for value in inputs.values() if isinstance(value, Tensor) and value.is_floating_point()]

    def forward() -> None:
        with torch.no_grad():
            block(**inputs)

    def train() -> None:
        output = block(**inputs)
        outputs = [each for each in ((output,) if isinstance(output, Tensor) else output) if each.requires_grad]
        torch.autograd.grad([each.sum() for each in outputs], [*floats, *block.parameters()], allow_unused=True)

    forward_ms = fastest_ms(forward, rounds=rounds, device=device)
    return {
        "forward_ms": forward_ms,
        "backward_ms": max(0.0, fastest_ms(train, rounds=rounds, device=device) - forward_ms),
        "forward_mb": peak_bytes(forward, device=device) / 1e6,
        "training_mb": peak_bytes(train, device=device) / 1e6,
    }


_KEYS = ("block", "parameters", "mflop", "forward_ms", "backward_ms", "forward_mb", "training_mb", "ranks", "paper", "remark")
_COLUMNS = ("block", "parameters", "MFLOP", "forward ms", "backward ms", "forward MB", "training MB", "ranks", "paper")
_HEADING = "{:<26}{:>11}{:>10}{:>12}{:>13}{:>12}{:>13}  {:<15}{}"


def _line(row: Row) -> str:
    numbers = [f"{row[key]:,.{digits}f}" if key in row else "-" for key, digits in zip(_KEYS[1:7], (0, 1, 2, 2, 2, 2), strict=True)]
    remark = f"  ({row['remark']})" if "remark" in row else ""
    return _HEADING.format(row["block"], *numbers, row["ranks"], row["paper"] + remark)


def _draw_growth(entries: list[Entry], channels: int, rank: int, path: Path, *, device: str) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("--growth needs matplotlib: pip install matplotlib")
    sides = {1: (256, 1024, 4096), 2: (16, 32, 64), 3: (6, 10, 16)}[rank]
    figure, axes = plt.subplots(1, 3, figsize=(15, 0.22 * len(entries) + 5), layout="constrained")
    for number, entry in enumerate(entries):
        rows = [(side**rank, measured(entry, channels, (side,) * rank, batch=1, device=device, rounds=2)) for side in sides]
        rows = [(positions, row) for positions, row in rows if "forward_ms" in row]
        for axis, key in zip(axes, ("mflop", "forward_ms", "forward_mb"), strict=True):
            axis.plot(
                [positions for positions, _ in rows],
                [row[key] for _, row in rows],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                color=plt.get_cmap("turbo")(number / max(1, len(entries) - 1)),
                label=entry.name,
            )
    for axis, title in zip(axes, ("MFLOP by formula", "forward, ms", "peak memory of a forward, MB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel=f"positions ({rank}-D, {channels} channels)", title=title)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())

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
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--scatter", type=Path, metavar="FILE.png", help="draw time against FLOPs")
    parser.add_argument("--growth", type=Path, metavar="FILE.png", help="draw how FLOPs, time and memory grow with the number of positions")
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

    line, heading = (_markdown, _MARKDOWN_HEADING) if chosen.markdown else (_line, _HEADING.format(*_COLUMNS))
    print(heading)
    rows = []
    for entry in entries:
        row = measured(
            entry,
            chosen.channels,
            tuple(chosen.grid),
            batch=chosen.batch,
            device=chosen.device,
            rounds=chosen.rounds,
            run=not chosen.costs_only,
        )
        rows.append(row)
        print(line(row), flush=True)
    if chosen.csv:
        with chosen.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(_KEYS))
            writer.writeheader()
            writer.writerows({key: row.get(key) for key in _KEYS} for row in rows)
    if chosen.scatter:
        _draw_scatter([row for row in rows if "forward_ms" in row], chosen.channels, tuple(chosen.grid), chosen.scatter)
        print(f"drawn: {chosen.scatter}")
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
_HEADING = "{:<26}{:>12}{:>14}{:>12}{:>13}{:>12}{:>13}  {:<15}{}"


def _line(row: Row) -> str:
    numbers = [f"{row[key]:,.{digits}f}" if key in row else "-" for key, digits in zip(_KEYS[1:7], (0, 1, 2, 2, 2, 2), strict=True)]
    remark = f"  ({row['remark']})" if "remark" in row else ""
    return _HEADING.format(row["block"], *numbers, row["ranks"], row["paper"] + remark)


_MARKDOWN_HEADING = """| block | does | paper | axes | parameters | MFLOP | forward ms | backward ms | peak MB, forward / training |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"""


def _markdown(row: Row) -> str:
    numbers = [f"{row[key]:,.{digits}f}" if key in row else "-" for key, digits in zip(_KEYS[1:7], (0, 1, 1, 1, 1, 1), strict=True)]
    cells = [f"`{row['block']}`", find(row["block"]).summary, row["paper"], row["ranks"], *numbers[:4], " / ".join(numbers[4:])]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("the figures need matplotlib: pip install matplotlib")
    return plt


def _draw_scatter(rows: list[Row], channels: int, grid: tuple[int, ...], path: Path) -> None:
    plt = _pyplot()
    rows = [row for row in rows if not row["block"].endswith("_published")]
    figure, axis = plt.subplots(figsize=(12, 9), layout="constrained")
    lowest = 0.02
    points = [(max(row["mflop"], lowest), row["forward_ms"]) for row in rows]
    axis.scatter(*zip(*points, strict=True), s=16, color="#0b5394", zorder=3)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel=f"MFLOP by formula, {' x '.join(map(str, grid))} positions, {channels} channels (at the left edge: {lowest} or less)",
        ylabel="forward, ms",
        title="FLOPs do not tell the time: above the line a block is slower than its FLOPs say",
    )
    typical = sorted(y / x for x, y in points if x > 1)
    if typical:
        ends = (lowest, max(x for x, _ in points))
        axis.plot(
            ends, [typical[len(typical) // 2] * end for end in ends], color="#999999", linewidth=1, label="the middle block's time per FLOP"
        )
        axis.set_ylim(min(y for _, y in points) / 1.5, max(y for _, y in points) * 1.5)
        axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    figure.canvas.draw()
    _label(axis, [row["block"] for row in rows], points)
    figure.savefig(path, dpi=120)


def _label(axis: Any, names: list[str], points: list[tuple[float, float]]) -> None:
    """Writes each name beside its point, where none stands yet."""
    pixels = [tuple(axis.transData.transform(point)) for point in points]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in pixels]
    scale = axis.figure.dpi / 72
    for name, point, (x, y) in sorted(zip(names, points, pixels, strict=True), key=lambda item: item[2][1]):
        width, height = 4.4 * scale * len(name), 8 * scale
        places = [(side, lift) for lift in (0, 6, -6, 12, -12, 18, -18, 24, -24, 32, -32) for side in (5, -5 - width / scale)]
        boxes = [(x + dx * scale, y + dy * scale - height / 2, x + dx * scale + width, y + dy * scale + height / 2) for dx, dy in places]
        free = [index for index, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)]
        chosen = free[0] if free else 0
        taken.append(boxes[chosen])
        far = abs(places[chosen][1]) > 6
        axis.annotate(
            name,
            point,
            xytext=places[chosen],
            textcoords="offset points",
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6} if far else None,
        )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_growth(entries: list[Entry], channels: int, rank: int, path: Path, *, device: str) -> None:
    plt = _pyplot()
    sides = {1: (256, 1024, 4096), 2: (16, 32, 64), 3: (6, 10, 16)}[rank]
    found = {
        entry.name: [measured(entry, channels, (side,) * rank, batch=1, device=device, rounds=3) for side in sides] for entry in entries
    }
    found = {name: rows for name, rows in found.items() if all("forward_ms" in row for row in rows)}
    positions = [side**rank for side in sides]
    figure, axes = plt.subplots(1, 3, figsize=(15, 6 + 0.12 * len(found)), layout="constrained")
    for axis, key, title in zip(
        axes, ("mflop", "forward_ms", "training_mb"), ("MFLOP by formula", "forward, ms", "peak memory of a training step, MB"), strict=True
    ):
        ends = []
        for number, (name, rows) in enumerate(found.items()):
            values = [row[key] for row in rows]
            if min(values) > 0:
                color = plt.get_cmap("turbo")(number / max(1, len(found) - 1))
                axis.plot(positions, values, marker=MARKERS[number % len(MARKERS)], markersize=4, color=color)
                ends.append((values[-1], name, color))
        axis.set(xscale="log", yscale="log", title=title, xlabel=f"positions ({rank}-D, {channels} channels)")
        axis.set_xlim(positions[0] / 1.2, positions[-1] * 4)
        axis.set_xticks(positions, [f"{count:,}" for count in positions])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        figure.canvas.draw()
        _label_ends(axis, positions[-1], sorted(ends))
    figure.savefig(path, dpi=110)


def _label_ends(axis: Any, x: float, ends: list[tuple[float, str, Any]]) -> None:
    """Writes the names right of the lines' ends, each at least a line above the one before."""
    gap = 9 * axis.figure.dpi / 72
    last = float("-inf")
    for value, name, color in ends:
        _, y = axis.transData.transform((x, value))
        last = max(y, last + gap)
        axis.annotate(
            name,
            (x, value),
            xytext=(8, (last - y) * 72 / axis.figure.dpi),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
            color=color,
        )


if __name__ == "__main__":
    sys.exit(main())

"""The verb ``memory``: what a training step keeps and takes, for each way to gradients, over depth and volume size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import get_args

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from apps.reversible_unet.accounting import Measured, Step, count_step, make_network, measure_step
from apps.reversible_unet.config_memory import MemoryConfig, NetworkConfig
from apps.reversible_unet.model import Memory, UNet3D
from shared.errors import UserError
from shared.files import write_bytes, write_json, write_text
from shared.reports.style import PALETTE, styled_figure, styled_legend, to_png

__all__ = ["MemoryReport", "Row", "draw", "markdown", "memory", "show", "volumes"]

GIB = 2**30
BASELINE = "U-Net"
WAYS: tuple[Memory, ...] = get_args(Memory)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network on volumes of one size, counted."""

    network: str
    """"reversible", or the ordinary U-Net with half the first width, doubled at each level, that the authors compare with."""
    memory: Memory
    encoder_depth: int | None
    """None for the ordinary U-Net, which has no blocks to add."""
    size: tuple[int, int, int]
    step: Step


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """What the verb prints."""

    counted: list[Row]
    measured: dict[Memory, Measured]
    """Of real steps; empty if none was asked for."""


def memory(settings: MemoryConfig) -> MemoryReport:
    """Counts, measures, prints the tables, and writes them where the settings say.

    Raises:
        UserError: if sizes are no threes, or the settings make no network.
    """
    sizes = volumes(settings.size)
    network = settings.network
    measured: dict[Memory, Measured] = {}
    try:
        rows = [_baseline(network, way, size) for size in sizes for way in WAYS[:2]]
        for size in sizes:
            for depth in settings.depths:
                rows += [_counted(replace(network, encoder_depth=depth), way, size) for way in WAYS]
        if any(settings.measure):
            measured = {way: measure_step(network, way, volumes(settings.measure)[0]) for way in WAYS}
    except ValueError as error:
        raise UserError(f"These settings make no network: {error}.") from error
    report = MemoryReport(counted=rows, measured=measured)
    _print(report, settings)
    if settings.output:
        if settings.output.suffix == ".json":
            write_json(settings.output, asdict(report))
        else:
            write_text(settings.output, markdown(report))
    if settings.figure:
        write_bytes(settings.figure, to_png(draw(report), dpi=120))
    return report


def volumes(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    """Numbers in threes.

    Raises:
        UserError: if their number is no multiple of three, or one is not positive.
    """
    if not numbers or len(numbers) % 3 or min(numbers) < 1:
        raise UserError(f"A volume is three positive numbers, such as 160 192 160, not {' '.join(map(str, numbers)) or 'none'}.")
    return [(numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(0, len(numbers), 3)]


def show(table: Table) -> None:
    """On the terminal, with no figure cut off where that is narrow."""
    console = Console(highlight=False)
    needed = Console(width=1000).measure(table).maximum
    Console(highlight=False, width=max(console.width, needed)).print(table)


def markdown(report: MemoryReport) -> str:
    """The counted table."""
    lines = ["| network | blocks a level | gradients | volume | parameters | kept, GiB | peak, GiB |", "| --- " * 7 + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in report.counted]
    return "\n".join(lines) + "\n"


def draw(report: MemoryReport) -> Figure:
    """The peak over the depth of the encoder's levels, at the largest volume, and over the volume, at the greatest depth."""
    reversible = [row for row in report.counted if row.encoder_depth is not None]
    largest = max(reversible, key=lambda row: _voxels(row.size)).size
    deepest = max(row.encoder_depth or 0 for row in reversible)
    figure, (left, right) = styled_figure(width=7.6, height=3.2, columns=2)
    for way, color in zip(WAYS, PALETTE, strict=False):
        by_depth = sorted((row.encoder_depth or 0, row.step.peak / GIB) for row in reversible if row.memory == way and row.size == largest)
        by_size = sorted(
            (_voxels(row.size) / 1e6, row.step.peak / GIB) for row in reversible if row.memory == way and row.encoder_depth == deepest
        )
        left.plot(*zip(*by_depth, strict=True), marker="o", color=color, label=way)
        right.plot(*zip(*by_size, strict=True), marker="o", color=color, label=way)
    for row in report.counted:
        if row.encoder_depth is None and row.size == largest and row.memory == "plain":
            left.axhline(row.step.peak / GIB, color=PALETTE[-1], linestyle="--", linewidth=1, label="ordinary U-Net")
    left.set(xlabel="Blocks in each encoder level", ylabel="Peak of a training step, counted, GiB", ylim=(0, None))
    left.set_title(f"{_size(largest)} voxels", fontsize=9, loc="left")
    left.set_xticks(sorted({row.encoder_depth or 0 for row in reversible}))
    right.set(xlabel="Million voxels", ylim=(0, None), xlim=(0, None))
    right.set_title(f"{deepest} blocks in each encoder level", fontsize=9, loc="left")
    styled_legend(left, location="upper left")
    return figure


def _counted(settings: NetworkConfig, way: Memory, size: tuple[int, int, int]) -> Row:
    step = count_step(make_network(settings, way), size)
    return Row(network="reversible", memory=way, encoder_depth=settings.encoder_depth, size=size, step=step)


def _baseline(settings: NetworkConfig, way: Memory, size: tuple[int, int, int]) -> Row:
    widths = [settings.channels[0] // 2 * 2**level for level in range(len(settings.channels))]
    with torch.device("meta"):
        network = UNet3D(in_channels=settings.in_channels, out_channels=settings.out_channels, channels=widths, memory=way)
    return Row(network=BASELINE, memory=way, encoder_depth=None, size=size, step=count_step(network, size))


def _print(report: MemoryReport, settings: MemoryConfig) -> None:
    table = Table(
        title="Counted: one training step, one volume, float32",
        caption="kept: feature maps that wait for gradients. peak: all that lives at once, with weights, gradients and Adam's moments.\n"
        "Kernels' workspaces and the allocator's gaps come on top.",
    )
    for name in ("network", "blocks", "gradients", "volume", "parameters", "kept GiB", "peak GiB"):
        table.add_column(name, justify="left" if name in ("network", "gradients") else "right", no_wrap=True)
    for row in report.counted:
        table.add_row(*_cells(row), end_section=row.memory == ("checkpoint" if row.network == BASELINE else "reversible"))
    show(table)
    if not report.measured:
        return
    device = next(iter(report.measured.values())).device
    volume = _size(volumes(settings.measure)[0])
    table = Table(
        title=f"Measured: forward and backward pass on {volume} voxels, {device}",
        caption="Without weights and moments. What is measured above what is counted are the kernels' own buffers.",
    )
    for name in ("gradients", "peak MiB", "counted MiB", "ms"):
        table.add_column(name, justify="left" if name == "gradients" else "right")
    for way, one in report.measured.items():
        table.add_row(way, f"{one.peak / 2**20:,.1f}", f"{one.counted / 2**20:,.1f}", f"{one.milliseconds:,.0f}")
    show(table)


def _cells(row: Row) -> list[str]:
    depth = "" if row.encoder_depth is None else str(row.encoder_depth)
    step = row.step
    figures = [f"{step.parameters:,}", f"{step.kept / GIB:.2f}", f"{step.peak / GIB:.2f}"]
    return [row.network, depth, row.memory, _size(row.size), *figures]


def _size(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _voxels(size: Sequence[int]) -> int:
    return size[0] * size[1] * size[2]

"""The verb ``plan``: the volume, depth and width that can be trained on one GPU. All figures are counted, as ``accounting`` says."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.console import Console
from rich.table import Table

from apps.reversible_unet.accounting import count_peak, make_network, weight_bytes
from apps.reversible_unet.config_memory import NetworkConfig, PlanConfig
from apps.reversible_unet.memory import GIB, WAYS, show, volumes
from apps.reversible_unet.model import Memory
from shared.errors import UserError

__all__ = ["Choice", "Plan", "plan"]

DEEPEST = 8
"""Blocks in each encoder level; more are not tried."""

DEEP = 4
"""Blocks in each encoder level from which rather the width is spent on."""

QUARTERS = 16
"""Of the given width, up to which is tried; so four times the width."""

LARGEST = 4
"""Times the given volume's side, up to which is tried."""

Goal = Literal["volume", "depth", "width", "recommended"]
Candidate = tuple[NetworkConfig, tuple[int, int, int]]
"""A network, and a volume in voxels."""
Count = Callable[[Candidate, Memory], tuple[int, int]]
"""Parameters, and bytes at the peak."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A network and a volume that fit."""

    goal: Goal
    """What was made as large as fits, with the rest as given; recommended: the whole volume first, then depth, then width."""
    memory: Memory
    network: NetworkConfig
    size: tuple[int, int, int]
    parameters: int
    peak: int
    """Bytes, counted as ``accounting.Step.peak``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What fits into ``budget_bytes``."""

    budget_bytes: int
    choices: list[Choice]
    """For each way to gradients and each goal; without those where nothing fits."""
    recommended: Choice


def plan(settings: PlanConfig) -> Plan:
    """Searches, and prints what fits.

    Raises:
        UserError: if not even the smallest volume fits, or the settings make no network.
    """
    wanted = volumes(settings.size)[0]
    budget = int(settings.vram * (1 - settings.reserve) * GIB)
    console, count = Console(highlight=False), _counter()
    try:
        with console.status("Counting training steps of networks that may fit ..."):
            choices = [choice for way in WAYS for choice in _goals(settings.network, way, wanted, budget, count)]
            recommended = _recommended(settings.network, wanted, budget, count)
    except ValueError as error:
        raise UserError(f"These settings make no network: {error}.") from error
    if recommended is None:
        raise UserError(
            f"{settings.vram:g} GiB, less {settings.reserve:.0%}, do not train this network on any volume. "
            "Take fewer channels, or for bottlenecks more chunks at the full resolution (--network.chunks)."
        )
    result = Plan(budget_bytes=budget, choices=choices, recommended=recommended)
    _print(console, result, settings)
    return result


def _goals(network: NetworkConfig, way: Memory, wanted: tuple[int, int, int], budget: int, count: Count) -> list[Choice]:
    found = [_largest("volume", budget, [(network, size) for size in _sizes(wanted, network)], way, count)]
    if found[0] is not None and _voxels(found[0].size) >= _voxels(wanted):
        found += [
            _largest("depth", budget, [(replace(network, encoder_depth=depth), wanted) for depth in _depths(network, DEEPEST)], way, count),
            _largest("width", budget, [(each, wanted) for each in _widened(network)], way, count),
        ]
    return [choice for choice in found if choice]


def _recommended(network: NetworkConfig, wanted: tuple[int, int, int], budget: int, count: Count) -> Choice | None:
    sizes = [size for size in _sizes(wanted, network) if _voxels(size) < _voxels(wanted)] + [wanted]
    best = _largest("recommended", budget, [(network, size) for size in sizes], "reversible", count)
    if best is None or best.size != wanted:
        return best
    deeper = [replace(network, encoder_depth=depth) for depth in _depths(network, DEEP)]
    best = _largest("recommended", budget, [(each, wanted) for each in deeper], "reversible", count) or best
    wider = [each for each in _widened(best.network) if each.channels[0] > network.channels[0]]
    return _largest("recommended", budget, [(each, wanted) for each in wider], "reversible", count) or best


def _largest(goal: Goal, budget: int, candidates: Sequence[Candidate], way: Memory, count: Count) -> Choice | None:
    """The last that fits of candidates that grow.

    What is not for the weights is nearly as the voxels, channels and blocks, so the largest count that fits tells where to count next.
    """
    if not candidates or count(candidates[0], way)[1] > budget:
        return None
    extents = [_extent(candidate) for candidate in candidates]
    low, high = 0, len(candidates)
    while high - low > 1:
        parameters, peak = count(candidates[low], way)
        weights = weight_bytes(parameters)
        guess = bisect(extents, extents[low] * (budget - weights) / (peak - weights)) - 1
        middle = min(max(guess, low + 1), high - 1)
        low, high = (middle, high) if count(candidates[middle], way)[1] <= budget else (low, middle)
    network, size = candidates[low]
    parameters, peak = count(candidates[low], way)
    return Choice(goal=goal, memory=way, network=network, size=size, parameters=parameters, peak=peak)


def _counter() -> Count:
    """Counts nothing twice."""
    known: dict[str, tuple[int, int]] = {}

    def count(candidate: Candidate, way: Memory) -> tuple[int, int]:
        key = repr((candidate, way))
        if key not in known:
            network = make_network(candidate[0], way)
            known[key] = (sum(weight.numel() for weight in network.parameters()), count_peak(network, candidate[1]))
        return known[key]

    return count


def _extent(candidate: Candidate) -> float:
    """What memory grows with, whichever of the three grows."""
    network, size = candidate
    return _voxels(size) * network.channels[0] * (network.encoder_depth + network.decoder_depth)


def _sizes(wanted: tuple[int, int, int], network: NetworkConfig) -> list[tuple[int, int, int]]:
    """Volumes of about this shape whose axes can be halved often enough, and the wanted one itself."""
    multiple, longest = 2 ** (len(network.channels) - 1), max(wanted)

    def scaled(length: int) -> tuple[int, int, int]:
        x, y, z = (max(multiple, round(side * length / longest / multiple) * multiple) for side in wanted)
        return x, y, z

    sizes = {scaled(length) for length in range(multiple, LARGEST * longest + 1, multiple)} | {wanted}
    return sorted(sizes, key=_voxels)


def _depths(network: NetworkConfig, deepest: int) -> range:
    return range(network.encoder_depth, max(deepest, network.encoder_depth) + 1)


def _widened(network: NetworkConfig) -> list[NetworkConfig]:
    """By quarters of the first width, where the inside can still be computed in as many parts. Ratios of the widths stay."""
    networks = []
    for quarters in range(4, QUARTERS + 1):
        first = 2 * round(network.channels[0] * quarters / 8)
        channels = tuple(2 * round(first * width / network.channels[0] / 2) for width in network.channels)
        groups = math.gcd(*(width // 2 for width in channels))
        if network.block == "convolution" or all(groups % parts == 0 for parts in network.chunks):
            networks.append(replace(network, channels=channels))
    return networks


def _print(console: Console, result: Plan, settings: PlanConfig) -> None:
    table = Table(
        title=f"What one GPU of {settings.vram:g} GiB trains: {result.budget_bytes / GIB:.1f} GiB, counted",
        caption=f"Counted, not run. {settings.reserve:.0%} are left to workspaces and gaps. Where one is stretched, the rest is as given.",
    )
    for name in ("gradients", "stretched", "volume", "blocks", "channels", "parameters", "peak GiB"):
        table.add_column(name, justify="left" if name in ("gradients", "stretched") else "right")
    for choice in [*result.choices, result.recommended]:
        last = choice is result.recommended or choice.goal == "width"
        table.add_row(*_cells(choice), end_section=last, style="bold" if choice is result.recommended else None)
    show(table)
    best = result.recommended
    channels = f"[{','.join(map(str, best.network.channels))}]"
    console.print(
        f"Recommended: memory reversible, channels {channels}, encoder depth {best.network.encoder_depth}, "
        f"{'whole volumes' if best.size == tuple(settings.size) else 'patches'} of {' x '.join(map(str, best.size))}.",
        markup=False,
    )


def _cells(choice: Choice) -> list[str]:
    network = choice.network
    size, channels = " x ".join(map(str, choice.size)), ",".join(map(str, network.channels))
    return [choice.memory, choice.goal, size, str(network.encoder_depth), channels, f"{choice.parameters:,}", f"{choice.peak / GIB:.1f}"]


def _voxels(size: Sequence[int]) -> int:
    return size[0] * size[1] * size[2]

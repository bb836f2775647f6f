"""What is counted without running is what running takes, and a plan keeps to its budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apps.reversible_unet.accounting import count_step, make_network, measure_step
from apps.reversible_unet.config_memory import MemoryConfig, NetworkConfig, PlanConfig
from apps.reversible_unet.memory import memory
from apps.reversible_unet.model import ReversibleUNet
from apps.reversible_unet.planning import plan
from shared.errors import UserError

SMALL = NetworkConfig(block="bottleneck", channels=(8, 16), chunks=(2, 1))


def test_what_is_kept_at_the_published_size_is_what_the_layers_add_up_to() -> None:
    """195.94 floats for each voxel, from the layers' sizes, less the probabilities' and normalisations' few."""
    with torch.device("meta"):
        step = count_step(ReversibleUNet(), (160, 192, 160))
    assert step.kept / 4 / (160 * 192 * 160) == pytest.approx(195.94, rel=1e-4)
    assert step.parameters == 12_365_283


@pytest.mark.parametrize("way", ["plain", "reversible"])
def test_the_counted_peak_is_the_measured_one_but_for_kernels_own_buffers(way) -> None:
    measured = measure_step(SMALL, way, (16, 16, 16))
    assert measured.counted <= measured.peak <= 1.2 * measured.counted  # a few per cent are usual


def test_a_chunk_at_the_full_resolution_lowers_the_peak_and_depth_does_not_raise_it() -> None:
    wide = replace(SMALL, chunks=(1,))
    assert (
        count_step(make_network(SMALL, "reversible"), (32, 32, 32)).peak < count_step(make_network(wide, "reversible"), (32, 32, 32)).peak
    )
    shallow, deep = (count_step(make_network(replace(SMALL, encoder_depth=depth), "reversible"), (32, 32, 32)) for depth in (1, 4))
    assert shallow.kept == pytest.approx(deep.kept, rel=1e-3)
    assert deep.peak - shallow.peak <= 20 * (deep.parameters - shallow.parameters)


def test_the_table_is_written(tmp_path: Path) -> None:
    report = memory(
        MemoryConfig(
            network=SMALL, size=[16, 16, 16, 16, 16, 32], depths=[1, 2], measure=[0], output=tmp_path / "t.md", figure=tmp_path / "t.png"
        )
    )
    assert len(report.counted) == 2 * (2 + 2 * 3)
    assert (tmp_path / "t.md").read_text().count("\n") == 2 + len(report.counted)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="three positive numbers, such as 160 192 160, not 1 2"):
        memory(MemoryConfig(size=[1, 2]))


def test_a_plan_keeps_to_its_budget_and_reversible_levels_fit_more() -> None:
    found = plan(PlanConfig(network=SMALL, vram=0.05, size=[16, 16, 24]))
    assert all(choice.peak <= found.budget_bytes for choice in [*found.choices, found.recommended])
    volume = {choice.memory: choice.size for choice in found.choices if choice.goal == "volume"}
    assert torch.tensor(volume["reversible"]).prod() >= torch.tensor(volume["plain"]).prod()
    assert found.recommended.size == (16, 16, 24)
    with pytest.raises(UserError, match="do not train this network on any volume"):
        plan(PlanConfig(network=SMALL, vram=0.0001, size=[16, 16, 16]))

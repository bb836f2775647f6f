"""Blocks by name, with settings that are checked before anything is built."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from shared.attention import cost_of, create, list_blocks, load_published, register, settings_of
from shared.attention.__main__ import main
from shared.attention.cost import Cost


def test_a_block_by_name_is_the_class_itself() -> None:
    from shared.attention import SpatialChannelSqueeze

    assert type(create("scse", channels=64)) is SpatialChannelSqueeze


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("scze", {"channels": 8}, "no attention block is called 'scze'; did you mean 'scse'?"),
        ("???", {}, "no attention block is called '???'; there are: "),
        ("scse", {"chanels": 8}, "scse has no setting 'chanels'; did you mean 'channels'?"),
        ("scse", {}, "scse needs channels"),
        ("scse", {"channels": "8"}, "scse: channels must be int, not '8'"),
        ("scse", {"channels": True}, "scse: channels must be int, not True"),
        ("scse", {"channels": 8, "fusion": "mul"}, "scse: fusion must be Literal['max', 'add'], not 'mul'"),
        ("scse", {"channels": 8, "rank": 4}, "rank must be 1, 2 or 3, not 4"),
        ("mhsa", {"channels": 8, "heads": 3}, "heads=3 must divide channels=8"),
    ],
)
def test_what_is_wrong_is_said(name: str, settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        create(name, **settings)


def test_settings_are_a_dataclass_for_typed_configs() -> None:
    settings = settings_of("scse")(channels=8)
    assert dataclasses.asdict(settings) == {"channels": 8, "reduction": 2, "fusion": "max", "rank": 2}
    with pytest.raises(TypeError):
        settings_of("scse")()


def test_a_published_form_has_its_setting_fixed() -> None:
    class Doubling(nn.Module):
        """Doubles what it is given, or not."""

        def __init__(self, *, channels: int, twice: bool = True) -> None:
            super().__init__()
            self.twice = twice

    register("doubling_for_a_test", paper="none, 2026", ranks=(2,), cost=lambda s, g: Cost(), preset={"twice": False})(Doubling)
    try:
        assert create("doubling_for_a_test", channels=1).twice is False
        with pytest.raises(ValueError, match="twice is False in this form of Doubling"):
            create("doubling_for_a_test", channels=1, twice=True)
        with pytest.raises(ValueError, match="two blocks are called 'doubling_for_a_test'"):
            register("doubling_for_a_test", paper="", ranks=(), cost=lambda s, g: Cost())(Doubling)
    finally:
        from shared.attention import registry

        del registry._entries["doubling_for_a_test"]


def test_blocks_are_listed_by_their_axes() -> None:
    names = [entry.name for entry in list_blocks()]
    assert names == sorted(names)
    assert {"scse", "pam"} <= {entry.name for entry in list_blocks(rank=3)}
    assert "mhsa" not in {entry.name for entry in list_blocks(rank=3)}


def test_a_cost_is_known_without_building() -> None:
    assert cost_of("mhsa", (1_000_000,), channels=1024, heads=8) == Cost(4 * 1024**2 + 4 * 1024, 4 * 1024**2 * 10**6 + 2 * 10**12 * 1024)


def test_weights_of_another_block_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        load_published("pam", create("pam", channels=8), {"gamma": torch.zeros(1)})


def test_the_table_shows_formulas_and_measurements(tmp_path) -> None:
    words = ["pam", "mhsa", "reverse", "--channels", "16", "--grid", "8", "8", "--rounds", "1", "--csv", str(tmp_path / "table.csv")]
    shown = subprocess.run([sys.executable, "-m", "shared.attention", *words], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["block", "pam", "mhsa", "reverse"]
    assert "DANet" in lines[1]
    assert lines[1].split()[1] == str(sum(weight.numel() for weight in create("pam", channels=16).parameters()))
    assert (tmp_path / "table.csv").read_text().splitlines()[0].startswith("block,parameters,mflop,forward_ms,backward_ms,forward_mb")


def test_growth_is_drawn(tmp_path) -> None:
    assert main(["cam", "cse", "--channels", "8", "--rounds", "1", "--growth", str(tmp_path / "growth.png")]) == 0
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pamm"], "no attention block is called 'pamm'; did you mean 'pam'?"),
        (["--grid", "0"], "--grid takes one to three sizes, and all numbers must be positive"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(says)


def test_it_imports_no_compiler() -> None:
    """Seconds, of every command of every app."""
    heavy = {"sympy", "torch._dynamo", "torchvision"}
    code = f"import sys, shared.attention, shared.layers.reversible; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

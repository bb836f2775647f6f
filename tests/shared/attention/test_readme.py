"""What the README shows runs, and its table is that of the blocks there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shared.attention
from shared.attention import cost_of, find, list_blocks, registry
from tests.shared.attention.cases import Case

README = Path(shared.attention.__file__).with_name("README.md")
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int) -> None:
    if "monai" in EXAMPLES[number]:
        pytest.importorskip("monai")
    before = dict(registry._entries)
    try:
        exec(compile(EXAMPLES[number], f"{README.name}, example {number + 1}", "exec"), {"__name__": "example"})
    finally:
        registry._entries.clear()
        registry._entries.update(before)


def test_every_block_is_in_the_table_with_its_cost() -> None:
    table = README.read_text().partition("<!-- table")[2].partition("<!-- end of table -->")[0]
    rows = {cells[1].strip(" `"): cells for line in table.splitlines() if (cells := line.split("|"))[0] == "" and len(cells) > 9}
    assert [name for name in rows if name not in ("block", "---")] == [entry.name for entry in list_blocks()]
    for entry in list_blocks():
        assert rows[entry.name][2].strip() == entry.summary
        if not entry.ranks or 2 in entry.ranks:
            settings = {key: value for key, value in Case(entry.name, 2 if entry.ranks else 0).settings.items() if key not in entry.preset}
            settings = settings | ({"channels": 64} if "channels" in settings else {})
            cost = cost_of(entry.name, (32, 32), **settings)
            assert rows[entry.name][5].strip() == f"{cost.parameters:,}"
            assert rows[entry.name][6].strip() == f"{2e-6 * cost.macs:,.1f}"


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`([a-z0-9_]+)`", README.read_text().partition("## Which one?")[2].partition("## What it costs")[0])))
)
def test_a_recommended_block_exists(name: str) -> None:
    if name not in ("context", "_published"):
        assert find(name)

"""What people put among their inputs by mistake, in any app; and what a run left."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from tests.contract.contract import BadInput, Contract

__all__ = ["bad_inputs", "failures", "rows"]


def bad_inputs(contract: Contract) -> dict[str, BadInput]:
    """The app's own, and what any app gets: under a good name nothing, a text, half a file, zeros, and a file of another kind."""
    name, first = next(iter(contract.good.items()))
    suffix = Path(name).suffix
    content = first.content()
    common = {
        "bad_empty": (b"", "empty"),
        "bad_text": (b"Dear colleague, the frame is on the other disk.\n", "text"),
        "bad_truncated": (content[: len(content) // 2], ""),
        "bad_zeros": (bytes(4000), "zeros"),
        "bad_archive": (b"PK\x03\x04" + bytes(500), "ZIP"),
    }
    made = {f"{stem}{suffix}": BadInput(content=lambda data=data: data, reason=reason) for stem, (data, reason) in common.items()}
    return {**made, **contract.bad}


def failures(output: Path) -> dict[str, str]:
    """failures.csv: name of the input -> reason."""
    with open(output / "failures.csv", newline="") as file:
        return {Path(row["input"]).name: row["reason"] for row in csv.DictReader(file)}


def rows(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """predictions.jsonl by name of the input and sample; fails if one comes twice."""
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    found = {(Path(line["input"]).name, line["sample"]): line for line in lines}
    assert len(found) == len(lines), "a sample is recorded twice"
    return found

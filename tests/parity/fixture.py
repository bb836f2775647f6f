"""A fixture: what was asked of a published program, and what it answered. A JSON file, with the answers' numbers in an .npz beside it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import UserError

__all__ = ["Expected", "Fixture", "read_fixture"]

SMALLEST_SPREAD = 0.01
"""For a lone number: at a tolerance of 1e-4 this allows 1e-6, float32's rounding of the numbers near 1 that it is computed from."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One published output."""

    name: str
    shape: tuple[int, ...]
    """Of the whole output."""
    stride: tuple[int, ...] | None
    """Every so-manieth element along each axis is stored; None: all are."""
    values: np.ndarray
    spread: float
    """What errors are measured in: the standard deviation; of a constant or a lone number its size, but at least 0.01."""
    tolerance: float
    """Largest allowed error, in spreads."""


@dataclass(frozen=True, kw_only=True)
class Fixture:
    """What an adapter needs to know; see ``read_fixture`` for the file."""

    name: str
    system: str
    block: str | None
    config: dict[str, Any]
    seed: int
    state: list[dict[str, Any]]
    inputs: list[dict[str, Any]]
    expected: tuple[Expected, ...]
    notes: str


def read_fixture(path: Path | str) -> Fixture:
    """Reads ``path`` and the .npz of the same stem.

    "tolerance" is in spreads; an entry of "tolerances" is for one output and in that output's own units (one grey level, 1/255).

    Raises:
        UserError: if either file is missing or unreadable, or an entry is missing; names the file and the entry.
    """
    path = Path(path)
    answers = path.with_suffix(".npz")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a fixture ({_reason(error)})") from error
    try:
        with np.load(answers, allow_pickle=False) as stored:
            values = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{answers}: the published outputs belong beside {path.name} and cannot be read ({_reason(error)})") from error
    try:
        return Fixture(
            name=path.stem,
            system=content["system"],
            block=content.get("block"),
            config=content["config"],
            seed=content["seed"],
            state=content["state"],
            inputs=content["inputs"],
            expected=tuple(_expected(name, content, values) for name in content["outputs"]),
            notes=content.get("notes", ""),
        )
    except (KeyError, TypeError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else error
        raise UserError(f"{path}: not a fixture ({missing!r} is missing or of another kind)") from error


def _expected(name: str, content: dict[str, Any], values: dict[str, np.ndarray]) -> Expected:
    about = content["outputs"][name]
    spread = about["std"] or max(abs(about["mean"]), SMALLEST_SPREAD)
    own = content.get("tolerances", {}).get(name)
    return Expected(
        name=name,
        shape=tuple(about["shape"]),
        stride=tuple(about["stride"]) if about["stride"] else None,
        values=np.asarray(values[name], dtype=np.float64),
        spread=spread,
        tolerance=content["tolerance"] if own is None else own / spread,
    )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__

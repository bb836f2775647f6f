"""Runs one fixture through its adapter and measures every output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import UserError
from tests.parity.adapters import find_adapter
from tests.parity.fixture import Expected, read_fixture
from tests.parity.recipe import draw_inputs, draw_state

__all__ = ["Result", "run_fixture"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the report: one output measured, or the reason why nothing could be."""

    fixture: str
    output: str = "-"
    error: float | None = None
    """Largest difference from the published values, in spreads."""
    tolerance: float | None = None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None and self.error is not None and self.tolerance is not None and self.error <= self.tolerance

    def __str__(self) -> str:
        error, tolerance = ("-" if value is None else f"{value:.2e}" for value in (self.error, self.tolerance))
        line = f"{self.fixture:<24} {self.output:<28} error {error:>8}  tolerance {tolerance:>8}  {'ok' if self.ok else 'FAIL'}"
        return f"{line}  {self.problem}" if self.problem else line


def run_fixture(path: Path | str) -> Iterator[Result]:
    """One result per output of the fixture; a single failed one if the fixture, its adapter or the code under test cannot be run."""
    name = Path(path).stem
    try:
        fixture = read_fixture(path)
        adapter = find_adapter(fixture)
        answers = adapter.run(fixture, draw_state(fixture.state, fixture.seed), draw_inputs(fixture.inputs, fixture.seed))
    except UserError as error:
        yield Result(fixture=name, problem=str(error))
        return
    except Exception as error:  # whatever the code under test raises is a failed fixture, and the next one must still run
        yield Result(fixture=name, problem=f"{type(error).__name__}: {error}")
        return
    if not fixture.expected:
        yield Result(fixture=name, problem=f"{path}: no outputs to compare")
    for expected in fixture.expected:
        yield _measure(name, expected, answers.get(expected.name))


def _measure(fixture: str, expected: Expected, answer: np.ndarray | None) -> Result:
    def result(*, error: float | None = None, problem: str | None = None) -> Result:
        return Result(fixture=fixture, output=expected.name, error=error, tolerance=expected.tolerance, problem=problem)

    if answer is None:
        return result(problem="the adapter does not answer this output")
    answer = np.asarray(answer, dtype=np.float64)
    # Some fixtures write a lone number's shape as [] and others as [1].
    if (answer.shape or (1,)) != (expected.shape or (1,)):
        return result(problem=f"shape {answer.shape}, published {expected.shape}")
    if expected.stride:
        answer = answer[tuple(slice(None, None, step) for step in expected.stride)]
    answer = np.atleast_1d(answer)
    values = np.atleast_1d(expected.values)
    if answer.shape != values.shape:
        return result(problem=f"{values.shape} values are stored where shape and stride say {answer.shape}")
    difference = np.abs(answer - values)
    largest = float(difference.max()) if difference.size else 0.0
    return result(error=float("inf") if np.isnan(largest) else largest / expected.spread)

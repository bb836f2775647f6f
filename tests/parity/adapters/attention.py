"""The attention blocks of shared/attention: ``tests/parity/attention`` has a function for each, by the fixture's "block" or its name."""

from __future__ import annotations

import numpy as np

from tests.parity.attention import RUNS
from tests.parity.fixture import Fixture

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]


def matches(fixture: Fixture) -> bool:
    return fixture.system in ("attention-blocks", "rtnet") and (fixture.block or fixture.name) in RUNS


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    with torch.no_grad():
        answers = RUNS[fixture.block or fixture.name](
            fixture.config,
            {name: torch.from_numpy(array) for name, array in state.items()},
            {name: torch.from_numpy(array) for name, array in inputs.items()},
        )
    return {name: answer.detach().numpy() for name, answer in answers.items()}

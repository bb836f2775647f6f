"""The attention blocks of shared/attention: each fixture names its block, and ``tests/parity/attention`` has a function for each."""

from __future__ import annotations

import numpy as np

from tests.parity.attention import RUNS
from tests.parity.fixture import Fixture

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]


def matches(fixture: Fixture) -> bool:
    return fixture.system == "attention-blocks" and fixture.block in RUNS


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    with torch.no_grad():
        answers = RUNS[fixture.block](
            fixture.config,
            {name: torch.from_numpy(array) for name, array in state.items()},
            {name: torch.from_numpy(array) for name, array in inputs.items()},
        )
    return {name: answer.detach().numpy() for name, answer in answers.items()}

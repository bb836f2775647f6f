"""How each system's fixtures are run. A module of this package is an adapter; adding one is all that a new app has to do.

An adapter has two functions, and imports its app within ``run``, so that one app's fixtures need no other app's packages:

    def matches(fixture: Fixture) -> bool: ...
    def run(fixture: Fixture, state: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...

``run`` answers each of the fixture's outputs by its name, whole (the runner applies strides), from the published state dict and the inputs.
"""

from __future__ import annotations

import json
import pkgutil
from importlib import import_module
from typing import Protocol

import numpy as np

from shared.errors import UserError
from tests.parity.fixture import Fixture

__all__ = ["Adapter", "find_adapter"]


class Adapter(Protocol):
    def matches(self, fixture: Fixture) -> bool: ...

    def run(self, fixture: Fixture, state: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def find_adapter(fixture: Fixture) -> Adapter:
    """The one adapter that knows the fixture's system and config.

    Raises:
        UserError: if none does.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    for name in names:
        adapter = import_module(f"{__name__}.{name}")
        if adapter.matches(fixture):
            return adapter
    raise UserError(
        f"no adapter knows system {fixture.system!r} with config {json.dumps(fixture.config)[:200]} (adapters: {', '.join(names)}); "
        "add one under tests/parity/adapters"
    )

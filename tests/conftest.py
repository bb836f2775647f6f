"""How the tests are divided among processes (``pytest -n 2 --dist loadgroup``)."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file share fixtures and stay together; the promises of an app share a training and stay together across files."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        app = item.callspec.params.get("app") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
        item.add_marker(pytest.mark.xdist_group(f"contract of {app}" if app and "contract/" in file else file))

"""Every recipe in configs/ is one that its app takes: no key is misspelt, no value out of range."""

from importlib import import_module
from pathlib import Path

import pytest

from shared.cli import Verb
from tests.commands import run_here

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[f"{path.parent.name}/{path.name}" for path in CONFIGS])
def test_a_recipe_is_taken_by_a_verb_of_its_app(path):
    verbs = import_module(f"apps.{path.parent.name}.__main__").VERBS
    answers = {
        name: run_here(path.parent.name, name, "--cfg", path, "--print_config") for name, one in verbs.items() if isinstance(one, Verb)
    }
    assert any(answer.code == 0 for answer in answers.values()), answers["train"].err

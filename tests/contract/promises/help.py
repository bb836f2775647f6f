"""Promise 1: every verb explains itself at once."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from shared.cli import Verb
from tests.commands import PATIENCE_S, run_apart

SLOW = ("fastapi", "lightning", "matplotlib", "pandas", "ray", "scipy", "timm", "torch", "torchvision", "transformers")
"""What takes a second or more to import; --help has no use for it."""


def test_the_help_of_a_verb_names_every_option_and_imports_nothing_slow(app: str, words: tuple[str, ...], verb: Verb) -> None:
    """No time is measured, because machines differ: what would make it slow is not there."""
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"sys.argv = ['apps.{app}', *{list(words)!r}, '--help']\n"
        f"try:\n    import_module('apps.{app}.__main__').main()\n"
        f"finally:\n    print('SLOW', *sorted(set({SLOW!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == ["SLOW"]
    for option in verb.settings.__dataclass_fields__:
        assert f"--{option}" in done.stdout
    assert "--cfg" in done.stdout


def test_the_app_lists_its_verbs(app: str) -> None:
    answer = run_apart(app, "--help")
    assert answer.code == 0
    table = import_module(f"apps.{app}.__main__").VERBS
    assert {"train", "evaluate", "infer", "serve", "export", "convert", "data"} <= table.keys()
    assert all(name in answer.out for name in table)


def test_the_app_without_a_verb_says_how_to_use_it(app: str) -> None:
    answer = run_apart(app)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert answer.err.strip()

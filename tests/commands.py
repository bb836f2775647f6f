"""Runs an app's command line as a person does: in a process of its own, or in this one where nothing is gained by that."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from shared.cli import run

__all__ = ["PATIENCE_S", "Answer", "one_line_error", "run_apart", "run_here", "started", "wait_for"]

PATIENCE_S = 300
"""How long anything may take before a test gives up: a machine ten times slower than a laptop still passes."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


def run_here(app: str, *words: object) -> Answer:
    """The command in this process, which has torch loaded already."""
    verbs = import_module(f"apps.{app}.__main__").VERBS
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(f"apps.{app}", verbs, [str(word) for word in words])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Answer(code=code, out=out.getvalue(), err=err.getvalue())


def run_apart(app: str, *words: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> Answer:
    """The command in a process of its own."""
    with started(app, *words, cwd=cwd, environment=environment) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    return Answer(code=process.returncode, out=out, err=err)


@contextlib.contextmanager
def started(
    app: str, *words: object, cwd: Path | None = None, environment: dict[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """The command, running; killed at the end if it still does. ``options`` as of Popen; both outputs are piped otherwise."""
    command = [sys.executable, "-m", f"apps.{app}", *(str(word) for word in words)]
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **(environment or {})}, text=True, **piped)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], Any], what: str, *, process: subprocess.Popen[str] | None = None) -> Any:
    """What ``condition`` returns once that is true; fails if the process ends before, or it takes longer than PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        ended = None if process is None else process.poll()
        assert ended is None, f"the process ended with {ended} before {what}"
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE_S} s"
        time.sleep(0.01)
    return result


def one_line_error(answer: Answer, *parts: str, code: int = 2) -> None:
    """Asserts that the command ended with this code and one line on the error output, which holds each of ``parts``."""
    assert "Traceback" not in answer.err, answer.err
    assert answer.code == code, answer
    lines = [line for line in answer.err.splitlines() if line.strip()]
    assert len(lines) == 1, answer.err
    for part in parts:
        assert part in lines[0], f"{part!r} is not in: {lines[0]}"

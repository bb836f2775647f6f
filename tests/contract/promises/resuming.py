"""Promise 4: a training that was killed or stopped, and resumed, ends with the weights that it would have had."""

from __future__ import annotations

import csv
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import PATIENCE_S, run_here, started, wait_for
from tests.contract.weights import fingerprint


def history(run: Path) -> list[dict[str, str]]:
    """metrics.csv, of which nothing may be missing or twice; empty while there is none.

    Means over the training steps of an epoch are left out: after an interruption within an epoch they are of the steps that were left.
    """
    try:
        with open(run / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    return [{name: value for name, value in row.items() if name in ("epoch", "step") or name.startswith("val_")} for row in rows]


def interrupted(app: str, words: list[object], run: Path, number: signal.Signals, *, after: int) -> tuple[int, str]:
    """Starts, sends the signal once ``after`` epochs are done, and returns the exit code and the error output."""
    with started(app, *words, stdout=subprocess.DEVNULL) as process:
        ready = lambda: len(history(run)) >= after and (run / "checkpoints" / "last.ckpt").exists()  # noqa: E731
        wait_for(ready, f"{after} epochs were done", process=process)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert not (run / "model").exists(), "the training was over before the signal came"
    return process.returncode, err


def assert_resumes(app: str, run: Path, expected: dict[str, str], reference: Path) -> None:
    answer = run_here(app, "train", "--resume", run)
    assert answer.code == 0, answer.err
    assert history(run) == history(reference)
    assert fingerprint(run / "model") == expected
    assert [path for path in run.rglob("*") if path.name.startswith(".")] == [], "a half-written file was left"


@pytest.mark.kept_by_shared
def test_killed_and_resumed(
    app: str,
    short_training: Callable[[Path], list[object]],
    reference: Path,
    reference_weights: dict[str, str],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    code, _ = interrupted(app, short_training(run), run, signal.SIGKILL, after=1)
    assert code == -signal.SIGKILL
    assert_resumes(app, run, reference_weights, reference)


@pytest.mark.kept_by_shared
def test_stopped_by_the_system_then_by_the_keyboard_and_resumed(
    app: str,
    short_training: Callable[[Path], list[object]],
    reference: Path,
    reference_weights: dict[str, str],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    code, err = interrupted(app, short_training(run), run, signal.SIGTERM, after=1)
    assert code == 143
    assert f"--resume {run}" in err
    assert "Traceback" not in err
    code, err = interrupted(app, ["train", "--resume", run], run, signal.SIGINT, after=2)
    assert code == 130
    assert f"--resume {run}" in err
    assert "Traceback" not in err
    assert_resumes(app, run, reference_weights, reference)

"""Promises 2 and 3: training reaches its score, and the same seed gives the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import run_apart, run_here
from tests.contract.contract import Contract
from tests.contract.weights import fingerprint


def test_training_on_phantoms_reaches_the_stated_score_and_a_trivial_answer_does_not(
    app: str, contract: Contract, bundle: Path, unseen: Path, tmp_path: Path
) -> None:
    answer = run_here(app, *contract.evaluate(bundle, unseen, tmp_path / "scores"))
    assert answer.code == 0, answer.err
    score, trivial = contract.scores(tmp_path / "scores")
    assert score >= contract.score > trivial, f"reached {score:.3f}, stated {contract.score}, trivial {trivial:.3f}"


def test_a_run_folder_holds_what_a_person_needs(trained: Path) -> None:
    assert {"config.yaml", "metrics.csv", "checkpoints", "model", "report.html"} <= {path.name for path in trained.iterdir()}
    bundle = {path.name for path in (trained / "model").iterdir()}
    assert bundle == {"model.safetensors", "config.yaml", "card.md", "provenance.json"}
    assert [path for path in trained.rglob("*") if path.name.startswith(".")] == []


@pytest.mark.kept_by_shared
def test_the_same_seed_gives_the_same_weights_bit_by_bit(
    app: str, short_training: Callable[[Path], list[object]], reference_weights: dict[str, str], tmp_path: Path
) -> None:
    answer = run_apart(app, *short_training(tmp_path / "again"))  # the first one was in this process: nothing of it may count
    assert answer.code == 0, answer.err
    assert fingerprint(tmp_path / "again" / "model") == reference_weights

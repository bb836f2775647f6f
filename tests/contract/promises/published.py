"""Promise 8: the authors' checkpoint converts, the bundle answers as their program does, and anything else is refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from tests.commands import one_line_error, run_here
from tests.contract.contract import Contract


def test_the_converted_bundle_answers_as_the_published_program(app: str, contract: Contract, checkpoint: Path, tmp_path: Path) -> None:
    answer = run_here(app, "convert", "--published", checkpoint, "--output", tmp_path / "bundle", *contract.published.options(tmp_path))
    assert answer.code == 0, answer.err
    errors = contract.published.errors(tmp_path / "bundle")
    assert errors
    assert {output: error for output, (error, tolerance) in errors.items() if not error <= tolerance} == {}


def test_a_wrapper_around_the_weights_is_opened(app: str, contract: Contract, checkpoint: Path, tmp_path: Path) -> None:
    wrapped = tmp_path / f"wrapped{contract.published.suffix}"
    contract.published.wrap(checkpoint, wrapped)
    assert wrapped.read_bytes() != checkpoint.read_bytes()
    options = contract.published.options(tmp_path)
    assert run_here(app, "convert", "--published", wrapped, "--output", tmp_path / "wrapped", *options).code == 0
    assert run_here(app, "convert", "--published", checkpoint, "--output", tmp_path / "plain", *options).code == 0
    assert (tmp_path / "wrapped" / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()


def test_a_file_that_people_mistake_for_it_is_refused(app: str, contract: Contract, tmp_path: Path) -> None:
    for name, reason in contract.published.strangers(tmp_path).items():
        answer = run_here(app, "convert", "--published", tmp_path / name, "--output", tmp_path / "bundle")
        one_line_error(answer, str(tmp_path / name), reason)
        assert not (tmp_path / "bundle").exists()


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["another model", "code in a pickle", "truncated", "text", "empty", "missing", "no weights"])
def test_anything_else_is_refused_and_nothing_in_it_is_executed(
    app: str, contract: Contract, kind: str, checkpoint: Path, tmp_path: Path
) -> None:
    path, trap = tmp_path / f"file{contract.published.suffix}", tmp_path / "executed"
    match kind:
        case "another model":
            torch.save(torch.nn.Linear(3, 4).state_dict(), path)
        case "code in a pickle":
            path.write_bytes(pickle.dumps({"resnet.conv1.weight": Malicious(trap)}))
        case "truncated":
            path.write_bytes(checkpoint.read_bytes()[:100_000])
        case "text":
            path.write_text("<html>Quota exceeded</html>")
        case "empty":
            path.touch()
        case "no weights":
            torch.save({"epoch": 3}, path)
    answer = run_here(app, "convert", "--published", path, "--output", tmp_path / "bundle")
    one_line_error(answer, str(path))
    assert not trap.exists()
    assert not (tmp_path / "bundle").exists()

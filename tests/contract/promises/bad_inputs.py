"""Promise 7: bad inputs are listed, good ones beside them are answered, nothing is half-written, and the same command goes on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.commands import PATIENCE_S, run_here, started, wait_for
from tests.contract.conftest import Inferred
from tests.contract.contract import Contract
from tests.contract.inputs import bad_inputs, copy, ending, failures, rows


def test_every_bad_input_is_listed_with_its_reason(contract: Contract, inferred: Inferred) -> None:
    assert inferred.answer.code == 3
    assert "Traceback" not in inferred.answer.err
    bad, found = bad_inputs(contract), failures(inferred.output)
    assert set(found) == set(bad)
    for name, one in bad.items():
        assert one.reason.lower() in found[name].lower(), name
        assert name in found[name], "the reason names the file"
        assert "\n" not in found[name]


def test_every_good_input_beside_them_is_answered(contract: Contract, inferred: Inferred) -> None:
    found = rows(inferred.output)
    expected = {(name, sample) for name, good in contract.good.items() for sample in good.samples}
    assert {key for key in found if key[0] in contract.good} == expected
    for row in found.values():
        assert all((inferred.output / file).stat().st_size for file in row["files"].values())


def test_nothing_is_half_written_and_no_file_belongs_to_nobody(inferred: Inferred) -> None:
    recorded = {file for row in rows(inferred.output).values() for file in row["files"].values()}
    present = {path.relative_to(inferred.output).as_posix() for path in inferred.output.rglob("*") if path.is_file()}
    assert present - recorded == {"failures.csv", "maker.json", "predictions.jsonl", "report.html"}


def test_the_same_command_again_makes_nothing_twice(app: str, inferred: Inferred, tmp_path: Path) -> None:
    output = tmp_path / "again"
    shutil.copytree(inferred.output, output)
    made = {path: path.stat().st_mtime_ns for path in output.rglob("*.*") if path.suffix not in {".csv", ".html", ".jsonl"}}
    answer = run_here(app, "infer", "--model", inferred.bundle, "--input", inferred.inputs, "--output", output)
    assert answer.code == 3
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert rows(output) == rows(inferred.output)
    assert failures(output) == failures(inferred.output)


def test_a_result_that_was_lost_is_made_again(app: str, contract: Contract, inferred: Inferred, tmp_path: Path) -> None:
    output = tmp_path / "again"
    shutil.copytree(inferred.output, output)
    lost = next(iter(rows(output).values()))["files"][contract.main_result]
    (output / lost).unlink()
    with open(output / "predictions.jsonl", "a") as file:
        file.write('{"input": "cut off in the mid')
    answer = run_here(app, "infer", "--model", inferred.bundle, "--input", inferred.inputs, "--output", output)
    assert answer.code == 3
    assert (output / lost).read_bytes() == (inferred.output / lost).read_bytes()
    assert rows(output) == rows(inferred.output)


@pytest.mark.kept_by_shared
def test_a_killed_run_goes_on_where_it_was(app: str, contract: Contract, inferred: Inferred, tmp_path: Path) -> None:
    inputs, output = tmp_path / "inputs", tmp_path / "output"
    inputs.mkdir()
    name = next(iter(contract.good))
    copies = 40
    for number in range(copies):
        copy(inferred.inputs / name, inputs / f"copy_{number:03d}{ending(name)}")
    words = ("infer", "--model", inferred.bundle, "--input", inputs, "--output", output, "--batch_size", 1, "--workers", 0)
    lines = output / "predictions.jsonl"
    with started(app, *words) as process:
        wait_for(lambda: lines.exists() and lines.read_text().count("\n") >= 3, "some inputs were done", process=process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    done = {path: path.stat().st_mtime_ns for path in output.rglob(f"*_{contract.main_result}.*")}
    before = lines.read_text().count("\n")
    assert 3 <= before < copies
    answer = run_here(app, *words)
    assert answer.code == 0, answer.err
    assert len(rows(output)) == copies
    assert sum(path.stat().st_mtime_ns == moment for path, moment in done.items()) >= before
    (result,) = {(output / row["files"][contract.main_result]).read_bytes() for row in rows(output).values()}
    assert result == (inferred.output / rows(inferred.output)[name, ""]["files"][contract.main_result]).read_bytes()

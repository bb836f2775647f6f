"""What the published programs answered, this code answers too; and the tool that says so cannot be satisfied by anything else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parity.__main__ import main
from tests.parity.recipe import draw_inputs, draw_state
from tests.parity.runner import run_fixture

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.json"))
LOSS = Path(__file__).parent / "fixtures" / "pranet-loss.json"


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_answers_what_the_published_program_answered(path: Path) -> None:
    results = list(run_fixture(path))
    assert all(result.ok for result in results), "\n".join(map(str, results))
    assert len(results) == len(json.loads(path.read_text())["outputs"])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for suffix in (".json", ".npz"):
        shutil.copy(LOSS.with_suffix(suffix), tmp_path / f"copy{suffix}")
    return tmp_path / "copy.json"


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def change_values(path: Path, **arrays: np.ndarray) -> None:
    with np.load(path.with_suffix(".npz")) as stored:
        np.savez(path.with_suffix(".npz"), **(dict(stored) | arrays))


def test_a_difference_just_over_the_tolerance_fails_that_output_only(copy: Path) -> None:
    name = "weight_map.hard"
    values = np.load(copy.with_suffix(".npz"))[name].astype(np.float64)
    values[0, 0, 5, 5] += 1.5e-4 * json.loads(copy.read_text())["outputs"][name]["std"]
    change_values(copy, **{name: values})
    failed = [result for result in run_fixture(copy) if not result.ok]
    assert [result.output for result in failed] == [name]
    assert failed[0].error == pytest.approx(1.5e-4, rel=0.01)


def test_errors_of_a_lone_number_are_relative_to_its_size(copy: Path) -> None:
    change_values(copy, **{"intended.hard.loss": np.array([0.9133405685424805 * 1.001])})
    (failed,) = [result for result in run_fixture(copy) if not result.ok]
    assert failed.error == pytest.approx(1e-3, rel=0.01)


def test_a_tolerance_for_one_output_is_in_its_own_units(copy: Path) -> None:
    change(copy, tolerances={"weight_map.hard": 0.5})
    (result,) = [result for result in run_fixture(copy) if result.output == "weight_map.hard"]
    assert result.tolerance == pytest.approx(0.5 / 1.0053684711456299)


def test_not_a_number_is_never_within_tolerance(copy: Path) -> None:
    values = np.load(copy.with_suffix(".npz"))["published.soft.grad"]
    values[0, 0, 0, 0] = np.nan
    change_values(copy, **{"published.soft.grad": values})
    assert [result.output for result in run_fixture(copy) if not result.ok] == ["published.soft.grad"]


def test_an_output_that_is_not_answered_or_has_another_shape_fails(copy: Path) -> None:
    content = json.loads(copy.read_text())
    weight_map = content["outputs"].pop("weight_map.hard")
    change(
        copy,
        outputs=content["outputs"] | {"weight_map.hard": weight_map | {"shape": [2, 1, 80, 64]}, "extra": weight_map},
    )
    change_values(copy, extra=np.load(copy.with_suffix(".npz"))["weight_map.hard"])
    problems = {result.output: result.problem for result in run_fixture(copy) if not result.ok}
    assert problems["extra"] == "the adapter does not answer this output"
    assert problems["weight_map.hard"] == "shape (2, 1, 64, 80), published (2, 1, 80, 64)"


def test_another_seed_gives_other_numbers(copy: Path) -> None:
    change(copy, seed=1)
    assert not any(result.ok for result in run_fixture(copy))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "copy.json: not a fixture (No such file or directory)"),
        (lambda path: path.write_text("{"), "copy.json: not a fixture"),
        (lambda path: path.with_suffix(".npz").unlink(), "copy.npz: the published outputs belong beside copy.json"),
        (lambda path: path.with_suffix(".npz").write_bytes(b""), "copy.npz: the published outputs belong beside copy.json"),
        (lambda path: np.savez(path.with_suffix(".npz"), other=np.zeros(1)), "'published.hard.loss' is missing"),
        (lambda path: path.write_text('{"system": "pranet"}'), "'config' is missing"),
        (lambda path: path.write_text("[]"), "not a fixture"),
        (lambda path: change(path, system="nobody"), "no adapter knows system 'nobody'"),
        (lambda path: change(path, config={"class": "AnotherNet"}), 'with config {"class": "AnotherNet"}'),
        (lambda path: change(path, outputs={}), "no outputs to compare"),
        (lambda path: change(path, inputs=[]), "KeyError"),
    ],
)
def test_what_cannot_be_run_is_one_failed_line_that_says_why(copy: Path, spoil, says: str) -> None:
    spoil(copy)
    (result,) = run_fixture(copy)
    assert not result.ok
    assert says in str(result)
    assert "\n" not in str(result)


def test_the_tool_prints_every_output_and_says_by_its_exit_code_whether_all_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = subprocess.run([sys.executable, "-m", "tests.parity", str(LOSS)], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    lines = good.stdout.splitlines()
    assert len(lines) == 9
    assert all(line.startswith("pranet-loss ") and " tolerance 1.00e-04 " in line and line.endswith(" ok") for line in lines)

    assert main([str(tmp_path / "missing.json"), str(LOSS)]) == 1
    assert [line.endswith(" ok") for line in capsys.readouterr().out.splitlines()] == [False] + 9 * [True]

    with pytest.raises(SystemExit, match="2"):
        main([])


def test_weights_and_inputs_depend_on_name_shape_and_seed_alone() -> None:
    entries = [
        {"name": "a.weight", "shape": [64, 3, 3], "dtype": "float32"},
        {"name": "norm.weight", "shape": [500], "dtype": "float32"},
        {"name": "norm.running_var", "shape": [500], "dtype": "float32"},
        {"name": "norm.num_batches_tracked", "shape": [], "dtype": "int64"},
        {"name": "index", "shape": [2], "dtype": "int64", "value": [4, 7]},
    ]
    state = draw_state(entries, 0)
    again = draw_state(entries[::-1], 0)
    assert all((state[name] == again[name]).all() for name in state)
    assert state["a.weight"].std() == pytest.approx(1 / 3, rel=0.1)
    assert state["norm.weight"].mean() == pytest.approx(1, abs=0.03)
    assert state["norm.running_var"].min() >= 1
    assert state["norm.num_batches_tracked"] == 0
    assert state["index"].tolist() == [4, 7]

    inputs = draw_inputs([{"name": "x", "shape": [1000], "kind": "uniform"}, {"name": "n", "shape": [1000], "kind": "int", "high": 5}], 0)
    assert 0 <= inputs["x"].min() < inputs["x"].max() < 1
    assert set(inputs["n"].tolist()) == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="'gamma'"):
        draw_inputs([{"name": "x", "shape": [1], "kind": "gamma"}], 0)

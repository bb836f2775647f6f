"""What the promises share: for each app one training, one bundle, one folder of inputs and one inference run over it."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from shared.cli import Verb
from tests.commands import PATIENCE_S, Answer, run_apart, run_here, started, wait_for
from tests.contract.contract import APPS, Contract, contract_of
from tests.contract.inputs import bad_inputs
from tests.contract.inputs import write as write_input
from tests.contract.weights import fingerprint

pytest.register_assert_rewrite("tests.contract.promises")


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """One run of ``infer`` over good and bad inputs."""

    bundle: Path
    inputs: Path
    output: Path
    answer: Answer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The promise about help, for every verb."""
    if "verb" in metafunc.fixturenames:
        found = list(_verbs(import_module(f"apps.{_app(metafunc.module)}.__main__").VERBS))
        metafunc.parametrize(("words", "verb"), found, ids=[" ".join(words) for words, _ in found])


@pytest.hookimpl(tryfirst=True)  # before pytest's own chooses by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In ``make test``, what code of `shared/` keeps for all apps is asked of the first app only."""
    for item in items:
        if item.get_closest_marker("kept_by_shared") and _app(item.module) != APPS[0]:  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.thorough)


def _app(module: ModuleType) -> str:
    """Of tests/contract/test_<app>.py."""
    return module.__name__.rpartition(".test_")[2]


def _verbs(table: Mapping[str, object], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Verb]]:
    for name, entry in table.items():
        if isinstance(entry, Verb):
            yield (*before, name), entry
        else:
            assert isinstance(entry, Mapping)
            yield from _verbs(entry, (*before, name))


@pytest.fixture(scope="module")
def app(request: pytest.FixtureRequest) -> str:
    return _app(request.module)


@pytest.fixture(scope="module")
def contract(app: str) -> Contract:
    return contract_of(app)


@pytest.fixture(scope="module")
def folder(app: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fixtures below lie, none of which may be changed."""
    return tmp_path_factory.mktemp(app)


@pytest.fixture(scope="module")
def phantoms(app: str, contract: Contract, folder: Path) -> Path:
    """Labelled phantoms to train on."""
    _succeed(app, *contract.phantoms(folder / "phantoms"))
    return folder / "phantoms"


@pytest.fixture(scope="module")
def unseen(app: str, contract: Contract, folder: Path) -> Path:
    """Labelled phantoms of another seed."""
    _succeed(app, *contract.unseen(folder / "unseen"))
    return folder / "unseen"


@pytest.fixture(scope="module")
def trained(app: str, contract: Contract, phantoms: Path, folder: Path) -> Path:
    """A run folder."""
    _succeed(app, *contract.train(phantoms, folder / "trained"))
    return folder / "trained"


@pytest.fixture(scope="module")
def bundle(trained: Path) -> Path:
    return trained / "model"


@pytest.fixture(scope="module")
def short_training(contract: Contract, phantoms: Path) -> Callable[[Path], list[object]]:
    """The words of a short training into a folder."""
    return lambda folder: [*contract.train(phantoms, folder), *contract.few_epochs]


@pytest.fixture(scope="module")
def reference(app: str, short_training: Callable[[Path], list[object]], folder: Path) -> Path:
    """The run folder of a short training that nobody disturbed."""
    _succeed(app, *short_training(folder / "reference"))
    return folder / "reference"


@pytest.fixture(scope="module")
def reference_weights(reference: Path) -> dict[str, str]:
    return fingerprint(reference / "model")


@pytest.fixture(scope="module")
def inferred(app: str, contract: Contract, bundle: Path, folder: Path) -> Inferred:
    """Good inputs and bad ones beside them, in one run."""
    inputs, output = folder / "inputs", folder / "inferred"
    inputs.mkdir()
    for name, one in [*contract.good.items(), *bad_inputs(contract).items()]:
        write_input(inputs / name, one.content())
    answer = run_apart(app, "infer", "--model", bundle, "--input", inputs, "--output", output)
    return Inferred(bundle=bundle, inputs=inputs, output=output, answer=answer)


@pytest.fixture(scope="module")
def service(app: str, bundle: Path, folder: Path) -> Iterator[httpx.Client]:
    """The verb ``serve`` in a process of its own, on a loopback port."""
    log = folder / "service.txt"
    words = ("serve", "--model", bundle, "--port", 0)
    with open(log, "w") as stderr, started(app, *words, stdout=subprocess.DEVNULL, stderr=stderr) as process:
        found = wait_for(lambda: re.search(r"answers at (http://127\.0\.0\.1:\d+)", log.read_text()), "it listened", process=process)
        with httpx.Client(base_url=found[1], timeout=PATIENCE_S) as client:
            wait_for(lambda: client.get("/readyz").status_code == 200, "the model was loaded", process=process)
            yield client
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE_S)
    assert process.returncode == 0, log.read_text()


@pytest.fixture(scope="module")
def checkpoint(contract: Contract, folder: Path) -> Path:
    """The authors' checkpoint, made up."""
    path = folder / f"published{contract.published.suffix}"
    contract.published.write(path)
    return path


def _succeed(app: str, *words: object) -> None:
    answer = run_here(app, *words)
    assert answer.code == 0, f"{words}: {answer.err}\n{answer.out}"

"""What the promises share: for each app one training, one bundle, one folder of inputs and one inference run over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.commands import Answer, run_apart, run_here
from tests.contract.contract import APPS, Contract, contract_of
from tests.contract.inputs import bad_inputs
from tests.contract.inputs import write as write_input
from tests.contract.weights import fingerprint


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """One run of ``infer`` over good and bad inputs."""

    bundle: Path
    inputs: Path
    output: Path
    answer: Answer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every promise for every app; in ``make test``, those that code of `shared/` keeps for all of them, for the first app only."""
    if "app" in metafunc.fixturenames:
        others = pytest.mark.thorough if metafunc.definition.get_closest_marker("kept_by_shared") else ()
        apps = [APPS[0], *(pytest.param(app, marks=others) for app in APPS[1:])]
        metafunc.parametrize("app", apps, scope="session")


@pytest.fixture(scope="session")
def contract(app: str) -> Contract:
    return contract_of(app)


@pytest.fixture(scope="session")
def shared_folder(app: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole session, also where pytest-xdist runs it in several processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / f"contract-{app}"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared_folder: Path) -> Callable[[str, Callable[[Path], None]], Path]:
    """``once("name", make)``: the folder ``name``, made by the first who asks."""

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, mark = shared_folder / name, shared_folder / f"{name}.done"
        with FileLock(shared_folder / f"{name}.lock"):
            if not mark.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                mark.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def phantoms(app: str, contract: Contract, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Labelled phantoms to train on; not to be changed."""
    return once("phantoms", lambda folder: _succeed(app, contract.phantoms(folder)))


@pytest.fixture(scope="session")
def unseen(app: str, contract: Contract, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Labelled phantoms of another seed; not to be changed."""
    return once("unseen", lambda folder: _succeed(app, contract.unseen(folder)))


@pytest.fixture(scope="session")
def trained(app: str, contract: Contract, phantoms: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A run folder; not to be changed."""
    return once("trained", lambda folder: _succeed(app, contract.train(phantoms, folder)))


@pytest.fixture(scope="session")
def bundle(trained: Path) -> Path:
    """Not to be changed."""
    return trained / "model"


@pytest.fixture(scope="session")
def short_training(contract: Contract, phantoms: Path) -> Callable[[Path], list[object]]:
    """The words of a short training into a folder."""
    return lambda folder: [*contract.train(phantoms, folder), *contract.few_epochs]


@pytest.fixture(scope="session")
def reference(app: str, short_training: Callable[[Path], list[object]], once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The run folder of a short training that nobody disturbed."""
    return once("reference", lambda folder: _succeed(app, short_training(folder)))


@pytest.fixture(scope="session")
def reference_weights(reference: Path) -> dict[str, str]:
    return fingerprint(reference / "model")


@pytest.fixture(scope="session")
def inferred(
    app: str, contract: Contract, bundle: Path, shared_folder: Path, once: Callable[[str, Callable[[Path], None]], Path]
) -> Inferred:
    """Good inputs and bad ones beside them, in one run; not to be changed."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for name, one in [*contract.good.items(), *bad_inputs(contract).items()]:
            write_input(folder / name, one.content())

    inputs = once("inputs", write)
    record = shared_folder / "inferred.json"

    def infer(folder: Path) -> None:
        answer = run_apart(app, "infer", "--model", bundle, "--input", inputs, "--output", folder)
        record.write_text(json.dumps(asdict(answer)))

    output = once("inferred", infer)
    return Inferred(bundle=bundle, inputs=inputs, output=output, answer=Answer(**json.loads(record.read_text())))


def _succeed(app: str, words: object) -> None:
    assert isinstance(words, (list, tuple))
    answer = run_here(app, *words)
    assert answer.code == 0, f"{words}: {answer.err}\n{answer.out}"

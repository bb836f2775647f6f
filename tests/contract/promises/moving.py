"""Promise 10: a bundle works on another machine: elsewhere, for another user, without the original and without a network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.commands import PATIENCE_S
from tests.contract.conftest import Inferred
from tests.contract.contract import Contract, predictor_of
from tests.contract.inputs import copy, rows

ELSEWHERE = """
import json, os, sys
from importlib import import_module
from pathlib import Path

package, name, bundle, original, output = sys.argv[1:6]

def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
        if os.fsdecode(arguments[0]).startswith(original):
            raise PermissionError(f"{arguments[0]} is on the other machine")
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" and isinstance(arguments[1], tuple) else arguments[0]
        if isinstance(host, str) and host not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionError(f"{host}: there is no network here")

sys.addaudithook(watch)
predictor = getattr(import_module(package), name).load(bundle)
summaries = {}
for path in sorted(Path("inputs").iterdir()):
    for sample in predictor.samples(path, name=path.name):
        prediction = predictor.predict(sample.read())
        files = prediction.save(Path(output), path.name + sample.id)
        summaries[path.name + " " + sample.id] = prediction.summary()
print(json.dumps(summaries))
"""


def test_a_copy_answers_the_same_elsewhere(
    app: str, contract: Contract, inferred: Inferred, trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    machine, home = tmp_path / "machine", tmp_path / "home"
    (machine / "inputs").mkdir(parents=True)
    home.mkdir()
    shutil.copytree(inferred.bundle, machine / "copied bundle")
    for name in contract.good:
        copy(inferred.inputs / name, machine / "inputs" / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FOVEA", "HF_", "TORCH", "XDG_"))}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", "no_proxy": "*"}
    words = [f"apps.{app}", contract.predictor, "copied bundle", str(trained.parent), "results"]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *words], cwd=machine, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    summaries = json.loads(done.stdout.splitlines()[-1])
    found = rows(inferred.output)
    assert len(summaries) == len([key for key in found if key[0] in contract.good])
    for key, summary in summaries.items():
        row = found[tuple(key.split(" "))]
        assert {name: row[name] for name in summary} == summary, key
        main = next((machine / "results").glob(f"{key.replace(' ', '')}_{contract.main_result}.*"))
        assert main.read_bytes() == (inferred.output / row["files"][contract.main_result]).read_bytes(), key


def test_no_file_of_a_bundle_knows_the_machine_that_made_it(trained: Path) -> None:
    names = [str(trained.parent), str(Path.home()), str(Path(__file__).parents[3]), sys.prefix]
    for path in sorted((trained / "model").iterdir()):
        content = path.read_bytes()
        assert [name for name in names if name.encode() in content] == [], path.name


def test_loading_a_bundle_leaves_it_as_it_was(app: str, bundle: Path) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in bundle.iterdir()}
    predictor = predictor_of(app).load(bundle)
    assert json.loads(json.dumps(predictor.about))["name"]
    assert predictor.card.strip()
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in bundle.iterdir()} == before

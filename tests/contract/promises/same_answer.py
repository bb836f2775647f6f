"""Promise 5: the command line, Python, the service and Ray give the same answer."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.commands import run_apart
from tests.contract.conftest import Inferred
from tests.contract.contract import Contract, predictor_of
from tests.contract.inputs import failures, rows, upload


def test_the_command_line_and_python_agree(app: str, contract: Contract, inferred: Inferred) -> None:
    """To the byte of the main result, and in every measurement."""
    predictor = predictor_of(app).load(inferred.bundle)
    found = rows(inferred.output)
    for name, good in contract.good.items():
        for sample in predictor.samples(inferred.inputs / name, name=name):
            prediction, row = predictor.predict(sample.read()), found[name, sample.id]
            result = (inferred.output / row["files"][contract.main_result]).read_bytes()
            assert prediction.encode(prediction.media_types[0]) == result, (name, sample.id)
            assert {key: row[key] for key in prediction.summary()} == prediction.summary(), (name, sample.id)
        if good.samples == ("",):
            assert predictor.predict(inferred.inputs / name).summary() == prediction.summary()


def test_the_service_agrees_with_the_command_line(app: str, contract: Contract, inferred: Inferred, service: httpx.Client) -> None:
    found = rows(inferred.output)
    uploads = {name: upload(inferred.inputs / name) for name in contract.good}
    called = {sent: name for name, (sent, _) in uploads.items()}
    answer = service.post("/v1/predictions", files=[("files", one) for one in uploads.values()])
    assert answer.status_code == 200, answer.text
    assert answer.json()["failures"] == []
    results = {(called[one["file"]], one["sample"]): one["summary"] for one in answer.json()["results"]}
    assert results == {key: {name: row[name] for name in results[key]} for key, row in found.items()}
    media_type = service.get("/v1/model").json()["media_types"]
    wanted = next(one for one in media_type if one != "application/json")
    for name, good in contract.good.items():
        if good.samples == ("",):
            answer = service.post("/v1/predictions", files=[("files", uploads[name])], headers={"Accept": wanted})
            assert answer.status_code == 200, answer.text
            assert answer.content == (inferred.output / found[name, ""]["files"][contract.main_result]).read_bytes(), name


def test_the_service_gives_the_same_reasons_for_what_it_refuses(inferred: Inferred, service: httpx.Client) -> None:
    for name, reason in failures(inferred.output).items():
        answer = service.post("/v1/predictions", files=[("files", upload(inferred.inputs / name))])
        assert answer.status_code in (413, 422), (name, answer.text)
        assert answer.json()["results"] == [] or "Frames read" in reason
        (failure,) = answer.json()["failures"]
        if answer.status_code == 422:
            assert failure["detail"].split(": ", 1)[1][:40] in reason, name


@pytest.mark.thorough  # what shared.scaling does for all apps is asked in its own tests
def test_ray_agrees_with_one_process(app: str, contract: Contract, inferred: Inferred, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    output = tmp_path / "ray"
    words = ("infer", "--model", inferred.bundle, "--input", inferred.inputs, "--output", output, "--engine", "ray", "--workers", 1)
    answer = run_apart(app, *words)
    assert answer.code == 3, answer.err
    assert failures(output) == failures(inferred.output)
    assert rows(output) == rows(inferred.output)
    for row in rows(output).values():
        file = row["files"][contract.main_result]
        assert (output / file).read_bytes() == (inferred.output / file).read_bytes(), row["input"]

"""The service on two replicas of a local Ray answers as the single process does."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from shared.serving.config import ServeConfig
from tests.shared.serving.brightness import BrightnessPrediction, BrightnessPredictor
from tests.shared.serving.conftest import picture

ray = pytest.importorskip("ray", reason="Ray is not installed")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from shared.scaling.serve import application

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[3])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        config = ServeConfig(model=Path("unused"), replicas=2, cpus_per_replica=0.5, max_upload_mb=1)
        serve.run(application(BrightnessPredictor, config, media_types=BrightnessPrediction.media_types))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_replicas_are_ready_and_answer_as_the_single_process_does(url: str) -> None:
    assert httpx.get(f"{url}/readyz", timeout=30).json() == {"status": "ready"}
    assert httpx.get(f"{url}/v1/model").json()["name"] == "brightness"
    assert "Research use only" in httpx.get(f"{url}/").text

    (sample,) = BrightnessPredictor().samples(picture(0.25), name="a.png")
    expected = BrightnessPredictor().predict(sample.read())
    files = {"files": ("a.png", picture(0.25))}
    assert httpx.post(f"{url}/v1/predictions", files=files).json()["results"][0]["summary"] == expected.summary()
    assert httpx.post(f"{url}/v1/predictions", files=files, headers={"Accept": "image/png"}).content == expected.encode("image/png")


def test_many_requests_at_once_are_each_answered_with_their_own(url: str) -> None:
    def ask(number: int) -> float:
        response = httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", picture(number / 8))}, timeout=30)
        return response.json()["results"][0]["summary"]["area_fraction"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(8))) == [number / 8 for number in range(8)]


def test_limits_and_errors_are_the_same(url: str) -> None:
    too_large = httpx.post(f"{url}/v1/predictions", files={"files": ("a.png", bytes(2_000_000))}, timeout=30)
    assert too_large.status_code == 413
    unreadable = httpx.post(f"{url}/v1/predictions", files={"files": ("notes.png", b"words")})
    assert (unreadable.status_code, unreadable.json()["failures"][0]["file"]) == (422, "notes.png")

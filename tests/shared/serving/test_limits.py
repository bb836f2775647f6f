"""Limits, keys, and a service that is full, slow or not ready."""

import hmac
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from shared.errors import UserError
from shared.serving.config import ServeConfig, read_api_key
from tests.shared.serving.brightness import BrightnessPredictor
from tests.shared.serving.conftest import picture, running, wait_until

Settings = Callable[..., ServeConfig]
HALF_A_REQUEST = (
    b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 500\r\n\r\n--x"
)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Set at the end in any case, so that no server is left waiting."""
    event = threading.Event()
    yield event
    event.set()


def test_waiting_samples_of_different_clients_share_a_batch(settings: Settings, gate: threading.Event) -> None:
    with running(settings(batch_size=8), BrightnessPredictor(gate)) as service, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(service.post, ("a.png", picture()))]
        wait_until(lambda: service.predictor.batches == [1])
        answers += [pool.submit(service.post, ("a.png", picture())) for _ in range(5)]
        wait_until(lambda: service.metric("fovea_queue_depth") == 5)
        gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 6
        assert service.predictor.batches == [1, 5]
        assert service.metric("fovea_batch_size_count") == 2
        assert service.metric("fovea_batch_size_sum") == 6


def test_a_full_service_says_429_and_when_to_return(settings: Settings, gate: threading.Event) -> None:
    with running(settings(queue_size=2), BrightnessPredictor(gate)) as service, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(service.post, ("a.png", picture())) for _ in range(2)]
        wait_until(lambda: sum(service.predictor.batches) + service.metric("fovea_queue_depth") == 2)
        refused = service.post(("a.png", picture()))
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert service.client.get("/healthz").status_code == 200, "probes are answered all the same"
        gate.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert service.post(("a.png", picture())).status_code == 200, "a place is free again"
        assert service.metric('fovea_rejected_total{reason="queue_full"}') == 1


def test_late_work_is_504_and_dropped(settings: Settings, gate: threading.Event) -> None:
    with running(settings(timeout_s=0.5, batch_size=1), BrightnessPredictor(gate)) as service, ThreadPoolExecutor(2) as pool:
        first = pool.submit(service.post, ("a.png", picture()))
        wait_until(lambda: service.predictor.batches == [1])
        second = pool.submit(service.post, ("b.png", picture()), ("c.png", picture()))
        assert (first.result().status_code, second.result().status_code) == (504, 504)
        assert "dropped" in second.result().json()["detail"]
        gate.set()
        assert service.post(("d.png", picture())).status_code == 200
        assert service.predictor.batches == [1, 1], "what had not begun was never predicted: only a and d were"


def test_an_upload_that_dawdles_is_408(settings: Settings) -> None:
    with running(settings(timeout_s=0.3)) as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(HALF_A_REQUEST)
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("announced", [True, False], ids=["Content-Length", "chunked"])
def test_too_many_bytes_are_413(settings: Settings, announced: bool) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(40):
            yield bytes(100_000)

    with running(settings(max_upload_mb=1)) as service:
        content = b"".join(body()) if announced else body()
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        response = service.client.post("/v1/predictions", content=content, headers=headers)
        assert response.status_code == 413
        assert "1 MB" in response.json()["detail"]
        assert service.post(("a.png", picture())).status_code == 200


def test_too_many_pixels_are_413_before_anything_is_decoded(settings: Settings) -> None:
    with running(settings(max_pixels=10_000)) as service:
        answer = service.post(("small.png", picture()), ("large.png", picture(size=(200, 100)))).json()
        assert [result["file"] for result in answer["results"]] == ["small.png"]
        assert [(failure["file"], failure["status"]) for failure in answer["failures"]] == [("large.png", 413)]
        assert service.post(("large.png", picture(size=(200, 100)))).status_code == 413
        assert service.post(("large.png", picture(size=(200, 100))), headers={"Accept": "image/png"}).status_code == 413
        assert sum(service.predictor.batches) == 1


def test_too_many_files_are_413(settings: Settings) -> None:
    with running(settings(max_files=2)) as service:
        response = service.post(*[("a.png", picture())] * 3)
        assert response.status_code == 413
        assert "2 files" in response.json()["detail"]


@pytest.mark.parametrize("source", ["file", "variable"])
def test_with_a_key_only_its_holder_is_answered(settings: Settings, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "file":
        path = tmp_path / "key"
        path.write_text("right-key\n")
        monkeypatch.setenv("FOVEA_API_KEY", "the file comes first")
    else:
        path = None
        monkeypatch.setenv("FOVEA_API_KEY", "right-key")
    with running(settings(api_key_file=path)) as service:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic right-key"},
            {"Authorization": "Bearer right-key2"},
        ):
            response = service.post(("a.png", picture()), headers=headers)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert "right-key" not in response.text
            assert service.client.get("/v1/model", headers=headers).status_code == 401
        good = {"Authorization": "Bearer right-key"}
        assert service.post(("a.png", picture()), headers=good).status_code == 200
        assert service.client.get("/v1/model", headers=good).status_code == 200
        assert [service.client.get(path).status_code for path in ("/", "/healthz", "/readyz", "/metrics")] == [200] * 4
        assert service.predictor.batches == [1]


def test_keys_are_compared_in_constant_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_API_KEY", "right-key")
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    with running(settings()) as service:
        for key in ("r", "right-key", "right-key and a lot more"):
            service.client.get("/v1/model", headers={"Authorization": f"Bearer {key}"})
    assert compared == [(32, 32)] * 3


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"], ids=["missing", "empty", "blank", "binary"])
def test_a_key_that_cannot_be_used_does_not_open_the_service(settings: Settings, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="key"):
        read_api_key(settings(api_key_file=path))


def test_until_the_model_is_loaded_it_is_alive_but_not_ready(settings: Settings, gate: threading.Event) -> None:
    def load() -> BrightnessPredictor:
        gate.wait(30)
        return BrightnessPredictor()

    with running(settings(), load=load) as service:
        assert service.client.get("/healthz").status_code == 200
        assert service.client.get("/").status_code == 200
        for response in (service.client.get("/readyz"), service.client.get("/v1/model"), service.post(("a.png", picture()))):
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) >= 1
        assert service.metric("fovea_ready") == 0
        gate.set()
        wait_until(lambda: service.client.get("/readyz").status_code == 200)
        assert service.post(("a.png", picture())).status_code == 200
        assert service.metric("fovea_ready") == 1


def test_a_client_that_hangs_up_frees_its_place(settings: Settings) -> None:
    with running(settings(queue_size=1)) as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(HALF_A_REQUEST)
            wait_until(lambda: service.metric("fovea_places_taken") == 1)
            assert service.post(("a.png", picture())).status_code == 429
        wait_until(lambda: service.post(("a.png", picture())).status_code == 200)


def test_a_busy_model_does_not_stop_the_probes(settings: Settings, gate: threading.Event) -> None:
    with running(settings(), BrightnessPredictor(gate)) as service, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(service.post, ("a.png", picture()))
        wait_until(lambda: service.predictor.batches == [1])
        assert httpx.get(f"{service.url}/readyz").json() == {"status": "ready"}
        gate.set()
        assert answer.result().status_code == 200

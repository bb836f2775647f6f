"""What the people who run the service are promised: model card, health, metrics, logs without patients in them, security headers."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.serving.config import ServeConfig
from shared.serving.logs import JsonFormatter
from tests.shared.serving.brightness import CARD
from tests.shared.serving.conftest import Running, picture, running


def test_the_model_tells_its_card_settings_and_limits(service: Running) -> None:
    model = service.client.get("/v1/model").json()
    assert (model["name"], model["version"], model["card"]) == ("brightness", "1.0", CARD)
    assert model["about"]["threshold"] == 128
    assert model["suffixes"] == [".bmp", ".gif", ".png"]
    assert model["media_types"] == ["application/json", "image/png", "image/tiff"]
    assert model["limits"] == {"max_upload_mb": 64.0, "max_pixels": 64_000_000, "max_files": 32, "timeout_s": 60.0}


def test_the_card_reads_as_html_and_cannot_run_anything(service: Running) -> None:
    card = service.client.get("/v1/model/card")
    assert card.headers["Content-Type"].startswith("text/html")
    assert "<h1>Brightness</h1>" in card.text
    assert "<td>threshold</td>" in card.text
    assert "<script" not in card.text


def test_health(service: Running) -> None:
    assert service.client.get("/healthz").json() == {"status": "ok"}
    assert service.client.get("/readyz").json() == {"status": "ready"}


def test_metrics_count_requests_batches_and_failures(settings: Callable[..., ServeConfig]) -> None:
    with running(settings()) as service:
        service.post(("a.png", picture()), ("b.png", b"no image"))
        service.client.get("/no/such/page")
        service.client.request("TRACE", "/v1/model")
        post = 'method="POST",route="/v1/predictions"'
        assert service.metric(f'fovea_requests_total{{{post},status="200"}}') == 1
        assert service.metric('fovea_request_duration_seconds_count{route="/v1/predictions"}') == 1
        assert service.metric("fovea_batch_size_sum") == 1
        assert service.metric('fovea_failed_files_total{status="422"}') == 1
        assert service.metric('fovea_requests_total{method="GET",route="unknown",status="404"}') == 1
        assert service.metric('fovea_requests_total{method="other",route="/v1/model",status="405"}') == 1
        assert service.metric("fovea_ready") == 1


def test_two_services_in_one_process_do_not_mix_their_numbers(service: Running, settings: Callable[..., ServeConfig]) -> None:
    service.post(("a.png", picture()))
    with running(settings()) as other:
        assert other.metric("fovea_batch_size_sum") == 0


def test_each_request_is_one_json_line_without_names_or_content(
    settings: Callable[..., ServeConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running(settings()) as service:
        caplog.clear()
        service.post(("patient_smith.png", picture()), headers={"X-Request-ID": "abc-123"})
        service.post(("patient_smith.png", picture()[:60]))
        service.client.get("/patient_smith.png")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    requests = [line for line in lines if line["logger"] == "shared.serving.requests"]
    assert [(line["method"], line["route"], line["status"]) for line in requests] == [
        ("POST", "/v1/predictions", 200),
        ("POST", "/v1/predictions", 422),
        ("GET", "unknown", 404),
    ]
    assert requests[0]["request_id"] == "abc-123"
    assert requests[0]["bytes_in"] > len(picture())
    assert requests[0]["duration_ms"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", requests[0]["time"])
    assert "smith" not in json.dumps([line for line in lines if line["logger"].startswith("shared")])


def test_a_fault_is_logged_with_its_place_but_not_its_words() -> None:
    try:
        raise RuntimeError("broke on patient_smith.png")
    except RuntimeError as error:
        record = logging.LogRecord("shared.serving", logging.ERROR, "", 0, "fault", (), (type(error), error, error.__traceback__))
    line = json.loads(JsonFormatter().format(record))
    assert line["exception"] == "RuntimeError"
    assert Path(__file__).name in line["frames"][0]
    assert "smith" not in json.dumps(line)


@pytest.mark.parametrize("path", ["/", "/page.js", "/v1/model", "/no/such/page", "/openapi.json"])
def test_every_answer_carries_the_security_headers_and_its_id(service: Running, path: str) -> None:
    headers = service.client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert re.fullmatch("[0-9a-f]{32}", headers["X-Request-ID"])
    assert "server" not in headers


@pytest.mark.parametrize("given", ["x" * 65, "a b", 'a"b'])
def test_a_strange_request_id_is_replaced(service: Running, given: str) -> None:
    assert service.client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"] != given


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/predictions", 405), ("DELETE", "/v1/model", 405)]
)
def test_framework_errors_are_problems_too(service: Running, method: str, path: str, status: int) -> None:
    response = service.client.request(method, path)
    assert response.status_code == response.json()["status"] == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert status != 405 or response.headers["Allow"]


def test_the_page_and_the_documentation_load_nothing_from_elsewhere(service: Running) -> None:
    page = service.client.get("/").text
    assert "Research use only. Not a medical device." in page
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert "//" not in name
        assert service.client.get(f"/{name}").status_code == 200
    assert service.client.get("/docs").status_code == 404, "Swagger UI would be fetched from a CDN"
    assert service.client.get("/openapi.json").json()["openapi"].startswith("3.")

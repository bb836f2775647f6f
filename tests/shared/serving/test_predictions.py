"""What a client of POST /v1/predictions is promised."""

import base64
import io
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.shared.serving.brightness import BrightnessPredictor
from tests.shared.serving.conftest import Running, film, picture

TEXT = b"just some words"


def test_one_image_is_answered_with_its_measurements(service: Running) -> None:
    response = service.post(("frame.png", picture(0.25)))
    assert response.status_code == 200
    answer = response.json()
    assert answer["model"] == {"name": "brightness", "version": "1.0"}
    assert answer["failures"] == []
    (result,) = answer["results"]
    assert (result["file"], result["sample"], result["files"]) == ("frame.png", "", {})
    assert result["summary"]["area_fraction"] == 0.25


def test_the_answer_equals_what_the_predictor_says_in_python(service: Running) -> None:
    content = picture(0.5)
    (sample,) = BrightnessPredictor().samples(content, name="a.png")
    prediction = BrightnessPredictor().predict(sample.read())
    result = service.post(("a.png", content), params={"include": ["result", "preview"]}).json()["results"][0]
    assert result["summary"] == prediction.summary()
    assert base64.b64decode(result["files"]["result"]["base64"]) == prediction.encode("image/png")
    assert base64.b64decode(result["files"]["preview"]["base64"]) == prediction.preview()


def test_several_files_come_back_in_order(service: Running) -> None:
    files = [(f"{number}.png", picture(number / 10)) for number in range(10)]
    results = service.post(*files).json()["results"]
    assert [result["file"] for result in results] == [name for name, _ in files]
    assert [result["summary"]["area_fraction"] for result in results] == [number / 10 for number in range(10)]


def test_every_frame_of_a_film_has_its_result(service: Running) -> None:
    results = service.post(("film.gif", film(5))).json()["results"]
    assert [result["sample"] for result in results] == [f"frame_{number:06d}" for number in range(5)]
    assert [result["summary"]["area_fraction"] for result in results] == [(number + 1) / 8 for number in range(5)]


def test_a_broken_file_does_not_lose_the_others(service: Running) -> None:
    cut_short = picture(size=(400, 400), kind="BMP")[:2000]
    response = service.post(
        ("good.png", picture()), ("notes.png", TEXT), ("cut.bmp", cut_short), ("empty.png", b""), ("also.png", picture())
    )
    assert response.status_code == 200
    answer = response.json()
    assert [result["file"] for result in answer["results"]] == ["good.png", "also.png"]
    assert [(failure["file"], failure["status"]) for failure in answer["failures"]] == [
        ("notes.png", 422),
        ("cut.bmp", 422),
        ("empty.png", 422),
    ]
    assert answer["failures"][0]["detail"] == "notes.png: is no image; expected PNG, GIF or BMP."


def test_a_model_that_breaks_on_one_image_answers_the_others(service: Running) -> None:
    poison = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 13, np.uint8)).save(poison, "PNG")
    answer = service.post(("a.png", picture()), ("poison.png", poison.getvalue()), ("b.png", picture())).json()
    assert [result["file"] for result in answer["results"]] == ["a.png", "b.png"]
    assert [(failure["file"], failure["status"]) for failure in answer["failures"]] == [("poison.png", 500)]
    assert "smith" not in json.dumps(answer), "what the model said inside is for the log"


def test_only_unreadable_files_are_422_in_the_same_shape(service: Running) -> None:
    response = service.post(("notes.png", TEXT))
    assert response.status_code == 422
    assert response.json()["results"] == []
    assert response.json()["failures"][0]["file"] == "notes.png"


@pytest.mark.parametrize(
    ("accept", "kind"), [("image/png", "PNG"), ("image/tiff", "TIFF"), ("image/*", "PNG"), ("application/json;q=0.1, image/png", "PNG")]
)
def test_one_file_is_answered_as_a_picture_on_request(service: Running, accept: str, kind: str) -> None:
    response = service.post(("frame.png", picture(0.25)), headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == f"image/{kind.lower()}"
    mask = Image.open(io.BytesIO(response.content))
    assert (mask.format, mask.size) == (kind, (60, 40))
    assert np.asarray(mask).mean() == 255 * 0.25


@pytest.mark.parametrize("accept", ["*/*", "application/*", "text/html, application/json;q=0.9, */*;q=0.1", "image/png;q=0, */*"])
def test_json_is_the_default(service: Running, accept: str) -> None:
    assert service.post(("a.png", picture()), headers={"Accept": accept}).headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("files", "accept"),
    [
        ([("a.png", picture())], "text/csv"),
        ([("a.png", picture())], "application/json;q=0"),
        ([("a.png", picture()), ("b.png", picture())], "image/png"),
        ([("film.gif", film(2))], "image/png"),
    ],
    ids=["unknown type", "JSON refused", "several files", "several frames"],
)
def test_what_cannot_be_made_in_the_wanted_type_is_406(service: Running, files: list[tuple[str, bytes]], accept: str) -> None:
    response = service.post(*files, headers={"Accept": accept})
    assert response.status_code == 406
    assert "application/json" in response.json()["detail"]


def test_an_unreadable_file_asked_as_a_picture_is_a_problem(service: Running) -> None:
    response = service.post(("notes.png", TEXT), headers={"Accept": "image/png"})
    assert response.status_code == 422
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["detail"].startswith("notes.png: is no image")
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("request_options", "status", "says"),
    [
        ({"content": b""}, 415, "multipart/form-data"),
        ({"json": {"files": []}}, 415, "multipart/form-data"),
        ({"files": {"image": ("a.png", b"x")}}, 400, "'image'"),
        ({"files": {"files": (None, "text")}}, 400, "file name"),
        ({"content": b"--x--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "Nothing was uploaded"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "cannot be read"),
        ({"files": {"files": ("a.png", b"x")}, "params": {"include": "masks"}}, 422, "include"),
    ],
)
def test_a_bad_request_is_told_what_to_do(service: Running, request_options: dict, status: int, says: str) -> None:
    response = service.client.post("/v1/predictions", **request_options)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert says in response.json()["detail"]


def test_uploads_are_never_written_to_disk(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent/folder")  # the server shares this process: a temporary file would fail
    large = picture(size=(1500, 2000), kind="BMP")
    assert len(large) > 8e6
    assert service.post(("large.bmp", large)).status_code == 200


def test_many_clients_at_once_are_all_answered_with_their_own(service: Running) -> None:
    def ask(number: int) -> tuple[int, float]:
        response = httpx.post(f"{service.url}/v1/predictions", files={"files": ("a.png", picture(number / 20))}, timeout=30)
        return number, response.json()["results"][0]["summary"]["area_fraction"]

    with ThreadPoolExecutor(8) as pool:
        for number, area in pool.map(ask, range(20)):
            assert area == pytest.approx(round(number / 20 * 40) / 40)  # whole rows of 40


def test_a_model_of_single_pictures_takes_no_files_together(service: Running) -> None:
    response = service.post(("a.png", picture()), ("b.png", picture()), params={"together": True})
    assert response.status_code == 409
    assert "`together`" in response.json()["detail"]

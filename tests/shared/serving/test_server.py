"""The service as a process of its own: it starts, says where, stops when told, and says why when it cannot."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from shared.errors import UserError
from shared.serving.config import ServeConfig
from shared.serving.server import serve
from tests.shared.serving.brightness import BrightnessPrediction, BrightnessPredictor
from tests.shared.serving.conftest import picture, wait_until

ROOT = Path(__file__).parents[3]
HOPELESS = """
import sys
from pathlib import Path
from shared.errors import UserError
from shared.serving.config import ServeConfig
from shared.serving.server import serve

def load():
    raise UserError("runs/model: damaged bundle.")

try:
    serve(load, ServeConfig(model=Path(), port=0), media_types=["image/png"])
except UserError as error:
    sys.exit(str(error))
"""
SERVER = """
import sys, time
from pathlib import Path
from shared.serving.config import ServeConfig
from shared.serving.server import serve
from tests.shared.serving.brightness import BrightnessPrediction, BrightnessPredictor

class Slow(BrightnessPredictor):
    def predict_batch(self, sources):
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        return super().predict_batch(sources)

serve(Slow, ServeConfig(model=Path(), port=0), media_types=BrightnessPrediction.media_types)
print("ended in order", file=sys.stderr)
"""


@contextmanager
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in its own process, and its address."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        while "url" not in (line := json.loads(server.stdout.readline())):
            pass
        yield server, line["url"]
    finally:
        server.kill()
        server.communicate()


def test_sigterm_finishes_what_was_accepted_and_ends_in_order(tmp_path: Path) -> None:
    with process(tmp_path) as (server, url), ThreadPoolExecutor(1) as pool:
        wait_until(lambda: _ready(url))
        answer = pool.submit(httpx.post, f"{url}/v1/predictions", files={"files": ("patient_smith.png", picture(0.25))}, timeout=30)
        wait_until((tmp_path / "begun").exists)
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: not _listening(url))
        (tmp_path / "go").touch()
        assert answer.result().json()["results"][0]["summary"]["area_fraction"] == 0.25
        out, err = server.communicate(timeout=30)
        assert server.returncode == 0
        assert "ended in order" in err
        assert url in err
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["status"] for line in lines if line["message"] == "request"] == [200]
        assert "smith" not in out + err


def test_a_port_in_use_is_said_before_anything_is_loaded(settings: Callable[..., ServeConfig]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot be listened on"):
        serve(BrightnessPredictor, settings(port=taken.getsockname()[1]), media_types=BrightnessPrediction.media_types)


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason() -> None:
    ended = subprocess.run([sys.executable, "-c", HOPELESS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "runs/model: damaged bundle." in ended.stderr


def test_a_model_that_is_not_there_is_said_before_anything_is_logged(settings: Callable[..., ServeConfig]) -> None:
    with pytest.raises(UserError, match="missing: no such model folder"):
        serve(BrightnessPredictor, settings(model=Path("missing")), media_types=BrightnessPrediction.media_types)


def test_several_replicas_are_for_ray(settings: Callable[..., ServeConfig]) -> None:
    with pytest.raises(UserError, match="Ray Serve"):
        serve(BrightnessPredictor, settings(replicas=2), media_types=BrightnessPrediction.media_types)


def test_the_settings_import_neither_torch_nor_the_web_framework() -> None:
    code = "import sys, shared.serving.config; print(sorted({'torch', 'fastapi', 'uvicorn', 'ray'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def _ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz").status_code == 200


def _listening(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz")
    except httpx.TransportError:
        return False
    time.sleep(0.01)
    return True

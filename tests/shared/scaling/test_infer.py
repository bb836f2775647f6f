"""`infer --engine ray` leaves what `--engine local` leaves, whatever happens to a worker."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from shared.inference.config import InferConfig
from shared.inference.run import SOME_FAILED, Engine, Outcome, local_engine, run
from tests.shared.inference.bright import BrightPredictor, write_frame
from tests.shared.serving.brightness import BrightnessPrediction
from tests.shared.serving.conftest import film, picture

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow

MAKER = {"model": "brightness"}


class Fragile(BrightPredictor):
    """Its process dies at a black frame, every time, and at an image 21 pixels high only the first time."""

    def predict_batch(self, sources: Any) -> list[BrightnessPrediction]:
        mark = Path("died_once")
        if any(not image.any() for image in sources):
            os._exit(1)
        if any(len(image) == 21 for image in sources) and not mark.exists():
            mark.touch()
            os._exit(1)
        return super().predict_batch(sources)


class Unloadable(BrightPredictor):
    @classmethod
    def load(cls, folder: Path | str, **options: Any) -> "Unloadable":
        raise UserError(f"{folder}: no such model folder.")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    root = str(Path(__file__).parents[3])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    yield
    ray.shutdown()


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative, as people type paths."""
    monkeypatch.chdir(tmp_path)
    folder = Path("frames")
    (folder / "below").mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture(number / 8))
    (folder / "below" / "0.png").write_bytes(picture(0.5))
    (folder / "clip.gif").write_bytes(film(3))
    (folder / "broken.png").write_text("words")
    return folder


@pytest.fixture
def infer(inputs: Path) -> Callable[..., Outcome]:
    from shared.scaling.infer import ray_engine

    def call(output: str, predictor: type[BrightPredictor] = BrightPredictor, *, ray: bool = True, workers: int = 2) -> Outcome:
        config = InferConfig(model=Path("unused"), input=[inputs], output=Path(output), workers=workers)
        engine: Engine = local_engine(predictor(), output=config.output, batch_size=2, workers=2)
        if ray:
            engine = ray_engine(predictor, config, {"device": "cpu", "precision": "fp32"})
        return run(config, suffixes=predictor.suffixes, engine=engine, maker=MAKER)

    return call


def results(folder: Path) -> tuple[set[str], dict[str, bytes], str]:
    """The lines of predictions.jsonl, the files of results, and failures.csv."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}
    return set((folder / "predictions.jsonl").read_text().splitlines()), files, (folder / "failures.csv").read_text()


def test_ray_leaves_what_the_local_engine_leaves(infer: Callable[..., Outcome]) -> None:
    local, spread = infer("local", ray=False), infer("spread")
    assert results(spread.folder) == results(local.folder)
    assert len(spread.rows) == 5 + 3
    assert spread.exit_code == SOME_FAILED
    assert list(spread.failures) == ["frames/broken.png"]


def test_what_is_done_is_not_made_again(infer: Callable[..., Outcome]) -> None:
    first = infer("out", workers=0)
    lines = (first.folder / "predictions.jsonl").read_text().splitlines()
    gone = json.loads(lines[0])["files"]["mask"]
    (first.folder / gone).unlink()
    kept = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*_mask.png")}
    second = infer("out")
    assert set((second.folder / "predictions.jsonl").read_text().splitlines()) == set(lines)
    assert (second.folder / gone).is_file()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_input_that_kills_its_worker_is_tried_again_then_listed_and_the_others_go_on(
    infer: Callable[..., Outcome], inputs: Path
) -> None:
    write_frame(inputs / "black.png", 0)
    write_frame(inputs / "once.png", 200, height=21)
    outcome = infer("out", Fragile)
    assert set(outcome.failures) == {"frames/black.png", "frames/broken.png"}
    assert "died, 2 times" in outcome.failures["frames/black.png"]
    assert "frames/once.png" in {row["input"] for row in outcome.rows}
    assert len(outcome.rows) == 5 + 3 + 1


def test_a_worker_that_cannot_load_the_model_stops_the_run_with_its_message(infer: Callable[..., Outcome]) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        infer("out", Unloadable)


def test_an_output_that_cannot_be_written_stops_the_run_with_a_message(infer: Callable[..., Outcome]) -> None:
    Path("out").mkdir()
    Path("out", "below").write_text("in the way of a folder")
    with pytest.raises(UserError, match="below"):
        infer("out")


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "shared.scaling.infer", raising=False)
    with pytest.raises(UserError, match=r'pip install "fovea\[scale\]"'):
        importlib.import_module("shared.scaling.infer")


def test_a_ray_of_its_own_says_nothing_on_the_terminal_and_is_shut_down(inputs: Path) -> None:
    script = """
import ray
from pathlib import Path
from shared.inference.config import InferConfig
from shared.inference.run import run
from shared.scaling.infer import ray_engine
from tests.shared.inference.bright import BrightPredictor
config = InferConfig(model=Path("unused"), input=[Path("frames")], output=Path("out"), workers=1)
outcome = run(config, suffixes=BrightPredictor.suffixes, engine=ray_engine(BrightPredictor, config, {"device": "cpu"}), maker={})
assert not ray.is_initialized()
raise SystemExit(outcome.exit_code)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    environment.pop("RAY_ADDRESS", None)
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=200)
    assert answer.returncode == SOME_FAILED, answer.stderr
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == ["predicting"]

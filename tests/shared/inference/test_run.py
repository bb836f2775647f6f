"""A run over many inputs loses nothing to the bad ones among them, nor to an end in the middle."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InputError, UserError
from shared.imaging import InputFile
from shared.inference.config import InferConfig
from shared.inference.protocols import Sample
from shared.inference.run import SOME_FAILED, Outcome, local_engine, predict_file, run
from tests.shared.inference.bright import BrightPrediction, BrightPredictor, write_frame
from tests.shared.serving.conftest import film


class CutShort(BrightPredictor):
    """Its videos break off after two frames, and the second frame of each cannot be decoded."""

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        for number, sample in enumerate(super().samples(source, name=name)):
            if number == 3:
                raise InputError(f"{name}: the video ends in the middle of a frame.")
            yield Sample(id=sample.id, read=_broken) if number == 1 else sample


class OutOfMemory(BrightPredictor):
    """Holds no more than two frames at a time."""

    def predict_batch(self, sources: Sequence[Any]) -> list[Any]:
        if len(sources) > 2:
            raise RuntimeError("out of memory")
        return super().predict_batch(sources)


def _broken() -> Any:
    raise InputError("the frame is damaged.")


def infer(tmp_path: Path, predictor: BrightPredictor, *, output: str = "out", batch_size: int = 4, workers: int = 2) -> Outcome:
    config = InferConfig(model=Path("unused"), input=[tmp_path / "in"], output=tmp_path / output, batch_size=batch_size, workers=workers)
    engine = local_engine(predictor, output=config.output, batch_size=batch_size, workers=workers)
    return run(config, suffixes=predictor.suffixes, engine=engine, maker={"model": "brightness"})


def failures(outcome: Outcome) -> dict[str, str]:
    with open(outcome.folder / "failures.csv", newline="") as file:
        return {Path(row["input"]).name: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Ten frames, each of its own brightness."""
    for number in range(10):
        write_frame(tmp_path / "in" / f"{number}.png", 20 + 25 * number)
    return tmp_path / "in"


def test_every_input_is_predicted_in_order_and_in_batches(tmp_path: Path, frames: Path) -> None:
    predictor = BrightPredictor()
    outcome = infer(tmp_path, predictor)
    assert outcome.exit_code == 0
    assert predictor.batches == [4, 4, 2]
    assert [Path(row["input"]).name for row in outcome.rows] == [f"{number}.png" for number in range(10)]
    assert [row["area_fraction"] for row in outcome.rows] == [float(20 + 25 * number > 128) for number in range(10)]
    assert all((outcome.folder / row["files"]["mask"]).is_file() for row in outcome.rows)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_threads_change_nothing(tmp_path: Path, frames: Path, workers: int) -> None:
    (frames / "clip.gif").write_bytes(film(5))
    (frames / "broken.png").write_text("words")
    expected = infer(tmp_path, BrightPredictor(), output="expected")
    outcome = infer(tmp_path, BrightPredictor(), workers=workers)
    for name in ("predictions.jsonl", "failures.csv"):
        assert (outcome.folder / name).read_text() == (expected.folder / name).read_text()


def test_bad_inputs_in_the_middle_are_listed_and_the_others_go_on(tmp_path: Path, frames: Path) -> None:
    (frames / "3.png").write_text("words")
    (frames / "7.png").write_bytes((frames / "7.png").read_bytes()[:60])
    outcome = infer(tmp_path, BrightPredictor())
    assert outcome.exit_code == SOME_FAILED
    assert set(failures(outcome)) == {"3.png", "7.png"}
    assert [Path(row["input"]).name for row in outcome.rows] == [f"{number}.png" for number in range(10) if number not in (3, 7)]


def test_a_video_that_breaks_off_keeps_its_good_frames_and_is_listed(tmp_path: Path) -> None:
    write_frame(tmp_path / "in" / "a.png", 200)
    (tmp_path / "in" / "clip.gif").write_bytes(film(5))
    write_frame(tmp_path / "in" / "z.png", 200)
    outcome = infer(tmp_path, CutShort(), batch_size=2)
    assert [(Path(row["input"]).name, row["sample"]) for row in outcome.rows] == [
        ("a.png", ""),
        ("clip.gif", "frame_000000"),
        ("clip.gif", "frame_000002"),
        ("z.png", ""),
    ]
    assert (outcome.folder / "clip" / "frame_000000_mask.png").is_file()
    assert "ends in the middle" in failures(outcome)["clip.gif"]


def test_a_batch_that_is_too_large_is_computed_one_by_one(tmp_path: Path, frames: Path) -> None:
    outcome = infer(tmp_path, OutOfMemory())
    assert outcome.exit_code == 0
    assert len(outcome.rows) == 10


def test_an_input_that_breaks_the_model_does_not_take_its_batch_along(tmp_path: Path, frames: Path) -> None:
    write_frame(frames / "4.png", 13)
    outcome = infer(tmp_path, BrightPredictor())
    assert set(failures(outcome)) == {"4.png"}
    assert len(outcome.rows) == 9


def test_what_is_done_is_not_made_again(tmp_path: Path, frames: Path) -> None:
    (frames / "3.png").write_text("words")
    first = infer(tmp_path, BrightPredictor())
    (first.folder / "5_mask.png").unlink()
    write_frame(frames / "3.png", 200)  # mended
    predictor = BrightPredictor()
    second = infer(tmp_path, predictor)
    assert predictor.batches == [2]
    assert (second.exit_code, len(second.rows)) == (0, 10)
    assert (second.folder / "failures.csv").read_text() == "input,reason\n"


def test_an_output_that_cannot_be_written_stops_the_run_and_the_next_one_goes_on(tmp_path: Path, frames: Path) -> None:
    class Full(BrightPredictor):
        def predict_batch(self, sources: Sequence[Any]) -> list[Any]:
            return [FullDisk(image=one.image, mask=one.mask) for one in super().predict_batch(sources)]

    class FullDisk(BrightPrediction):
        def save(self, folder: Path, stem: str) -> dict[str, str]:
            if stem == "6":
                raise UserError(f"{folder}: cannot be written (No space left on device).")
            return super().save(folder, stem)

    with pytest.raises(UserError, match="No space left"):
        infer(tmp_path, Full(), batch_size=2)
    kept = [json.loads(line)["input"] for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {Path(name).name for name in kept} == {f"{number}.png" for number in range(6)}
    predictor = BrightPredictor()
    outcome = infer(tmp_path, predictor)
    assert sum(predictor.batches) == 4
    assert (outcome.exit_code, len(outcome.rows)) == (0, 10)


def test_one_file_alone_gives_all_its_results(tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    path.write_bytes(film(4))
    file = InputFile(path=path, stem="clip")
    done = frozenset({(str(path), "frame_000002")})
    results = predict_file(BrightPredictor(), file, output=tmp_path / "out", batch_size=2, done=done)
    assert [result.sample for result in results] == ["frame_000000", "frame_000001", "frame_000003"]
    assert results[0].files == {"mask": "clip/frame_000000_mask.png"}

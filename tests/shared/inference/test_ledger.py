"""The record of an output folder survives whatever ended the run."""

import json
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.inference.ledger import Ledger

MAKER = {"model": "brightness", "threshold": 0.5}


def add(ledger: Ledger, source: str, sample: str = "") -> None:
    name = f"{source}{sample}_mask.png"
    (ledger.folder / name).write_bytes(b"mask")
    ledger.add(source, sample, {"mask": name}, {"area_fraction": 0.25})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "out", MAKER)
    add(ledger, "a.png")
    add(ledger, "clip.gif", "frame_000001")
    ledger.fail("b.png", "b.png: is empty.\nCopy it again.")
    ledger.close()
    return ledger.folder


def test_a_line_for_each_prediction_and_each_failure(folder: Path) -> None:
    first = json.loads((folder / "predictions.jsonl").read_text().splitlines()[0])
    assert first == {"input": "a.png", "sample": "", "files": {"mask": "a.png_mask.png"}, "area_fraction": 0.25}
    assert (folder / "failures.csv").read_text() == "input,reason\nb.png,b.png: is empty. Copy it again.\n"


def test_opened_again_it_knows_what_is_done_and_forgets_failures_which_may_be_mended(folder: Path) -> None:
    ledger = Ledger(folder, MAKER)
    assert set(ledger.rows) == {("a.png", ""), ("clip.gif", "frame_000001")}
    assert ledger.failures == {}
    ledger.close()


def test_a_line_that_was_cut_off_is_made_again_and_the_next_one_starts_a_line_of_its_own(folder: Path) -> None:
    lines = folder / "predictions.jsonl"
    lines.write_text(lines.read_text()[:-20])
    ledger = Ledger(folder, MAKER)
    assert set(ledger.rows) == {("a.png", "")}
    add(ledger, "c.png")
    ledger.close()
    assert [json.loads(line)["input"] for line in lines.read_text().splitlines()] == ["a.png", "c.png"]


def test_a_result_whose_file_is_gone_is_not_done(folder: Path) -> None:
    (folder / "a.png_mask.png").unlink()
    ledger = Ledger(folder, MAKER)
    assert set(ledger.rows) == {("clip.gif", "frame_000001")}
    ledger.close()


@pytest.mark.parametrize("other", [{"model": "brightness", "threshold": 0.6}, {}])
def test_results_of_another_model_or_setting_are_not_mixed_in(folder: Path, other: dict[str, object]) -> None:
    before = (folder / "predictions.jsonl").read_text()
    with pytest.raises(UserError, match="another model or other settings"):
        Ledger(folder, other)
    assert (folder / "predictions.jsonl").read_text() == before


def test_a_damaged_record_of_the_maker_is_not_trusted(folder: Path) -> None:
    (folder / "maker.json").write_text("{")
    with pytest.raises(UserError, match="Name another folder"):
        Ledger(folder, MAKER)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out"):
        Ledger(tmp_path / "out", MAKER)

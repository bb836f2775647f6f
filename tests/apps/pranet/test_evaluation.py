"""The paper's table, beside a baseline, the paper's own figures and trivial answers; a frame that cannot be used is listed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps.pranet.config import ModelConfig
from apps.pranet.inference import PraNetPredictor, Settings
from apps.pranet.paper import published_scores
from shared.imaging import read_image, read_mask
from shared.metrics.segmentation import confusion
from tests.commands import Answer, one_line_error

Command = Callable[..., Answer]
SETS = ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir")


@pytest.fixture(scope="module")
def published_layout(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five test sets of two frames each, as the authors' archive has them."""
    root = tmp_path_factory.mktemp("data") / "TestDataset"
    stems = sorted(path.stem for path in (frames / "masks").iterdir())
    for number, name in enumerate(SETS):
        for stem in stems[2 * number : 2 * number + 2]:
            for kind in ("images", "masks"):
                (source,) = (frames / kind).glob(f"{stem}.*")
                (root / name / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, root / name / kind)
    return root.parent


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    settings = Settings(model=ModelConfig(name="unet", backbone="mobilenet_v2"), size=64)
    return PraNetPredictor(settings.build(), settings).save_bundle(tmp_path_factory.mktemp("baseline") / "bundle")


@pytest.fixture(scope="module")
def evaluated(published_layout: Path, bundle: Path, baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answer, Path]:
    from tests.commands import run_here

    output = tmp_path_factory.mktemp("results") / "five"
    words = ("--model", bundle, "--baseline", baseline, "--data", published_layout, "--output", output, "--bootstrap", 50)
    return run_here("pranet", "evaluate", *words), output


def metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text())


def test_the_published_layout_is_scored_set_by_set(evaluated: tuple[Answer, Path]) -> None:
    answer, output = evaluated
    assert answer.code == 0, answer.err
    assert tuple(metrics(output)) == SETS
    assert all(name in answer.out for name in SETS)
    assert (output / "report.html").stat().st_size > 1000


def test_the_papers_figures_and_trivial_answers_stand_beside_ours(evaluated: tuple[Answer, Path]) -> None:
    out = evaluated[0].out
    for name in SETS:
        paper = published_scores(name)
        assert paper is not None, name
        assert f"{paper.mean_dice:.3f}" in out
        assert f"{paper.unet_mean_dice:.3f}" in out
    assert out.count("trivial: everything") == len(SETS)


def test_the_baseline_is_scored_on_the_same_frames(evaluated: tuple[Answer, Path]) -> None:
    answer, output = evaluated
    for one in metrics(output).values():
        assert one["baseline"]["frames"] == one["model"]["frames"] == 2
        difference = one["model"]["dice"]["estimate"] - one["baseline"]["dice"]["estimate"]
        assert one["dice_difference"]["estimate"] == pytest.approx(difference, abs=1e-9)
    assert answer.out.count("model minus baseline") == len(SETS)


def test_the_cases_are_what_the_predictor_answers(evaluated: tuple[Answer, Path], published_layout: Path, bundle: Path) -> None:
    predictor = PraNetPredictor.load(bundle)
    with open(evaluated[1] / "cases.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "model"]
    assert len(rows) == 10
    for row in rows[:4]:
        folder = published_layout / "TestDataset" / row["set"]
        (image,) = (folder / "images").glob(f"{row['frame']}.*")
        (mask,) = (folder / "masks").glob(f"{row['frame']}.*")
        truth = read_mask(mask)
        counts = confusion(predictor.predict(read_image(image)).mask, truth)
        assert float(row["dice"]) == pytest.approx(counts.dice, abs=1e-3)  # a pixel at the threshold may fall either way in a batch
        assert float(row["truth_area_fraction"]) == pytest.approx(truth.mean(), abs=1e-6)


def test_the_intervals_hold_their_estimate(evaluated: tuple[Answer, Path]) -> None:
    for one in metrics(evaluated[1]).values():
        dice = one["model"]["dice"]
        assert dice["low"] <= dice["estimate"] <= dice["high"]


def test_frames_without_a_polyp_are_scored_too(bundle: Path, pranet: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "empty" / kind).mkdir(parents=True)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"empty/images/{number}.png")
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / f"empty/masks/{number}.png")
    answer = pranet("evaluate", "--model", bundle, "--data", tmp_path / "empty", "--output", tmp_path / "out", "--bootstrap", 0)
    assert answer.code == 0, answer.err
    found = metrics(tmp_path / "out")["empty"]["model"]
    assert found["frames"] == 3
    assert found["detection"]["negatives"] == 3
    assert found["detection"]["sensitivity"] is None
    assert found["dice"]["low"] is None


def test_a_frame_that_cannot_be_used_is_listed_and_the_others_are_scored(
    frames: Path, bundle: Path, pranet: Command, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(frames, data)
    first, second, *others = sorted((data / "masks").iterdir())
    Image.new("L", (10, 10)).save(first)
    second.write_bytes(second.read_bytes()[:-40])
    answer = pranet("evaluate", "--model", bundle, "--data", data, "--output", tmp_path / "out", "--bootstrap", 0)
    assert answer.code == 3
    assert "Traceback" not in answer.err
    found = metrics(tmp_path / "out")["data"]
    assert found["model"]["frames"] == len(others)
    assert sorted(Path(name).stem for name in found["failures"]) == [first.stem, second.stem]
    assert "10 x 10" in answer.out
    assert f"not scored: {data / 'images'}" in answer.out


def test_if_no_frame_can_be_used_that_is_the_error(frames: Path, bundle: Path, pranet: Command, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(frames, data)
    for mask in (data / "masks").iterdir():
        Image.new("L", (10, 10)).save(mask)
    answer = pranet("evaluate", "--model", bundle, "--data", data, "--output", tmp_path / "out", "--bootstrap", 0)
    assert answer.code == 2
    assert "not one of its 10 frames" in answer.err
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(("layout", "part"), [((), "holds neither"), (("images",), "no such folder"), (("a/images",), "no such folder")])
def test_a_folder_of_another_layout_is_refused(layout: tuple[str, ...], part: str, bundle: Path, pranet: Command, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in ("", *layout):
        (data / folder).mkdir(parents=True, exist_ok=True)
    for folder in layout:
        Image.new("RGB", (40, 40)).save(data / folder / "a.png")
    one_line_error(pranet("evaluate", "--model", bundle, "--data", data, "--output", tmp_path / "out"), str(data), part)


@pytest.mark.parametrize(("name", "known"), [("Kvasir-SEG", True), ("etis", True), ("CVC-T", True), ("our-hospital", False)])
def test_the_papers_figures_are_found_by_the_usual_names(name: str, known: bool) -> None:
    assert (published_scores(name) is not None) == known

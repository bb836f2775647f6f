"""Training says what is wrong with its settings before it spends time, and keeps what it has when something goes wrong later."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import yaml
from torch.utils.data import DataLoader

from apps.pranet.data import ValidationFrames, labelled_frames
from apps.pranet.inference import PraNetPredictor, Settings
from apps.pranet.training import calibrate
from shared.phantoms.colonoscopy import write_colonoscopy
from tests.apps.pranet.conftest import BACKBONE
from tests.commands import Answer, one_line_error, run_here

Command = Callable[..., Answer]
FEW_STEPS = (
    *("--model.backbone", BACKBONE, "--model.channels", 8, "--data.size", 64, "--data.scales", "[1.0]", "--data.validation", 0.3),
    *("--fit.batch_size", 4, "--fit.accelerator", "cpu"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "frames"
    write_colonoscopy(folder, count=12, seed=3, height=40, width=48)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of two epochs; tests may go on with it."""
    folder = tmp_path_factory.mktemp("training") / "run"
    answer = run_here("pranet", "train", "--data.root", data, *FEW_STEPS, "--fit.epochs", 2, "--output", folder)
    assert answer.code == 0, answer.err
    return folder


def history(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_a_run_leaves_its_settings_history_checkpoints_report_and_bundle(run: Path, data: Path) -> None:
    assert {"config.yaml", "metrics.csv", "tensorboard", "checkpoints", "report.html", "model"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["data"]["root"] == str(data)
    assert settings["model"]["backbone"] == BACKBONE
    rows = history(run)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert {"loss", "val_loss", "val_dice"} <= rows[0].keys()


def test_a_folder_that_holds_a_run_is_not_written_over(run: Path, data: Path, pranet: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    answer = pranet("train", "--data.root", data, *FEW_STEPS, "--output", run)
    one_line_error(answer, str(run), "holds a run already", f"--resume {run}")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_of_another_model_is_not_resumed(run: Path, pranet: Command) -> None:
    answer = pranet("train", "--resume", run, "--model.channels", 16, "--fit.epochs", 3)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert f"{run / 'checkpoints' / 'last.ckpt'}: is of another model" in answer.err


def test_a_finished_run_goes_on_for_more_epochs(run: Path, pranet: Command) -> None:
    before = history(run)
    answer = pranet("train", "--resume", run, "--fit.epochs", 3)
    assert answer.code == 0, answer.err
    assert history(run)[:2] == before
    assert [row["epoch"] for row in history(run)] == [0, 1, 2]


def test_there_must_be_something_to_resume(pranet: Command, tmp_path: Path) -> None:
    one_line_error(pranet("train", "--resume", tmp_path / "nothing"), str(tmp_path / "nothing"), "no checkpoint to resume from")


def test_the_loss_is_the_one_that_was_asked_for(run: Path, data: Path, pranet: Command, tmp_path: Path) -> None:
    """Same seed and frames, so the first epoch differs by nothing else; the published loss leaves out a weight of 1 to 6."""
    words = ("--data.root", data, *FEW_STEPS, "--fit.epochs", 1, "--loss.name", "published_structure", "--output", tmp_path / "run")
    answer = pranet("train", *words)
    assert answer.code == 0, answer.err
    intended, published = history(run)[0]["loss"], history(tmp_path / "run")[0]["loss"]
    assert intended != pytest.approx(published, rel=1e-3)
    assert intended == pytest.approx(published, rel=0.5)


def test_the_backbone_starts_from_a_file_of_its_own(data: Path, pranet: Command, tmp_path: Path) -> None:
    """With a learning rate of nothing, the bundle's backbone is still the file's."""
    torch.manual_seed(8)
    backbone = timm.create_model(BACKBONE)
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    words = ("--data.root", data, *FEW_STEPS, "--fit.epochs", 1, "--fit.optimizer.lr", 1e-12, "--output", tmp_path / "run")
    answer = pranet("train", *words, "--model.backbone_weights", tmp_path / "backbone.pth")
    assert answer.code == 0, answer.err
    state = safetensors.torch.load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, value in backbone.named_parameters():
        if not name.startswith("fc."):
            assert torch.allclose(state[f"backbone.{name}"], value, atol=1e-9), name
    assert str(tmp_path) not in (tmp_path / "run" / "model" / "config.yaml").read_text()


def test_a_file_of_another_backbone_is_refused(data: Path, pranet: Command, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    words = ("train", "--data.root", data, *FEW_STEPS, "--output", tmp_path / "run")
    one_line_error(pranet(*words, "--model.backbone_weights", tmp_path / "other.pth"), "other.pth", "weights of another model")


def test_the_baseline_has_no_backbone_file(data: Path, pranet: Command, tmp_path: Path) -> None:
    words = ("train", "--data.root", data, "--model.name", "unet", "--data.size", 64, "--output", tmp_path / "run")
    one_line_error(pranet(*words, "--model.backbone_weights", tmp_path / "x.pth"), "model.backbone_weights", "model.pretrained")


def test_a_training_that_diverges_says_what_to_change(data: Path, pranet: Command, tmp_path: Path) -> None:
    words = ("--data.root", data, *FEW_STEPS, "--fit.epochs", 3, "--fit.optimizer.lr", 1e30, "--output", tmp_path / "run")
    answer = pranet("train", *words)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert "diverged. Lower fit.optimizer.lr" in answer.err
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--data.size", 100), ("data.size is 100", "multiple of 32")),
        (("--data.size", 32), ("data.size is 32", "at least 64")),
        (("--fit.clip_value", 1, "--fit.clip_norm", 1), ("fit.clip_value", "fit.clip_norm")),
        (("--data.validation", 0), ("data.validation", "between 0 and 1")),
        (("--model.backbone", "resnet5o"), ("model.backbone", "resnet5o")),
        (("--data.root", "no/such/folder"), ("no/such/folder", "no such folder")),
    ],
    ids=["size", "small size", "clipping", "validation", "backbone", "data"],
)
def test_settings_that_cannot_work_are_refused(
    words: tuple[object, ...], parts: tuple[str, ...], data: Path, pranet: Command, tmp_path: Path
) -> None:
    one_line_error(pranet("train", "--data.root", data, *FEW_STEPS, "--output", tmp_path / "run", *words), *parts)


def test_settings_that_were_refused_can_be_mended_in_place(data: Path, pranet: Command, tmp_path: Path) -> None:
    """The folder of a run that never began is no run."""
    words = ("train", "--data.root", data, *FEW_STEPS, "--fit.epochs", 1, "--output", tmp_path / "run")
    assert pranet(*words, "--model.backbone", "resnet5o").code == 2
    answer = pranet(*words)
    assert answer.code == 0, answer.err


def test_phantoms_are_made_where_there_are_no_frames_yet(pranet: Command, tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    words = ("--data.root", root, "--data.phantoms", 3, *FEW_STEPS, "--fit.epochs", 1, "--output", tmp_path / "run")
    answer = pranet("train", *words)
    assert answer.code == 0, answer.err
    assert "making 3 colonoscopy phantoms" in answer.out
    assert len(list((root / "images").iterdir())) == 3


@pytest.mark.parametrize(("empty_fraction", "fitted"), [(0.5, True), (0.0, False)], ids=["some without a polyp", "all with a polyp"])
def test_the_detection_threshold_is_fitted_where_frames_of_both_kinds_are(
    empty_fraction: float, fitted: bool, predictor: PraNetPredictor, small_settings: Settings, tmp_path: Path
) -> None:
    write_colonoscopy(tmp_path / "frames", count=6, seed=3, height=40, width=48, empty_fraction=empty_fraction)
    frames = ValidationFrames(labelled_frames(tmp_path / "frames"), size=small_settings.size)
    network = small_settings.build()
    network.load_state_dict(predictor.weights)
    settings, figures = calibrate(network, small_settings, DataLoader(frames, batch_size=4))
    assert (settings.detection_threshold is not None) == fitted
    assert settings.temperature > 0
    assert figures["calibration_error_after_temperature"] <= figures["calibration_error"] + 1e-6

"""A training leaves what a person needs, in minutes, and says in one line why it cannot begin."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from apps.acmil.config import StopConfig
from apps.acmil.inference import ACMILPredictor
from apps.acmil.training import Patience
from tests.commands import Answer, one_line_error

Command = Callable[..., Answer]
SHORT = ("--fit.epochs", 3, "--fit.optimizer.lr", 5e-3, "--fit.accelerator", "cpu", "--model.channels", 16, "--model.branches", 3)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a fold held out; not to be changed."""
    from tests.commands import run_here

    folder = tmp_path_factory.mktemp("training") / "run"
    answer = run_here("acmil", "train", "--data.root", labelled, "--output", folder, "--data.folds", 4, "--data.fold", 1, *SHORT)
    assert answer.code == 0, answer.err
    return folder


def test_a_run_says_which_slides_had_which_part_and_what_it_says_of_those_it_has_not_seen(run: Path) -> None:
    table = rows(run / "slides.csv")
    parts = {part: [row for row in table if row["part"] == part] for part in ("train", "validation", "test")}
    assert {part: len(found) for part, found in parts.items()} == {"train": 14, "validation": 4, "test": 6}
    patients = [{row["patient"] for row in found} for found in parts.values()]
    assert patients[0] & patients[1] == patients[0] & patients[2] == patients[1] & patients[2] == set()
    assert all(row["probability_positive"] == "" for row in parts["train"])
    for row in parts["validation"] + parts["test"]:
        assert float(row["probability_positive"]) + float(row["probability_negative"]) == pytest.approx(1, abs=1e-5)


def test_the_bundle_knows_its_slides_its_scores_and_its_encoder(run: Path) -> None:
    facts = json.loads((run / "model" / "provenance.json").read_text())
    assert facts["slides"] == [14, 4, 6]
    assert {"auc", "f1_macro", "f1_micro", "balanced_accuracy"} <= facts["metrics"].keys() & facts["held_out"].keys()
    settings = ACMILPredictor.load(run / "model").settings
    assert settings.encoder == "witnesses"
    assert settings.tiling is None, "bags of an encoder that is not the settings' do not say how slides were cut"
    assert settings.classes == ("negative", "positive")
    card = (run / "model" / "card.md").read_text()
    assert "Held out balanced accuracy" in card


def test_every_term_of_the_loss_has_its_curve(run: Path) -> None:
    history = rows(run / "metrics.csv")
    assert len(history) == 3
    assert {"loss", "loss_slide", "loss_branches", "loss_diversity", "val_loss", "val_auc", "val_f1", "val_evenness"} <= history[0].keys()
    assert float(history[-1]["loss"]) < float(history[0]["loss"])
    total = sum(float(history[0][f"loss_{name}"]) for name in ("slide", "branches", "diversity"))
    assert total == pytest.approx(float(history[0]["loss"]), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("clam_sb", []), ("dtfd", ["--fit.accumulate", 2]), ("transmil", ["--data.max_instances", 40])]
)
def test_what_acmil_is_compared_with_is_trained_by_the_same_command(
    name: str, options: list[object], labelled: Path, acmil: Command, tmp_path: Path
) -> None:
    answer = acmil(
        "train", "--data.root", labelled, "--output", tmp_path / "run", *SHORT, "--fit.epochs", 1, "--model.name", name, *options
    )
    assert answer.code == 0, answer.err
    assert ACMILPredictor.load(tmp_path / "run" / "model").settings.model.name == name


def test_ibmil_takes_its_prototypes_from_an_abmil(labelled: Path, acmil: Command, tmp_path: Path) -> None:
    common = ("train", "--data.root", labelled, *SHORT, "--fit.epochs", 1, "--model.prototypes", 4)
    one_line_error(acmil(*common, "--output", tmp_path / "a", "--model.name", "ibmil"), "give model.first_stage its bundle")
    assert acmil(*common, "--output", tmp_path / "first", "--model.name", "abmil").code == 0
    words = ("--output", tmp_path / "second", "--model.name", "ibmil", "--model.first_stage", tmp_path / "first" / "model")
    answer = acmil(*common, *words)
    assert answer.code == 0, answer.err
    predictor = ACMILPredictor.load(tmp_path / "second" / "model")
    assert (predictor.network.prototypes.norm(dim=1) > 0.1).all()
    assert "first_stage: null" in (tmp_path / "second" / "model" / "config.yaml").read_text(), "a bundle points nowhere outside"


def test_patience_counts_epochs_without_a_better_one_and_is_kept_in_the_checkpoint() -> None:
    class Trainer:
        should_stop = False

        def __init__(self, epoch: int, value: float) -> None:
            self.current_epoch, self.callback_metrics = epoch, {"val_loss": value}

    patience = Patience(StopConfig(patience=2, not_before=5), monitor="val_loss", maximise=False)
    stops = []
    for epoch, value in enumerate([0.5, 0.4, 0.6, 0.7, 0.8, 0.3]):
        if epoch == 3:
            other = Patience(StopConfig(patience=2, not_before=5), monitor="val_loss", maximise=False)
            other.load_state_dict(patience.state_dict())
            patience = other
        trainer = Trainer(epoch, value)
        patience.on_validation_end(trainer, None)  # type: ignore[arg-type]
        stops.append(trainer.should_stop)
    assert stops == [False, False, False, False, True, False]


def test_a_training_that_is_not_getting_better_ends_early(labelled: Path, acmil: Command, tmp_path: Path) -> None:
    stop = ("--stop.patience", 1, "--fit.epochs", 9, "--fit.optimizer.lr", 1e-12)
    answer = acmil("train", "--data.root", labelled, "--output", tmp_path / "run", *SHORT, *stop, "--stop.select", "score")
    assert answer.code == 0, answer.err
    assert len(rows(tmp_path / "run" / "metrics.csv")) == 2


def test_what_cannot_be_trained_says_so_in_one_line(labelled: Path, acmil: Command, tmp_path: Path) -> None:
    one_line_error(acmil("train", "--data.root", tmp_path / "none", "--output", tmp_path / "a"), "labels.csv: no such table of labels")
    one_line_error(acmil("train", "--data.root", labelled, "--output", tmp_path / "b", "--fit.batch_size", 4), "Use fit.accumulate instead")
    shutil.copytree(labelled, tmp_path / "data")
    lines = (tmp_path / "data" / "labels.csv").read_text().replace("positive", "negative")
    (tmp_path / "data" / "labels.csv").write_text(lines)
    one_line_error_after_notes(acmil("train", "--data.root", tmp_path / "data", "--output", tmp_path / "c"), "at least two classes")


def one_line_error_after_notes(answer: Answer, part: str) -> None:
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert part in answer.err.strip().splitlines()[-1]


def test_the_settings_of_the_repository_are_valid_and_name_a_network(acmil: Command) -> None:
    folder = Path(__file__).parents[3] / "configs" / "acmil"
    paths = sorted(folder.glob("*.yaml"))
    assert {"demo.yaml", "camelyon16.yaml"} <= {path.name for path in paths}
    for path in paths:
        answer = acmil("train", "--cfg", path, "--print_config")
        assert answer.code == 0, (path, answer.err)
        assert yaml.safe_load(answer.out)["output"].startswith(("runs/", "demo"))

"""The files that the authors' programs leave are recognised, converted, and nothing in them is executed."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.acmil.inference import ACMILPredictor
from tests.commands import Answer, one_line_error
from tests.parity.fixture import read_fixture
from tests.parity.recipe import draw_inputs, draw_state

Command = Callable[..., Answer]
FIXTURES = Path(__file__).parents[2] / "parity" / "fixtures"
KINDS = {
    "acmil-ga": ("acmil_ga", "slide_logits"),
    "acmil-mha": ("acmil_mha", "slide_logits"),
    "abmil": ("abmil", "logits"),
    "mha-mil": ("mha", "logits"),
    "clam-sb": ("clam_sb", "logits"),
    "clam-mb": ("clam_mb", "logits"),
    "transmil": ("transmil", "logits"),
    "ibmil": ("ibmil", "logits"),
}


def published(name: str) -> tuple[dict[str, torch.Tensor], np.ndarray, dict[str, np.ndarray]]:
    fixture = read_fixture(FIXTURES / f"{name}.json")
    state = {key: torch.from_numpy(value) for key, value in draw_state(fixture.state, fixture.seed).items()}
    bag = draw_inputs(fixture.inputs, fixture.seed)["x"]
    return state, bag.reshape(-1, bag.shape[-1]), {one.name: one.values for one in fixture.expected}


@pytest.mark.parametrize("fixture", KINDS)
def test_each_published_network_is_told_by_its_names_and_answers_as_published(fixture: str, acmil: Command, tmp_path: Path) -> None:
    state, bag, expected = published(fixture)
    torch.save(state, tmp_path / "published.pt")
    answer = acmil("convert", "--published", tmp_path / "published.pt", "--output", tmp_path / "bundle")
    assert answer.code == 0, answer.err
    name, output = KINDS[fixture]
    predictor = ACMILPredictor.load(tmp_path / "bundle", device="cpu", precision="fp32")
    assert predictor.settings.model.name == name
    logits = np.log(predictor.answer(bag)[0])
    true = expected[output].reshape(-1)
    np.testing.assert_allclose(logits - logits[0], true - true[0], atol=1e-3)  # a softmax forgets the sum of its logits


class Struct:
    """As utils.utils of the ACMIL repository has it."""

    def __init__(self, **entries: Any) -> None:
        self.__dict__.update(entries)


def save_as_acmil(state: dict[str, torch.Tensor], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("utils.utils")
    module.Struct = Struct  # type: ignore[attr-defined]
    monkeypatch.setattr(Struct, "__module__", "utils.utils")
    monkeypatch.setitem(sys.modules, "utils", types.ModuleType("utils"))
    monkeypatch.setitem(sys.modules, "utils.utils", module)
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 7, "config": Struct(lr=1e-4, n_token=5)}, path)
    monkeypatch.undo()


def test_what_acmils_training_leaves_is_read_although_it_holds_a_class_of_its_own(
    acmil: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, bag, _ = published("acmil-ga")
    save_as_acmil(state, tmp_path / "checkpoint-best.pth", monkeypatch)
    words = ("convert", "--published", tmp_path / "checkpoint-best.pth", "--output", tmp_path / "bundle")
    answer = acmil(*words, "--classes", "normal", "tumour", "--encoder", "medical_ssl")
    assert answer.code == 0, answer.err
    predictor = ACMILPredictor.load(tmp_path / "bundle")
    assert predictor.settings.classes == ("normal", "tumour")
    assert predictor.settings.encoder == "medical_ssl"
    assert predictor.answer(bag)[2].shape == (5, 300)


def test_dtfds_four_state_dicts_and_a_data_parallel_clam_and_lightnings_transmil_are_read(acmil: Command, tmp_path: Path) -> None:
    state, _, _ = published("dtfd")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[f"module.{rest}"] = value
    torch.save(parts, tmp_path / "dtfd.pth")
    clam, _, _ = published("clam-sb")
    spoilt = {key.replace("attention_net.", "attention_net.module.", 1): value for key, value in clam.items()}
    torch.save({**spoilt, "instance_loss_fn.labels": torch.zeros(2)}, tmp_path / "clam.pt")
    transmil, _, _ = published("transmil-acmil")
    torch.save({"state_dict": {f"model.{key}": value for key, value in transmil.items()}}, tmp_path / "transmil.ckpt")
    for file, name in (("dtfd.pth", "dtfd"), ("clam.pt", "clam_sb"), ("transmil.ckpt", "transmil")):
        answer = acmil("convert", "--published", tmp_path / file, "--output", tmp_path / name)
        assert answer.code == 0, answer.err
        assert ACMILPredictor.load(tmp_path / name).settings.model.name == name


def test_a_class_of_any_other_name_is_refused(acmil: Command, tmp_path: Path) -> None:
    torch.save({"model": published("acmil-ga")[0], "config": Path("/")}, tmp_path / "strange.pth")
    one_line_error(acmil("convert", "--published", tmp_path / "strange.pth", "--output", tmp_path / "b"), "strange.pth", "not a readable")


def test_names_that_do_not_fit_the_number_of_classes_are_an_error(acmil: Command, tmp_path: Path) -> None:
    torch.save(published("abmil")[0], tmp_path / "abmil.pt")
    answer = acmil("convert", "--published", tmp_path / "abmil.pt", "--output", tmp_path / "b", "--classes", "a", "b", "c")
    one_line_error(answer, "names 3 classes", "tells 2 apart")

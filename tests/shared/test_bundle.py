"""A model folder says everything about its model, moves as a whole, and executes nothing."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from shared.bundle import FILES, Bundle, check_finite, load_bundle, load_weights, provenance, read_checkpoint, save_bundle
from shared.errors import UserError

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle = Bundle(
        app="toy", config={"model": {"channels": 32}, "threshold": 0.5}, state=STATE, card="# Größe\n", provenance=provenance(seed=1)
    )
    return save_bundle(tmp_path / "model", bundle)


class Malicious:
    """Leaves a trace if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_what_was_saved_is_loaded(folder: Path) -> None:
    bundle = load_bundle(folder, app="toy")
    assert bundle.config == {"model": {"channels": 32}, "threshold": 0.5}
    assert bundle.card == "# Größe\n"
    assert bundle.state.keys() == STATE.keys()
    assert all(torch.equal(bundle.state[name], STATE[name]) and bundle.state[name].dtype == STATE[name].dtype for name in STATE)
    assert bundle.provenance["seed"] == 1
    assert bundle.provenance["packages"]["torch"] == torch.__version__.split("+")[0] or bundle.provenance["packages"]["torch"]
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_it_moves_to_another_place(folder: Path, tmp_path: Path) -> None:
    elsewhere = folder.rename(tmp_path / "elsewhere")
    assert load_bundle(elsewhere, app="toy").config["threshold"] == 0.5
    assert not any(str(tmp_path) in path.read_text(errors="ignore") for path in elsewhere.iterdir())


def test_weights_that_share_memory_or_lie_otherwise_are_saved(tmp_path: Path) -> None:
    weight = torch.rand(4, 3, 3, 3)
    state = {"a": weight, "b": weight, "c": weight[:2], "d": weight.to(memory_format=torch.channels_last), "e": weight.requires_grad_()}
    save_bundle(tmp_path / "model", Bundle(app="toy", config={}, state=state, card=""))
    loaded = load_bundle(tmp_path / "model", app="toy").state
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_newer_one_takes_its_place(folder: Path) -> None:
    save_bundle(folder, Bundle(app="toy", config={"threshold": 0.7}, state=STATE, card=""))
    assert load_bundle(folder, app="toy").config == {"threshold": 0.7}
    assert {path.name for path in folder.parent.iterdir()} == {"model"}


def test_a_folder_with_something_else_in_it_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds 'thesis.tex'"):
        save_bundle(folder, Bundle(app="toy", config={}, state=STATE, card=""))
    assert (folder / "thesis.tex").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        save_bundle(tmp_path / "file", Bundle(app="toy", config={}, state=STATE, card=""))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{folder}: not a complete bundle, {name} is missing"):
        load_bundle(folder, app="toy")


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name in FILES for content in (b"", b"\xff\xfe{{{", b"[1, 2]") if name != "card.md" or content == b"\xff\xfe{{{"],
)
def test_a_damaged_file_is_one_message(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{folder}: damaged bundle"):
        load_bundle(folder, app="toy")


def test_weights_that_are_cut_short_are_noticed(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged bundle"):
        load_bundle(folder, app="toy")


def test_a_folder_that_is_not_there_is_named_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such model folder. `apps.toy train`"):
        load_bundle(tmp_path / "model", app="toy")


def test_another_app_s_bundle_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"is a bundle of 'toy', not of 'other'. Use `apps.toy`"):
        load_bundle(folder, app="other")


def test_a_bundle_of_another_format_is_refused(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "format": 99}))
    with pytest.raises(UserError, match="bundle format 99"):
        load_bundle(folder, app="toy")


def test_nothing_in_it_is_executed(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(UserError, match="damaged"):
        load_bundle(folder, app="toy")
    (folder / "config.yaml").write_text(f"app: !!python/object/apply:os.mkdir ['{trace}']\nformat: 1\n")
    with pytest.raises(UserError, match="damaged"):
        load_bundle(folder, app="toy")
    assert not trace.exists()


def test_provenance_is_json_and_says_which_code(folder: Path) -> None:
    details = json.loads((folder / "provenance.json").read_text())
    assert {"created", "code", "packages", "seed"} <= details.keys()
    assert {"python", "torch", "numpy"} <= details["packages"].keys()


def test_weights_fit_or_the_message_says_why_not() -> None:
    model = nn.Linear(3, 2)
    load_weights(model, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, source="a.pth")
    assert model(torch.ones(1, 3)).tolist() == [[3, 3]]
    for state, said in {
        "bias is missing": {"weight": torch.ones(2, 3)},
        "extra is not part of this model": {"weight": torch.ones(2, 3), "bias": torch.zeros(2), "extra": torch.ones(1)},
        r"weight is \[3, 2\], expected \[2, 3\]": {"weight": torch.ones(3, 2), "bias": torch.zeros(2)},
    }.items():
        with pytest.raises(UserError, match=f"a.pth: weights of another model: 1 of 2 .*{state}"):
            load_weights(model, said, source="a.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
)
def test_a_checkpoint_is_read_through_its_wrappers(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(STATE), tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.keys() == STATE.keys()
    assert torch.equal(found["weight"], STATE["weight"])


def test_numbers_beside_the_weights_and_a_wrapper_of_another_name(tmp_path: Path) -> None:
    content = {"net_state_dict": {f"module.{name}": value for name, value in STATE.items()}, "best": np.float64(0.9), "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt", wrappers=("net_state_dict",)).keys() == STATE.keys()
    with pytest.raises(UserError, match=r"a\.pt: holds no state dict.*Take e_3\.pt\."):
        read_checkpoint(tmp_path / "a.pt", advice="Take e_3.pt.")


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    check_finite(STATE, source="a.pt")
    with pytest.raises(UserError, match=r"a\.pt: .*not finite \(the first: broken\)\. Take another\."):
        check_finite({**STATE, "broken": torch.tensor([1.0, float("nan")])}, source="a.pt", advice="Take another.")


def test_a_checkpoint_as_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["weight"], STATE["weight"])


def test_a_checkpoint_of_the_old_format(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["weight"], STATE["weight"])


@pytest.mark.parametrize("content", [b"", b"<html>Sign in to download</html>", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: not a readable checkpoint.*Download it again"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"words\n", b".\n"])  # the unpickler takes letters of a text for its instructions
def test_a_text_is_not_explained_by_the_unpicklers_own_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match="none of torch's files"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {"weight": 3}}])
def test_a_file_without_a_state_dict_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_malicious_checkpoint_is_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    torch.save({"state_dict": {"weight": Malicious(trace)}}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Malicious(trace)))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(UserError, match="not a readable checkpoint"):
            read_checkpoint(tmp_path / name)
    assert not trace.exists()


def test_whoever_may_read_one_file_of_a_bundle_may_read_all(folder: Path) -> None:
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "a service runs as another user than the training"

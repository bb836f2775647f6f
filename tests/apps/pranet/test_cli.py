"""Every mistake at the keyboard gives one line that says what to do, exit code 2, and no traceback."""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.commands import Answer, one_line_error

Command = Callable[..., Answer]


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_unknown_key_names_the_file_and_the_nearest_key(pranet: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("fit: {epoch: 3}\n")
    one_line_error(pranet("train", "--cfg", tmp_path / "mine.yaml"), str(tmp_path / "mine.yaml"), "fit.epoch", "Did you mean 'fit.epochs'?")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("fit: {epochs: many}", ("fit.epochs", "many")),
        ("fit: {epochs: -3}", ("fit.epochs", "-3")),
        ("model: {name: pranett}", ("model.name", "pranett", "unet")),
        ("data: {validation: 1.5}", ("data.validation", "1.5")),
        ("fit: [1, 2]", ("'fit' must hold keys and values",)),
        ("fit:", ("'fit' must hold keys and values",)),
        ("fit: {optimizer: adam}", ("'fit.optimizer' must hold keys and values", "adam")),
        ("- 1\n- 2", ("keys and values",)),
        ("fit: {epochs: 3", ("is not YAML",)),
    ],
)
def test_a_wrong_value_names_the_file_and_the_key(content: str, parts: tuple[str, ...], pranet: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    one_line_error(pranet("train", "--cfg", tmp_path / "mine.yaml"), str(tmp_path / "mine.yaml"), *parts)


def test_a_missing_file_of_settings_is_named(pranet: Command, tmp_path: Path) -> None:
    one_line_error(pranet("train", "--cfg", tmp_path / "none.yaml"), str(tmp_path / "none.yaml"), "no such file")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("train", "--fit.epoch", "3"), ("--fit.epoch", "Did you mean '--fit.epochs'?")),
        (("train", "--epochs", "3"), ("--epochs", "--fit.epochs")),
        (("trian",), ("trian", "Did you mean 'train'?")),
        (("data", "fecth"), ("fecth", "Did you mean 'fetch'?")),
        (("train", "--fit.epochs", "none"), ("fit.epochs", "none")),
        (("infer", "--input", "a.png", "--output", "out"), ("model",)),
        (("infer", "--model", "m", "--input", "a.png", "--output", "out", "--threshold", "2"), ("threshold", "2")),
    ],
)
def test_a_slip_on_the_command_line_suggests_what_was_meant(words: tuple[str, ...], parts: tuple[str, ...], pranet: Command) -> None:
    one_line_error(pranet(*words), *parts)


def test_a_data_set_that_is_unknown_is_suggested(pranet: Command) -> None:
    answer = pranet("data", "fetch", "kvasir-sag")
    assert answer.code == 2
    assert "Did you mean 'kvasir-seg'?" in answer.err


@pytest.mark.parametrize("verb", ["evaluate", "export", "infer"])
def test_a_model_folder_that_is_missing_is_named(verb: str, frames: Path, pranet: Command, tmp_path: Path) -> None:
    one_line_error(
        pranet(verb, "--model", tmp_path / "none", *_rest(verb, frames, tmp_path)), str(tmp_path / "none"), "no such model folder"
    )


@pytest.mark.parametrize("missing", ["model.safetensors", "config.yaml", "provenance.json", "card.md"])
def test_a_bundle_with_one_file_missing_names_the_file(missing: str, bundle: Path, frames: Path, pranet: Command, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / missing).unlink()
    answer = pranet("infer", "--model", tmp_path / "bundle", *_rest("infer", frames, tmp_path))
    one_line_error(answer, str(tmp_path / "bundle"), f"{missing} is missing")
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_another_app_names_that_app(bundle: Path, frames: Path, pranet: Command, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    settings = yaml.safe_load((bundle / "config.yaml").read_text())
    (tmp_path / "bundle" / "config.yaml").write_text(yaml.safe_dump({**settings, "app": "agunet"}))
    one_line_error(pranet("infer", "--model", tmp_path / "bundle", *_rest("infer", frames, tmp_path)), "'agunet'", "apps.agunet")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda content: content[: len(content) // 2]),
        ("model.safetensors", lambda content: b"not weights"),
        ("config.yaml", lambda content: b"app: [pranet"),
        ("config.yaml", lambda content: b"app: pranet\nformat: 1\n"),
        ("config.yaml", lambda content: content.replace(b"size: 64", b"sizes: 64")),
        ("config.yaml", lambda content: content.replace(b"channels: 8", b"channels: 16")),
        ("config.yaml", lambda content: content.replace(b"format: 1", b"format: 99")),
        ("provenance.json", lambda content: b"{"),
    ],
)
def test_a_damaged_bundle_is_named(
    name: str, change: Callable[[bytes], bytes], bundle: Path, frames: Path, pranet: Command, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    path.write_bytes(change(path.read_bytes()))
    one_line_error(pranet("infer", "--model", tmp_path / "bundle", *_rest("infer", frames, tmp_path)), str(tmp_path / "bundle"))


def test_an_empty_folder_of_inputs_is_said_to_be_empty(bundle: Path, pranet: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = pranet("infer", "--model", bundle, "--input", tmp_path / "empty", "--output", tmp_path / "out")
    one_line_error(answer, str(tmp_path / "empty"), "no files at all")


def test_a_folder_of_inputs_that_is_missing_is_named(bundle: Path, pranet: Command, tmp_path: Path) -> None:
    answer = pranet("infer", "--model", bundle, "--input", tmp_path / "none", "--output", tmp_path / "out")
    one_line_error(answer, str(tmp_path / "none"), "no such file or folder")


def test_results_of_another_model_are_not_mixed_in(bundle: Path, frames: Path, pranet: Command, tmp_path: Path) -> None:
    words = ("infer", "--model", bundle, *_rest("infer", frames, tmp_path))
    assert pranet(*words).code == 0
    answer = pranet(*words, "--threshold", "0.7")
    one_line_error(answer, str(tmp_path / "out"), "other settings")


def test_a_disk_that_fills_up_in_inference_leaves_nothing_half_written(bundle: Path, frames: Path, pranet: Command, tmp_path: Path) -> None:
    """The small masks still fit, the overlays do not; with space again, the same command finishes."""
    words = ("infer", "--model", bundle, *_rest("infer", frames, tmp_path))
    with files_up_to(4000):
        answer = pranet(*words)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert "cannot be written" in answer.err
    assert "File too large" in answer.err
    assert list((tmp_path / "out").rglob(".*")) == []
    answer = pranet(*words)
    assert answer.code == 0, answer.err
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 10


def test_a_disk_that_fills_up_in_training_says_how_to_go_on(frames: Path, pranet: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--model.backbone", "test_resnet", "--model.channels", 8, "--data.size", 64, "--data.scales", "[1.0]", "--fit.epochs", 1)
    with files_up_to(1_000_000):
        answer = pranet("train", "--data.root", frames, *words, "--output", run)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert f"{run}" in answer.err
    assert "cannot be written (File too large)" in answer.err
    assert [path.name for path in (run / "checkpoints").glob("*")] == []


def test_a_bundle_that_does_not_fit_on_the_disk_is_not_begun(bundle: Path, pranet: Command, tmp_path: Path) -> None:
    with files_up_to(1_000_000):
        answer = pranet("export", "--model", bundle, "--format", "torch", "--output", tmp_path / "a.pt2", "--batch_size", 1)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert str(tmp_path / "a.pt2") in answer.err
    assert list(tmp_path.iterdir()) == []


def _rest(verb: str, frames: Path, folder: Path) -> tuple[object, ...]:
    """The options besides --model."""
    return {
        "evaluate": ("--data", frames, "--output", folder / "out"),
        "export": ("--output", folder / "out.onnx"),
        "infer": ("--input", frames / "images", "--output", folder / "out"),
    }[verb]

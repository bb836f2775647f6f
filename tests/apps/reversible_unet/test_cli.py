"""Every mistake at the keyboard gives one line that says what to do, exit code 2, and no traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.apps.reversible_unet.conftest import SMALL
from tests.commands import Answer, one_line_error

Command = Callable[..., Answer]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("model: {chanels: [8, 16]}", ("model.chanels", "Did you mean 'model.channels'?")),
        ("model: {name: revnet}", ("model.name", "revnet", "unet3d")),
        ("model: {encoder_depth: 0}", ("model.encoder_depth", "0")),
        ("window: {size: [128, 128]}", ("window.size",)),
        ("loss: {name: focal}", ("loss.name", "focal", "published_dice")),
        ("task: {lables: {tumour: [1]}}", ("task.lables", "Did you mean 'task.labels'?")),
    ],
)
def test_a_wrong_key_or_value_names_the_file_and_the_key(content: str, parts: tuple[str, ...], reversible: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    one_line_error(reversible("train", "--cfg", tmp_path / "mine.yaml"), str(tmp_path / "mine.yaml"), *parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("trian",), ("trian", "Did you mean 'train'?")),
        (("memory", "--size", 128, 128), ("three positive numbers, such as 160 192 160, not 128 128",)),
        (("memory", "--network.channels", "[60,121]", "--measure", 0), ("These settings make no network", "must be even")),
        (("plan", "--vram", "0.001"), ("do not train this network on any volume",)),
        (("infer", "--input", "a", "--output", "b"), ("model",)),
        (("train", "--task.labels", "{tumour: [0]}"), ("task.labels needs values from 1 to 255",)),
        (("train", "--task.overlapping", "false", "--task.labels", "{tumour: [1]}", "--loss.name", "published_dice"), ("overlapping",)),
        (("train", "--task.channels", "[t1, t2]"), ("task.channels must name each of t1, t1ce, t2, flair once",)),
    ],
)
def test_a_slip_on_the_command_line_says_what_was_meant(words: tuple[object, ...], parts: tuple[str, ...], reversible: Command) -> None:
    one_line_error(reversible(*words), *parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--model.channels", "[4,7]"), ("model: every width must be even",)),
        (("--model.block", "bottleneck", "--model.chunks", "[3]"), ("model: ", "chunks=3 must divide the 2 groups")),
        (("--data.root", "nowhere"), ("nowhere", "no such folder")),
        (("--data.fold", 5), ("data.fold is 5",)),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(
    words: tuple[object, ...], parts: tuple[str, ...], cases: Path, reversible: Command, tmp_path: Path
) -> None:
    answer = reversible("train", "--data.root", cases, "--output", tmp_path / "run", *SMALL, *words)
    one_line_error(answer, *parts)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("verb", ["evaluate", "export", "growth", "infer"])
def test_a_model_folder_that_is_missing_is_named(verb: str, cases: Path, reversible: Command, tmp_path: Path) -> None:
    inputs = {
        "evaluate": ("--data", cases),
        "export": (),
        "growth": ("--before", cases / "p0", "--after", cases / "p1"),
        "infer": ("--input", cases),
    }[verb]
    answer = reversible(verb, "--model", tmp_path / "none", *inputs, "--output", tmp_path / "out")
    one_line_error(answer, str(tmp_path / "none"), "no such model folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda content: content[: len(content) // 2]),
        ("config.yaml", lambda content: content.replace(b"- 8\n", b"- 16\n")),
        ("config.yaml", lambda content: content.replace(b"spacing_mm", b"spacing")),
    ],
)
def test_a_damaged_bundle_is_named(
    name: str, change: Callable[[bytes], bytes], bundle: Path, cases: Path, reversible: Command, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    answer = reversible("infer", "--model", tmp_path / "bundle", "--input", cases, "--output", tmp_path / "out")
    one_line_error(answer, str(tmp_path / "bundle"))

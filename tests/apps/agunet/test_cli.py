"""Every mistake at the keyboard gives one line that says what to do, exit code 2, and no traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.apps.agunet.test_published import fixture, write
from tests.commands import Answer, one_line_error
from tests.shared.segmentation.bright import block, scan, write_volume

Command = Callable[..., Answer]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("fit: {epoch: 3}", ("fit.epoch", "Did you mean 'fit.epochs'?")),
        ("model: {name: agunett}", ("model.name", "agunett", "daunet")),
        ("model: {channels: [8, none]}", ("model.channels", "none")),
        ("window: {size: [96, 96]}", ("window.size",)),
        ("sampling: {flip_axes: [3]}", ("sampling.flip_axes",)),
        ("data: {validation: 1.5}", ("data.validation", "1.5")),
        ("loss: {name: focal}", ("loss.name", "focal")),
    ],
)
def test_a_wrong_setting_names_the_file_and_the_key(content: str, parts: tuple[str, ...], agunet: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    one_line_error(agunet("train", "--cfg", tmp_path / "mine.yaml"), str(tmp_path / "mine.yaml"), *parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--window.size", "[100,96,96]"), ("window.size is [100, 96, 96]", "multiple of 16")),
        (("--published.size", "[128,128,140]"), ("published.size is [128, 128, 140]", "multiple of 16")),
        (("--window.overlap", 1.0), ("window.overlap is 1.0", "below 1")),
        (("--task.overlapping", "true"), ("task.overlapping", "apps.reversible_unet")),
        (("--task.labels", "{a: [1], b: [1]}"), ("task.labels", "one value to two classes")),
        (("--task.channels", "[flair]"), ("task.channels", "t1ce")),
        (("--data.root", "nowhere"), ("nowhere: no such folder", "data")),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_made(
    words: tuple[object, ...], parts: tuple[str, ...], agunet: Command, tmp_path: Path
) -> None:
    one_line_error(agunet("train", "--output", tmp_path / "run", *words), *parts)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("train", "--fit.epoch", "3"), ("--fit.epoch", "Did you mean '--fit.epochs'?")),
        (("growt",), ("growt", "Did you mean 'growth'?")),
        (("infer", "--input", "a.nii", "--output", "out"), ("model",)),
        (("infer", "--model", "m", "--input", "a.nii", "--output", "out", "--threshold", "2"), ("threshold", "2")),
        (("data", "phantom", "--output", "heads", "--kind", "stroke"), ("kind", "stroke")),
        (("data", "fetch", "brats-2023-meningoma"), ("Did you mean 'brats-2023-meningioma'?",)),
    ],
)
def test_a_slip_on_the_command_line_suggests_what_was_meant(words: tuple[str, ...], parts: tuple[str, ...], agunet: Command) -> None:
    one_line_error(agunet(*words), *parts)


@pytest.mark.parametrize("verb", ["evaluate", "export", "infer", "growth"])
def test_a_model_folder_that_is_missing_is_named(verb: str, scans: Path, agunet: Command, tmp_path: Path) -> None:
    one_line_error(
        agunet(verb, "--model", tmp_path / "none", *_rest(verb, scans, tmp_path)), str(tmp_path / "none"), "no such model folder"
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda content: content[: len(content) // 2]),
        ("config.yaml", lambda content: content.replace(b"name: agunet", b"name: gunet")),
        ("config.yaml", lambda content: content.replace(b"attention_gates:", b"gates:")),
        ("config.yaml", lambda content: content.replace(b"deep_supervision: true", b"deep_supervision: false")),
        ("config.yaml", lambda content: content.replace(b"minimum_ml:", b"minimum:")),
    ],
)
def test_a_damaged_bundle_is_named(
    name: str, change: Callable[[bytes], bytes], bundle: Path, scans: Path, agunet: Command, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    changed = change(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    one_line_error(agunet("infer", "--model", tmp_path / "bundle", *_rest("infer", scans, tmp_path)), str(tmp_path / "bundle"))


def test_a_bundle_of_another_app_names_that_app(bundle: Path, scans: Path, agunet: Command, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    settings = yaml.safe_load((bundle / "config.yaml").read_text())
    (tmp_path / "bundle" / "config.yaml").write_text(yaml.safe_dump({**settings, "app": "pranet"}))
    one_line_error(agunet("infer", "--model", tmp_path / "bundle", *_rest("infer", scans, tmp_path)), "'pranet'", "apps.pranet")


def test_two_scans_that_cannot_be_compared_are_named(bundle: Path, agunet: Command, tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.nii.gz", scan(block((2, 2, 2), (5, 5, 5))).values)
    words = ("growth", "--model", bundle, "--output", tmp_path / "out", "--before", path)
    one_line_error(agunet(*words, "--after", tmp_path / "b.nii.gz"), str(tmp_path / "b.nii.gz"))
    one_line_error(agunet(*words, "--after", path, "--date_before", "yesterday"), "--date_before yesterday", "2024-03-31")
    wrong = ("--date_before", "2024-03-31", "--date_after", "2023-03-31")
    one_line_error(agunet(*words, "--after", path, *wrong), "2023-03-31")


def test_a_window_that_the_network_cannot_halve_is_not_exported(bundle: Path, agunet: Command, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    one_line_error(agunet("export", "--model", bundle, "--output", tmp_path / "a.onnx", "--size", "[9,8,8]"), "--size 9 8 8")


INI = "[Default]\noutput_spacing={spacing}\nbackground_cropping=True\nnew_axial_size={size}\nnormalization_method={method}\n"


def test_released_weights_are_converted_with_the_preparation_beside_them(agunet: Command, tmp_path: Path) -> None:
    (tmp_path / "AGUNet").mkdir()
    weights = write(tmp_path / "AGUNet" / "model.h5", fixture("agunet-plain")[1])
    answer = agunet("convert", "--published", weights, "--output", tmp_path / "assumed")
    assert answer.code == 0, answer.err
    assert "No pre_processing.ini was given" in answer.out
    (tmp_path / "AGUNet" / "pre_processing.ini").write_text(INI.format(spacing="0.9, 0.9, 1.2", size="32,48,64", method="zeromean"))
    answer = agunet("convert", "--published", weights, "--output", tmp_path / "own")
    assert answer.code == 0, answer.err
    assert "No pre_processing.ini" not in answer.out
    published = yaml.safe_load((tmp_path / "own" / "config.yaml").read_text())["model"]["published"]
    assert published["spacing_mm"] == [0.9, 0.9, 1.2]
    assert (published["size"], published["normalisation"], published["crop"]) == ([32, 48, 64], "zero_mean", True)
    assert "BSD-2-Clause" in (tmp_path / "own" / "provenance.json").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (INI.format(spacing="1,1", size="128,128,144", method="default"), "output_spacing is '1,1', expected 3 numbers"),
        (INI.format(spacing="1,1,1", size="256,192", method="default"), "slab model"),
        ("no ini at all", "is no pre_processing.ini"),
        (None, "is no pre_processing.ini"),
    ],
)
def test_a_preparation_that_cannot_be_used_is_named(text: str | None, says: str, agunet: Command, tmp_path: Path) -> None:
    weights, ini = write(tmp_path / "model.h5", fixture("agunet-plain")[1]), tmp_path / "mine.ini"
    if text is not None:
        ini.write_text(text)
    answer = agunet("convert", "--published", weights, "--preparation", ini, "--output", tmp_path / "bundle")
    one_line_error(answer, str(ini), says)
    assert not (tmp_path / "bundle").exists()


def _rest(verb: str, scans: Path, folder: Path) -> tuple[object, ...]:
    """The options besides --model."""
    one = scans / "p0" / "p0_t1ce.nii.gz"
    return {
        "evaluate": ("--data", scans, "--output", folder / "out"),
        "export": ("--output", folder / "out.onnx"),
        "infer": ("--input", one, "--output", folder / "out"),
        "growth": ("--before", one, "--after", one, "--output", folder / "out"),
    }[verb]

"""The verbs as a person calls them, where tests/contract does not go: ridge, ensembles, exports, routing, formats, and messages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from apps.brain_encoders import BrainEncoderPredictor
from apps.brain_encoders.ensemble import combine, layer_weights
from apps.brain_encoders.study import Study, content_key
from shared.imaging import read_image
from tests.commands import Answer, one_line_error

GABOR = ("--backbone.source", "gabor", "--backbone.part", "whole", "--backbone.size", 64, "--backbone.multiple", 8)


@pytest.fixture
def ridge(folder: Path, encoders: Callable[..., Answer]) -> Path:
    """A run of ridge regression, in the test's own folder."""
    words = ("--model.name", "ridge", "--ridge.pool", 4, "--data.cache", "features", "--data.validation", 0.2)
    answer = encoders("train", "--data.root", folder, *GABOR, *words, "--output", "ridge")
    assert answer.code == 0, answer.err
    assert "ridge: penalties" in answer.out
    return Path("ridge/model")


def test_ridge_is_fitted_scored_and_ensembled_with_another_bundle(
    ridge: Path, bundle: Path, folder: Path, study: Study, encoders: Callable[..., Answer]
) -> None:
    answer = encoders("evaluate", "--model", ridge, bundle, "--data", folder, "--output", "scores", "--permutations", 50)
    assert answer.code == 0, answer.err
    found = json.loads(Path("scores/metrics.json").read_text())
    assert list(found["models"]) == ["ridge", "bundle", "ensemble"]
    assert found["models"]["ridge"]["correlation"] > 0.1
    assert found["truth"]["mean_true_ceiling"] == pytest.approx(found["truth"]["mean_estimated_ceiling"], abs=0.15)
    left = nib.load("scores/scores_left.func.gii")
    assert [array.meta["Name"] for array in left.darrays] == ["correlation", "r2", "noise_ceiling", "noise_normalised"]
    assert len(Path("scores/units.csv").read_text().splitlines()) == 1 + study.units
    assert "<html" in Path("scores/map.html").read_text()


def test_an_ensemble_trusts_each_unit_to_the_model_that_validated_best() -> None:
    correlation = np.array([[0.5, 0.1], [0.1, 0.5]])
    weights = layer_weights(correlation)
    predictions = np.array([[[1.0, 1.0]], [[2.0, 2.0]]])
    assert combine(predictions, weights)[0] == pytest.approx([1, 2], abs=1e-6)
    assert layer_weights(correlation, sharpness=0) == pytest.approx(np.full((2, 2), 0.5))


def test_routing_is_in_the_pictures_own_geometry(predictor: BrainEncoderPredictor, study: Study) -> None:
    picture = np.ascontiguousarray(read_image(study.images[0])[:50, :30])
    routes = predictor.routes(picture)
    assert set(routes) == set(predictor.settings.queries) >= {"left V1", "right FFA"}
    assert all(values.shape == (50, 30) and values.max() == pytest.approx(1) for values in routes.values())


def test_formats_and_routing_are_written_on_request(bundle: Path, study: Study, encoders: Callable[..., Answer]) -> None:
    words = ("--input", study.images[0], "--output", "out", "--formats", "[cifti]", "--routing", "true")
    answer = encoders("infer", "--model", bundle, *words)
    assert answer.code == 0, answer.err
    (row,) = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert set(row["files"]) == {"responses", "regions", "cifti", "routing"}
    shown = np.asarray(nib.load(Path("out") / row["files"]["cifti"]).dataobj)[0]
    assert np.array_equal(shown, np.load(Path("out") / row["files"]["responses"]))


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_exports_answer_as_the_bundle(kind: str, bundle: Path, predictor: BrainEncoderPredictor, encoders: Callable[..., Answer]) -> None:
    pytest.importorskip("onnxruntime")
    name = {"onnx": "a.onnx", "torch": "a.pt2"}[kind]
    answer = encoders("export", "--model", bundle, "--output", name, "--format", kind)
    assert answer.code == 0, answer.err
    image = torch.randn(3, 3, 64, 64)
    if kind == "onnx":
        import onnxruntime

        found = onnxruntime.InferenceSession(name).run(None, {"image": image.numpy()})[0]
    else:
        found = torch.export.load(name).module()(image).detach().numpy()
    assert found == pytest.approx(predictor.responses(image), abs=1e-4)


def test_pictures_that_cannot_be_read_are_named_before_anything_is_fitted(
    folder: Path, tmp_path: Path, encoders: Callable[..., Answer]
) -> None:
    study = Path(shutil.copytree(folder, tmp_path / "study"))
    words = ("--model.name", "ridge", "--data.cache", "features", "--data.validation", 0.2)
    (study / "images/00046.png").write_text("words")
    answer = encoders("train", "--data.root", study, *GABOR, *words, "--output", "run")
    assert answer.code == 0, answer.err
    assert "1 of 8 test pictures cannot be read, and evaluate will leave them out" in answer.out
    fitted = BrainEncoderPredictor.load("run/model").brain.fitted
    assert fitted == {content_key(study / f"images/{number:05d}.png") for number in range(40)}
    for number in (3, 4):
        (study / f"images/{number:05d}.png").write_bytes((folder / "images/00000.png").read_bytes()[:300])
    answer = encoders("train", "--data.root", study, *GABOR, *words, "--output", "other")
    one_line_error(answer, "0000", "2 pictures are like that", "leave their presentations out")
    one_line_error(encoders("compare", "--data.root", study, "--spaces", "[light]"), "3 pictures are like that")


def test_what_cannot_be_had_is_said_in_one_line(bundle: Path, folder: Path, tmp_path: Path, encoders: Callable[..., Answer]) -> None:
    one_line_error(encoders("train", "--data.root", tmp_path / "nowhere", "--output", "a"), "nowhere", "no such folder", "data list")
    one_line_error(encoders("train", "--data.root", folder, *GABOR, "--output", "b", "--data.validation", 0), "data.validation")
    words = ("--backbone.name", "no_such_net", "--backbone.source", "timm")
    one_line_error(encoders("train", "--data.root", folder, *words, "--output", "c"), "'no_such_net' cannot be made")
    one_line_error(encoders("export", "--model", bundle, "--output", "a.pt"), "name it a.onnx")
    (tmp_path / "other").mkdir()
    encoders("data", "phantom", "--output", "volume", "--space", "volume", "--count", 12, "--test", 3, "--size", 32)
    one_line_error(encoders("evaluate", "--model", bundle, "--data", "volume"), "predicts 1,065 units", "Is it of another subject?")


def test_a_brain_in_a_volume_comes_back_in_its_own_affine(encoders: Callable[..., Answer]) -> None:
    encoders("data", "phantom", "--output", "volume", "--space", "volume", "--count", 20, "--test", 3, "--size", 64)
    words = ("--model.name", "ridge", "--data.cache", "null", "--data.validation", 0.3, "--output", "run")
    answer = encoders("train", "--data.root", "volume", *GABOR, *words)
    assert answer.code == 0, answer.err
    prediction = BrainEncoderPredictor.load("run/model").predict("volume/images/00020.png")
    files = prediction.save(Path("out"), "a")
    image = nib.load(Path("out") / files["nifti"])
    with np.load("volume/space.npz") as space:
        assert np.array_equal(image.affine, space["affine"])
        assert np.array_equal(np.isfinite(np.asarray(image.dataobj)), space["mask"] > 0)
    assert prediction.preview().startswith(b"\x89PNG")

"""An exported file reads bags of any size, and answers as the bundle does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.acmil.config import ModelConfig
from apps.acmil.inference import ACMILPredictor, Settings
from tests.commands import Answer, one_line_error

Command = Callable[..., Answer]


def bags(width: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((count, width)).astype(np.float32) for count in (2, 33, 1500)]


def test_onnx_answers_as_the_bundle_for_bags_of_any_size(predictor: ACMILPredictor, bundle: Path, acmil: Command, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    answer = acmil("export", "--model", bundle, "--output", tmp_path / "model.onnx")
    assert answer.code == 0, answer.err
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for features in bags(predictor.settings.features):
        probability, attention = session.run(None, {"features": features})
        expected, _, weights = predictor.answer(features)
        np.testing.assert_allclose(probability, expected, atol=1e-5)
        np.testing.assert_allclose(attention, weights, atol=1e-6)
    note = json.loads(session.get_modelmeta().custom_metadata_map["fovea"])
    assert note["settings"]["classes"] == ["negative", "positive"]


def test_torch_export_answers_as_the_bundle(tmp_path: Path, acmil: Command) -> None:
    torch.manual_seed(0)
    settings = Settings(model=ModelConfig(name="acmil_mha", channels=16, branches=2), classes=("a", "b", "c"), features=12)
    predictor = ACMILPredictor(settings.build(), settings)
    predictor.save_bundle(tmp_path / "bundle")
    answer = acmil("export", "--model", tmp_path / "bundle", "--output", tmp_path / "model.pt2", "--format", "torch")
    assert answer.code == 0, answer.err
    program = torch.export.load(tmp_path / "model.pt2").module()
    for features in bags(12):
        np.testing.assert_allclose(program(torch.from_numpy(features))[0].numpy(), predictor.answer(features)[0], atol=1e-5)


def test_what_cannot_be_exported_says_so_and_leaves_no_file(tmp_path: Path, acmil: Command, bundle: Path) -> None:
    one_line_error(acmil("export", "--model", bundle, "--output", tmp_path / "model.pt2"), "name it", "model.onnx")
    settings = Settings(model=ModelConfig(name="transmil", channels=16), classes=("a", "b"), features=12)
    ACMILPredictor(settings.build(), settings).save_bundle(tmp_path / "bundle")
    answer = acmil("export", "--model", tmp_path / "bundle", "--output", tmp_path / "model.onnx")
    one_line_error(answer, "model.onnx", "cannot be exported for any number of tiles")
    assert not (tmp_path / "model.onnx").exists()

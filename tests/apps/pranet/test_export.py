"""An exported model answers as the bundle does, in another program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.pranet.inference import PraNetPredictor
from apps.pranet.preprocessing import to_input
from tests.commands import Answer, one_line_error

Command = Callable[..., Answer]


def expected(predictor: PraNetPredictor, batch: torch.Tensor) -> np.ndarray:
    return torch.sigmoid(predictor.logits(batch)[0]).numpy()


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.stack([to_input(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8), size=64) for _ in range(3)])


def test_onnx_runtime_gives_the_same_probabilities(
    predictor: PraNetPredictor, bundle: Path, batch: torch.Tensor, pranet: Command, tmp_path: Path
) -> None:
    """Tolerance 1e-4: another library sums in another order."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    answer = pranet("export", "--model", bundle, "--output", tmp_path / "a.onnx")
    assert answer.code == 0, answer.err
    assert "largest difference" in answer.out
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):  # the number of frames is free
        (found,) = session.run(None, {"image": batch[:count].numpy()})
        assert np.abs(found - expected(predictor, batch[:count])).max() < 1e-4
    note = json.loads(session.get_modelmeta().custom_metadata_map["fovea"])
    assert note["settings"] == predictor.settings.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_torch_export_gives_the_same_probabilities_at_another_size(
    predictor: PraNetPredictor, bundle: Path, batch: torch.Tensor, pranet: Command, tmp_path: Path
) -> None:
    words = ("export", "--model", bundle, "--output", tmp_path / "a.pt2", "--format", "torch", "--size", 96, "--batch_size", 3)
    answer = pranet(*words)
    assert answer.code == 0, answer.err
    larger = torch.nn.functional.interpolate(batch, size=96)
    found = torch.export.load(tmp_path / "a.pt2").module()(larger).detach().numpy()
    assert np.abs(found - expected(predictor, larger)).max() < 1e-4


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--output", "a.pt"), ("a.pt", ".onnx")),
        (("--output", "a.onnx", "--format", "torch"), ("a.onnx", ".pt2")),
        (("--output", "a.onnx", "--size", "100"), ("100", "multiple of 32")),
        (("--output", "a.onnx", "--format", "tflite"), ("format", "onnx")),
    ],
)
def test_what_cannot_be_written_is_said_before_any_work(
    words: tuple[str, ...], parts: tuple[str, ...], bundle: Path, pranet: Command
) -> None:
    one_line_error(pranet("export", "--model", bundle, *words), *parts)

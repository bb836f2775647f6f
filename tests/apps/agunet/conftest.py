"""Scans with bright blocks, and bundles of small untrained networks: enough to see everything but accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apps.agunet.config import ModelConfig
from apps.agunet.inference import AGUNetPredictor, build
from shared.config import plain
from shared.segmentation.config import PreprocessingConfig, TaskConfig, WindowConfig
from shared.segmentation.labels import Labels
from shared.segmentation.predictor import SegmentationSettings
from tests.commands import Answer, run_here
from tests.shared.segmentation.bright import block, write_case

SMALL = ("--model.channels", "[4,8]", "--model.momentum", 0.3, "--window.size", "[8,8,8]", "--preprocessing.normalisation", "range")
SMALL += ("--preprocessing.spacing_mm", "null", "--preprocessing.crop", "false")


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled volumes of 14 x 12 x 10 voxels, a folder each; not to be changed."""
    folder = tmp_path_factory.mktemp("agunet") / "scans"
    for number in range(6):
        write_case(folder, f"p{number}", block((2 + number % 3, 3, 2), (7 + number % 3, 8, 7)))
    return folder


def predictor_of(name: str, **changes: object) -> AGUNetPredictor:
    """Of random weights."""
    torch.manual_seed(0)
    model = ModelConfig(name=name, channels=(4, 8, 8), **changes)
    settings = SegmentationSettings(
        preprocessing=PreprocessingConfig(spacing_mm=None, crop=False, normalisation="range"), window=WindowConfig(size=(8, 8, 8))
    )
    network = build(model, Labels(TaskConfig()))
    return AGUNetPredictor(
        network, model={"network": plain(model), "published": None}, settings=settings, facts={"data": "none: untrained"}
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an AGUNet; not to be changed."""
    return predictor_of("agunet").save_bundle(tmp_path_factory.mktemp("agunet") / "bundle")


@pytest.fixture
def agunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """``agunet("infer", "--model", ...)``: the command line, in this process and the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_here("agunet", *words)

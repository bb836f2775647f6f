"""Phantom frames, and a bundle of a small untrained PraNet: enough to see everything but accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apps.pranet.config import ModelConfig
from apps.pranet.inference import PraNetPredictor, Settings
from shared.phantoms.colonoscopy import write_colonoscopy
from tests.commands import Answer, run_here

BACKBONE = "test_resnet"
"""timm's smallest with the strides that PraNet needs."""


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames of 60 x 76 pixels with masks, some without a polyp; not to be changed."""
    folder = tmp_path_factory.mktemp("pranet") / "frames"
    write_colonoscopy(folder, count=10, seed=5, height=60, width=76, empty_fraction=0.3)
    return folder


@pytest.fixture(scope="session")
def small_settings() -> Settings:
    return Settings(model=ModelConfig(backbone=BACKBONE, channels=8), size=64)


@pytest.fixture(scope="session")
def predictor(small_settings: Settings) -> PraNetPredictor:
    torch.manual_seed(0)
    return PraNetPredictor(small_settings.build(), small_settings, facts={"data": "nothing: untrained"})


@pytest.fixture(scope="session")
def bundle(predictor: PraNetPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return predictor.save_bundle(tmp_path_factory.mktemp("pranet") / "bundle")


@pytest.fixture
def pranet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """``pranet("infer", "--model", ...)``: the command line, in this process and the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_here("pranet", *words)

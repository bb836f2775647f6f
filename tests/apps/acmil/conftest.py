"""Bags with known witnesses, and a bundle of a small untrained ACMIL: enough to see everything but accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apps.acmil.config import ModelConfig
from apps.acmil.config_pipeline import EncoderConfig, TilingConfig
from apps.acmil.inference import ACMILPredictor, Settings
from apps.acmil.texture import TEXTURE_FEATURES
from apps.acmil.witnesses import ENCODER, WitnessSettings, write_witness_bags
from tests.commands import Answer, run_here

FEATURES = WitnessSettings().features


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labels.csv and 24 bags of twelve patients; not to be changed."""
    folder = tmp_path_factory.mktemp("acmil") / "witnesses"
    write_witness_bags(folder, count=24, seed=3)
    return folder


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(model=ModelConfig(channels=16, branches=3), classes=("negative", "positive"), features=FEATURES, encoder=ENCODER)


@pytest.fixture(scope="session")
def predictor(settings: Settings) -> ACMILPredictor:
    torch.manual_seed(0)
    return ACMILPredictor(settings.build(), settings, facts={"data": "nothing: untrained"})


@pytest.fixture(scope="session")
def bundle(predictor: ACMILPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return predictor.save_bundle(tmp_path_factory.mktemp("acmil") / "bundle")


@pytest.fixture(scope="session")
def slide_predictor() -> ACMILPredictor:
    """Of slides: it cuts them and makes their features by itself."""
    torch.manual_seed(0)
    known = {"encoder": "texture", "tiling": TilingConfig(), "encoding": EncoderConfig()}
    settings = Settings(model=ModelConfig(channels=16, branches=3), classes=("normal", "tumour"), features=TEXTURE_FEATURES, **known)
    return ACMILPredictor(settings.build(), settings, top=4)


@pytest.fixture
def acmil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """``acmil("infer", "--model", ...)``: the command line, in this process and the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_here("acmil", *words)

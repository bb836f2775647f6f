"""A small phantom brain, and an untrained encoder of it: enough to see everything but accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.brain_encoders.config import BackboneConfig, ModelConfig
from apps.brain_encoders.inference import Brain, BrainEncoderPredictor
from apps.brain_encoders.settings import Settings, query_membership
from apps.brain_encoders.study import Study, read_own, write_phantom
from shared.phantoms.brain import BrainPhantom, brain_phantom
from tests.commands import Answer, run_here

GABOR = BackboneConfig(source="gabor", part="whole", size=64, multiple=8)


@pytest.fixture(scope="session")
def phantom() -> BrainPhantom:
    return brain_phantom(3, train=40, test=8, side=64)


@pytest.fixture(scope="session")
def folder(phantom: BrainPhantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study; not to be changed."""
    path = tmp_path_factory.mktemp("brain") / "study"
    write_phantom(path, phantom)
    return path


@pytest.fixture(scope="session")
def study(folder: Path) -> Study:
    return read_own(folder)


@pytest.fixture(scope="session")
def predictor(study: Study) -> BrainEncoderPredictor:
    torch.manual_seed(0)
    model = ModelConfig(channels=16, heads=2, inner_channels=16)
    queries, membership = query_membership(model, study.space, study.regions)
    settings = Settings(model=model, backbone=GABOR, features=(16, 8, 8), hemispheres=study.space.hemispheres, queries=queries)
    brain = Brain(study.space, study.regions, np.linspace(0, 1, study.units))
    return BrainEncoderPredictor(settings.network(membership, weights=True), settings, brain, facts={"data": "nothing: untrained"})


@pytest.fixture(scope="session")
def bundle(predictor: BrainEncoderPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return predictor.save_bundle(tmp_path_factory.mktemp("brain") / "bundle")


@pytest.fixture
def encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """``encoders("infer", "--model", ...)``: the command line, in this process and the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_here("brain_encoders", *words)

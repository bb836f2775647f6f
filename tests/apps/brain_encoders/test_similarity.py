"""Measured dissimilarities beside simple models, on RDMs whose source is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.brain_encoders.similarity import picture_models
from tests.commands import Answer, one_line_error

WORDS = ("--rdms", "rdms.npz", "--stimuli", "pictures", "--permutations", 200)


@pytest.fixture
def study(encoders: Callable[..., Answer]) -> np.ndarray:
    """12 pictures of noise, half reddish and half bluish; three subjects whose RDMs are an animacy that no pixel shows, and noise."""
    rng = np.random.default_rng(0)
    Path("pictures").mkdir()
    for number in range(12):
        picture = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        picture[..., 0 if number < 6 else 2] += 120
        Image.fromarray(picture).save(f"pictures/{number:02d}.png")
    alive = [number % 2 == 0 for number in range(12)]
    Path("labels.json").write_text(json.dumps([{"file": f"{number:02d}.png", "alive": living} for number, living in enumerate(alive)]))
    truth = np.not_equal.outer(alive, alive).astype(float)
    noise = rng.normal(0, 0.3, (3, 12, 12))
    rdms = truth + noise + noise.transpose(0, 2, 1)
    for one in rdms:
        np.fill_diagonal(one, 0)
    np.savez("rdms.npz", rdms=rdms)
    return rdms


def test_the_model_that_made_the_dissimilarities_wins(study: np.ndarray, encoders: Callable[..., Answer]) -> None:
    answer = encoders("similarity", *WORDS, "--labels", "labels.json", "--output", "out")
    assert answer.code == 0, answer.err
    found = json.loads(Path("out/metrics.json").read_text())
    assert set(found["models"]) == {"pixels", "colours", "contours", "alive"}
    assert max(found["models"], key=lambda name: found["models"][name]["mean"]) == "alive"
    assert found["models"]["alive"]["p"] < 0.01
    assert found["models"]["alive"]["mean"] > 0.5
    assert abs(found["models"]["pixels"]["mean"]) < 0.3
    assert found["subjects"] == 3
    assert {"agreement.png", "report.html"} <= {path.name for path in Path("out").iterdir()}


def test_sessions_are_averaged(study: np.ndarray, encoders: Callable[..., Answer]) -> None:
    assert encoders("similarity", *WORDS, "--output", "mean").code == 0
    np.savez("rdms.npz", rdms=np.stack([study - 0.1, study + 0.1], axis=1))
    assert encoders("similarity", *WORDS, "--output", "sessions").code == 0
    first, second = (json.loads(Path(name, "metrics.json").read_text())["models"]["colours"]["mean"] for name in ("mean", "sessions"))
    assert first == pytest.approx(second, abs=1e-6)  # ranks, of numbers that differ by rounding


def test_one_subject_has_no_noise_ceiling(study: np.ndarray, encoders: Callable[..., Answer]) -> None:
    np.savez("rdms.npz", rdm=study[0])
    answer = encoders("similarity", *WORDS, "--output", "out")
    assert answer.code == 0, answer.err
    assert "noise ceiling: needs two subjects" in answer.out
    assert json.loads(Path("out/metrics.json").read_text())["ceiling"] is None


def test_colours_tell_reddish_from_bluish_pictures(study: np.ndarray) -> None:
    colours = picture_models(sorted(Path("pictures").iterdir()))["colours"]
    within = np.equal.outer(np.arange(12) < 6, np.arange(12) < 6) & ~np.eye(12, dtype=bool)
    assert colours[within].max() < colours[~within & ~np.eye(12, dtype=bool)].min()


def test_what_does_not_belong_together_is_said_in_one_line(study: np.ndarray, encoders: Callable[..., Answer]) -> None:
    Path("few.json").write_text(json.dumps([{"alive": True}]))
    one_line_error(encoders("similarity", *WORDS, "--labels", "few.json"), "few.json: labels of 1 pictures; 12 are needed")
    Path("few.json").write_text("words")
    one_line_error(encoders("similarity", *WORDS, "--labels", "few.json"), "few.json: cannot be read as a JSON list")
    Path("pictures/00.png").unlink()
    one_line_error(encoders("similarity", *WORDS), "pictures: 11 pictures, but rdms.npz: RDMs of 12")
    np.savez("rdms.npz", rdms=np.full((12, 12), np.nan))
    one_line_error(encoders("similarity", *WORDS), "rdms.npz: RDMs [subjects, n, n] of at least three stimuli, without NaN")
    np.save("rdms.npy", study)
    one_line_error(encoders("similarity", *WORDS, "--rdms", "rdms.npy"), "rdms.npy: cannot be read as an .npz with one array of RDMs")
    Path("rdms.npz").write_text("words")
    one_line_error(encoders("similarity", *WORDS), "rdms.npz: cannot be read as an .npz")

"""Encoders of several subjects, each on every subject: on common units, on images that are new to all, or one clear message."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.brain_encoders.generalise import common_units
from apps.brain_encoders.inference import Brain, BrainEncoderPredictor
from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace
from apps.brain_encoders.study import Study, content_key, keep_units, read_own, write_phantom
from shared.errors import UserError
from shared.imaging import read_image
from shared.metrics.encoding import pearson
from shared.phantoms.brain import brain_phantom
from tests.commands import Answer, one_line_error


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second subject, who saw other pictures."""
    path = tmp_path_factory.mktemp("brain") / "other"
    write_phantom(path, brain_phantom(5, train=12, test=4, side=64))
    return path


@pytest.fixture(scope="module")
def narrow(predictor: BrainEncoderPredictor, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder of that subject, of the right hemisphere and every second unit of the left, in which V1 was not found."""
    study = read_own(other)
    left, _ = study.space.hemispheres
    kept = (np.arange(study.units) % 2 == 0) | (np.arange(study.units) >= left)
    part = keep_units(study, kept)
    state = {name: value[kept] if len(value) == study.units else value for name, value in predictor.network.readout.state_dict().items()}
    state["readout.membership"] = predictor.network.readout.state_dict()["readout.membership"][:, torch.from_numpy(kept)]
    settings = replace(predictor.settings, hemispheres=part.space.hemispheres)
    network = settings.network(state["readout.membership"], weights=True)
    network.readout.load_state_dict(state)
    regions = {name: mask for name, mask in part.regions.items() if name != "V1"}
    fitted = [content_key(part.images[index]) for index in part.part(test=False)]
    encoder = BrainEncoderPredictor(network, settings, Brain(part.space, regions, fitted=fitted))
    return encoder.save_bundle(tmp_path_factory.mktemp("brain") / "narrow")


def test_every_encoder_is_scored_on_every_subject_on_the_units_that_both_have(
    bundle: Path, narrow: Path, folder: Path, other: Path, study: Study, encoders: Callable[..., Answer]
) -> None:
    answer = encoders("generalise", "--model", bundle, narrow, "--data", folder, other, "--output", "out")
    assert answer.code == 0, answer.err
    found = json.loads(Path("out/metrics.json").read_text())
    encoder = BrainEncoderPredictor.load(narrow)
    assert found["subjects"] == ["study", "other"]
    assert found["images"] == {"study": 8, "other": 4}
    assert found["common_units"] == sum(encoder.brain.space.hemispheres) < study.units

    place = {unit: number for number, unit in enumerate(study.space.names())}
    units = [place[unit] for unit in encoder.brain.space.names()]
    test = study.part(test=True)
    predicted = np.concatenate([encoder.responses(encoder.to_input(read_image(study.images[index]))[None]) for index in test])
    expected = pearson(study.mean_responses(test)[:, units], predicted)
    assert found["correlation"][1][0] == pytest.approx(expected.mean(), abs=1e-5), "fitted on other, tested on study"
    faces = study.regions["FFA"][units]
    with open("out/generalisation.csv", newline="") as file:
        rows = {(row["fitted_on"], row["tested_on"], row["region"]): row for row in csv.DictReader(file)}
    assert float(rows["other", "study", "FFA"]["correlation"]) == pytest.approx(expected[faces].mean(), abs=1e-5)
    assert int(rows["other", "study", "FFA"]["units"]) == faces.sum()
    assert Path("out/generalisation.png").read_bytes().startswith(b"\x89PNG")
    assert Path("out/report.html").is_file()


def test_images_that_another_encoder_was_fitted_to_are_refused(
    bundle: Path, narrow: Path, folder: Path, other: Path, tmp_path: Path, encoders: Callable[..., Answer]
) -> None:
    seen = Path(shutil.copytree(other, tmp_path / "seen"))
    shutil.copy(folder / "images/00000.png", seen / "images/00013.png")
    words = ("generalise", "--model", bundle, narrow, "--data", folder, seen, "--output", "out")
    one_line_error(encoders(*words), f"{bundle} on {seen}", "'00013.png'", "allow_repeats")
    assert encoders(*words, "--allow_repeats", "true").code == 0
    shutil.copy(other / "images/00002.png", tmp_path / "fitted.png")
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    shutil.copy(tmp_path / "fitted.png", moved / "images/00047.png")
    answer = encoders("evaluate", "--model", narrow, "--data", moved, "--output", "scores")
    one_line_error(answer, f"{narrow} on {moved}", "'00047.png'", "allow_repeats")


def test_what_does_not_belong_together_is_said_in_one_line(
    bundle: Path, narrow: Path, folder: Path, other: Path, encoders: Callable[..., Answer]
) -> None:
    one_line_error(encoders("generalise", "--model", bundle, "--data", folder), "1 bundles", "give two or more")
    one_line_error(encoders("generalise", "--model", bundle, narrow, "--data", other, folder), "in the order of their bundles")


def test_units_that_do_not_correspond_are_refused_by_name() -> None:
    surface = SurfaceSpace(mesh="fsaverage5", left=np.array([3, 4, 8]), right=np.array([1]))
    shifted = SurfaceSpace(mesh="fsaverage5", left=np.array([4, 3, 5]), right=np.array([2]))
    assert [units.tolist() for units in common_units({"a": surface, "b": shifted})] == [[0, 1], [1, 0]]
    mask = np.zeros((2, 2, 2), dtype=bool)
    mask[0, 0] = True
    volume = VolumeSpace(mask=mask, affine=np.eye(4))
    assert [units.tolist() for units in common_units({"a": volume, "b": replace(volume, mask=mask | True)})] == [[0, 1], [0, 1]]
    for one, message in (
        (replace(surface, mesh="fsaverage"), "units on fsaverage5 and on fsaverage do not correspond"),
        (volume, "units on fsaverage5 and on a volume do not correspond"),
        (TableSpace(units=("V1",)), "the units of b have names but no place"),
        (replace(surface, left=np.array([9]), right=np.array([9])), "no unit in common"),
    ):
        with pytest.raises(UserError, match=rf"a and b.*{message}|b and a.*{message}"):
            common_units({"a": surface, "b": one})
    with pytest.raises(UserError, match="different grids"):
        common_units({"a": volume, "b": replace(volume, affine=np.diag([2.0, 1, 1, 1]))})

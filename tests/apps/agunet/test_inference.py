"""The published preparation inside our predictor, what gates look at, and networks whose parts are switched off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from apps.agunet.config import ModelConfig
from apps.agunet.inference import AGUNetPredictor, PublishedPreparation, build
from apps.agunet.prepost import Preparation
from shared.imaging.volumes import Volume
from shared.segmentation.config import TaskConfig
from shared.segmentation.labels import Labels
from tests.apps.agunet.conftest import predictor_of
from tests.shared.imaging.volumes.made import orientations
from tests.shared.segmentation.bright import block, scan

OUTSIDE = (1.0, 0.0)


@pytest.mark.parametrize("affine", [affine for _, affine in orientations()][::5])
def test_the_published_way_there_and_back_keeps_a_lesion_in_its_place(affine: np.ndarray) -> None:
    """Squeezed into 32 x 32 x 48, so that it loses its outline a little, but is neither moved nor mirrored."""
    head, lesion = block((2, 2, 2), (28, 22, 12), (30, 24, 14)), block((6, 12, 3), (16, 20, 8), (30, 24, 14))
    volume = Volume(values=(5 + 60 * head + 40 * lesion).astype(np.float32), affine=affine)
    ready = PublishedPreparation(Preparation(size=(32, 32, 48)))(volume)
    assert ready.image.shape == (1, 32, 32, 48)
    assert (ready.image.min(), ready.image.max()) == (pytest.approx(0, abs=0.3), pytest.approx(1, abs=1e-6))
    placed = ready.place(volume.with_values(lesion.astype(np.uint8)))
    back = ready.restore(np.stack([placed == 0, placed == 1]).astype(np.float32), OUTSIDE)
    found = back[1] > 0.5
    assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.8
    apart = (np.argwhere(found).mean(axis=0) - np.argwhere(lesion).mean(axis=0)) * volume.spacing_mm
    assert np.abs(apart).max() < 1.0  # mm, the spacing of the network's voxels; its axes are 15 to 42 mm long
    assert back[0][~head].mean() > 0.95, "where the network has not looked is background"


def test_a_network_without_anything_to_say_is_unsure_within_and_sure_outside() -> None:
    """The released code gives the background a probability of 0 outside; here it is 1, so that probabilities add up to 1."""
    small = predictor_of("agunet")
    published = {"size": (16, 16, 16), "spacing_mm": None, "percentiles": (0.0, 100.0), "normalisation": "range", "crop": True}
    network = build(ModelConfig(channels=(4, 8, 8)), small.classes)
    for head in network.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    model = {**small.model, "published": {**published, "antialias": True}}
    settings = small.settings
    predictor = AGUNetPredictor(network, model=model, settings=settings)
    head = block((6, 6, 6), (18, 18, 18), (24, 24, 24))
    prediction = predictor.predict(Volume(values=100 * head.astype(np.float32) + 1, affine=np.eye(4)))
    assert prediction.probability[0][8:16, 8:16, 8:16] == pytest.approx(0.5, abs=0.01)
    assert prediction.uncertainty[12, 12, 12] > 0.99
    assert prediction.probability[0][0].max() == 0
    assert prediction.uncertainty[0].max() < 1e-3


def test_gates_are_looked_at_on_the_volumes_own_voxels(tmp_path: Path) -> None:
    volume = scan(block((3, 3, 3), (8, 8, 8)))
    predictor = AGUNetPredictor.load(predictor_of("agunet").save_bundle(tmp_path / "model"), device="cpu")
    gates = predictor.attention(volume)
    assert list(gates) == ["1/1", "1/2"]
    for gate in gates.values():
        assert gate.shape == volume.shape
        assert 0 < gate.min() <= gate.max() < 1
    assert gates["1/1"].std() > 0


@pytest.mark.parametrize("predictor", [predictor_of("daunet"), predictor_of("unet"), predictor_of("agunet", attention_gates=False)])
def test_a_network_without_gates_shows_none(predictor: AGUNetPredictor) -> None:
    assert predictor.attention(scan(block((3, 3, 3), (8, 8, 8)))) == {}


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("agunet", "attention_gates"),
        ("agunet", "multi_scale_input"),
        ("agunet", "deep_supervision"),
        ("daunet", "dual_attention"),
        ("daunet", "guidance"),
        ("daunet", "multi_scale_input"),
        ("daunet", "deep_supervision"),
    ],
)
def test_each_part_of_the_paper_can_be_switched_off(name: str, switch: str) -> None:
    """What is left has fewer weights, the same answer's shape, and survives a bundle."""
    labels = Labels(TaskConfig())
    whole, less = (build(ModelConfig(name=name, channels=(4, 8, 8), **{switch: on}), labels) for on in (True, False))
    assert sum(p.numel() for p in less.parameters()) < sum(p.numel() for p in whole.parameters())
    image = torch.randn(1, 1, 8, 8, 8)
    assert less.eval()(image).shape == whole.eval()(image).shape == (1, 2, 8, 8, 8)
    assert len(less.side_outputs(image)) == (1 if switch == "deep_supervision" else 2)


@pytest.mark.parametrize("name", ["daunet", "unet"])
def test_the_other_networks_come_back_from_their_bundles(name: str, tmp_path: Path) -> None:
    first = predictor_of(name)
    again = AGUNetPredictor.load(first.save_bundle(tmp_path / "model"), device="cpu", precision="fp32")
    volume = scan(block((3, 3, 3), (8, 8, 8)))
    np.testing.assert_array_equal(again.predict(volume).probability, first.predict(volume).probability)
    assert again.name == first.name
    assert f"# {first.name}: tumour" in again.card

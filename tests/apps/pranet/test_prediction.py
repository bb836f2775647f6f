"""What is measured on a mask is right where the answer is known by hand, and every file written says the same thing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from apps.pranet.inference import PraNetPredictor, frame_confidence
from apps.pranet.prediction import PolypPrediction
from shared.errors import UserError
from shared.imaging import read_image


def prediction(probability: np.ndarray, *, confidence: float = 0.9, detection_threshold: float | None = None) -> PolypPrediction:
    return PolypPrediction(
        image=np.full((*probability.shape, 3), 90, np.uint8),
        probability=probability.astype(np.float32),
        confidence=confidence,
        threshold=0.5,
        detection_threshold=detection_threshold,
    )


@pytest.fixture
def two_polyps() -> PolypPrediction:
    """40 x 50 pixels; a large one of 10 x 20 at probability 0.8, and a small one of 3 x 3 at 0.6."""
    probability = np.full((40, 50), 0.1)
    probability[5:15, 20:40] = 0.8
    probability[30:33, 2:5] = 0.6
    return prediction(probability)


def test_the_measurements_of_a_known_mask(two_polyps: PolypPrediction) -> None:
    assert two_polyps.summary() == {
        "polyp": True,
        "confidence": 0.9,
        "area_fraction": pytest.approx(209 / 2000),
        "components": 2,
        "largest_area_fraction": pytest.approx(200 / 2000),
        "largest_centroid_px": [29.5, 9.5],
        "largest_box_px": [20, 5, 20, 10],
        "largest_equivalent_diameter_px": pytest.approx(2 * np.sqrt(200 / np.pi), abs=0.005),
        "mean_probability": pytest.approx((200 * 0.8 + 9 * 0.6) / 209, abs=5e-5),
        "mean_uncertainty": None,
        "width_px": 50,
        "height_px": 40,
    }


def test_pixels_that_touch_at_a_corner_are_one_polyp() -> None:
    assert prediction(np.eye(8)).summary()["components"] == 1


def test_a_frame_without_a_polyp_is_answered_as_such() -> None:
    summary = prediction(np.full((20, 30), 0.2), confidence=0.2).summary()
    assert summary["polyp"] is False
    assert summary["area_fraction"] == 0
    assert summary["components"] == 0
    assert all(summary[name] is None for name in summary if name.startswith("largest_") and name != "largest_area_fraction")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_below_the_detection_threshold_nothing_is_marked(two_polyps: PolypPrediction) -> None:
    assert not replace(two_polyps, detection_threshold=0.95).mask.any()
    assert replace(two_polyps, detection_threshold=0.9).mask.sum() == 209


def test_the_run_lengths_decode_to_the_mask(two_polyps: PolypPrediction) -> None:
    contours = json.loads(json.dumps(two_polyps.contours()))
    rle = {"size": contours["rle"]["size"], "counts": contours["rle"]["counts"].encode()}
    assert np.array_equal(coco.decode(rle).astype(bool), two_polyps.mask)
    assert contours["size"] == [40, 50]


def test_the_polygons_outline_each_polyp(two_polyps: PolypPrediction) -> None:
    drawn = np.zeros((40, 50), np.uint8)
    polygons = two_polyps.contours()["polygons"]
    assert len(polygons) == 2
    cv2.fillPoly(drawn, [np.array(polygon, np.int32).reshape(-1, 2) for polygon in polygons], 1)
    assert np.array_equal(drawn.astype(bool), two_polyps.mask)


def test_an_empty_frame_has_no_polygons_and_an_empty_run_length() -> None:
    contours = prediction(np.zeros((20, 30))).contours()
    assert contours["polygons"] == []
    assert not coco.decode({**contours["rle"], "counts": contours["rle"]["counts"].encode()}).any()


def test_every_file_has_the_size_of_the_frame_and_says_the_same(two_polyps: PolypPrediction, tmp_path: Path) -> None:
    files = two_polyps.save(tmp_path, "case")
    assert {kind: name for kind, name in files.items() if not (tmp_path / name).is_file()} == {}
    mask = np.asarray(Image.open(tmp_path / files["mask"]))
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask == 255, two_polyps.mask)
    probability = np.asarray(Image.open(tmp_path / files["probability"])).astype(float) / 65535
    assert np.abs(probability - two_polyps.probability).max() <= 0.5 / 65535 + 1e-7  # rounding to 16 bits, and float32
    assert Image.open(tmp_path / files["overlay"]).size == (50, 40)
    assert json.loads((tmp_path / files["contours"]).read_text()) == two_polyps.contours()
    assert two_polyps.encode("image/png") == (tmp_path / files["mask"]).read_bytes()


def test_only_what_can_be_made_is_promised(two_polyps: PolypPrediction) -> None:
    with pytest.raises(UserError, match="image/png"):
        two_polyps.encode("image/tiff")


def test_flips_give_an_uncertainty_and_their_mean(bundle: Path, frames: Path, tmp_path: Path) -> None:
    image = read_image(next((frames / "images").iterdir()))
    plain = PraNetPredictor.load(bundle, device="cpu").predict(image)
    averaged = PraNetPredictor.load(bundle, device="cpu", tta=True).predict(image)
    assert plain.uncertainty is None
    assert averaged.uncertainty is not None
    assert averaged.uncertainty.shape == image.shape[:2]
    assert 0 < averaged.uncertainty.max() <= 0.5
    assert averaged.summary()["mean_uncertainty"] > 0
    assert "uncertainty" in averaged.save(tmp_path, "case")
    assert len(averaged.figure().axes) == len(plain.figure().axes) + 1


def test_flipping_a_frame_flips_the_averaged_answer(bundle: Path) -> None:
    """Four flips make the average symmetric; 1e-5 is float32's rounding in another order of sums."""
    predictor = PraNetPredictor.load(bundle, device="cpu", tta=True)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    upright, mirrored = predictor.predict_batch([image, np.ascontiguousarray(image[:, ::-1])])
    assert np.abs(upright.probability - mirrored.probability[:, ::-1]).max() < 1e-5


def test_the_order_of_a_batch_of_different_sizes_is_kept(predictor: PraNetPredictor) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((33, 47), (70, 50), (64, 64))]
    together = predictor.predict_batch(images)
    for image, one in zip(images, together, strict=True):
        assert one.probability.shape == image.shape[:2]
        assert np.abs(one.probability - predictor.predict(image).probability).max() < 1e-5  # rounding differs with the batch size
    assert predictor.predict_batch([]) == []


def test_reverse_attention_is_shown_in_the_size_of_the_frame(predictor: PraNetPredictor, frames: Path) -> None:
    maps = predictor.attention(next((frames / "images").iterdir()))
    assert list(maps) == ["stride 32", "stride 16", "stride 8"]
    for values in maps.values():
        assert values.shape == (60, 76)
        assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.parametrize(("high", "expected"), [(0, 0.1), (1000, 0.9), (50, 0.1 + 0.8 * 50 / 100)])
def test_confidence_is_the_mean_of_the_highest_half_percent(high: int, expected: float) -> None:
    import torch

    values = torch.full((20_000,), 0.1)
    values[:high] = 0.9
    assert frame_confidence(values) == pytest.approx(expected, abs=1e-6)

"""What is fitted after training, and what is scored while training."""

import numpy as np
import pytest
import torch

from shared.segmentation.config import TaskConfig, WindowConfig
from shared.segmentation.labels import Labels
from shared.segmentation.training import class_dice, fit_threshold, predict_prepared
from tests.shared.segmentation.bright import BRATS_TASK, BrightPredictor, block
from tests.shared.segmentation.test_samples import prepared

LABELS = Labels(TaskConfig())
WINDOW = WindowConfig(size=(8, 8, 8))
TRUTH = block((2, 2, 2), (7, 6, 6))
NETWORK = BrightPredictor.build({"level": 0.0, "slope": 1.0}, LABELS)
"""The image is the logit."""


def logit(probability):
    return np.log(probability / (1 - np.asarray(probability)))


@pytest.mark.parametrize(("inside", "outside", "lowest", "highest"), [(0.45, 0.02, 0.2, 0.4), (0.9, 0.64, 0.7, 0.8), (0.9, 0.05, 0.5, 0.5)])
def test_the_threshold_is_the_one_that_separates_and_one_half_where_it_does_not_matter(inside, outside, lowest, highest, tmp_path):
    image = np.where(TRUTH, logit(inside), logit(outside)).astype(np.float32)[None]
    volume = prepared(tmp_path / "a", TRUTH, image=image)
    threshold, dice = fit_threshold(NETWORK, [volume], LABELS, WINDOW, batch_size=2)
    assert lowest <= threshold <= highest
    assert dice == {"tumour": pytest.approx(1.0)}


def test_a_volume_is_predicted_as_a_whole(tmp_path):
    image = torch.full((1, 13, 9, 7), float(logit(0.8)))
    probability = predict_prepared(NETWORK, image, LABELS, WINDOW, batch_size=3)
    assert probability.shape == (2, 13, 9, 7)
    torch.testing.assert_close(probability[1], torch.full((13, 9, 7), 0.8), atol=1e-5, rtol=0)  # blended in 32 bits


def test_dice_is_that_of_each_class_or_region():
    labels = Labels(BRATS_TASK)
    truth = np.array([0, 2, 1, 4], np.uint8).reshape(4, 1, 1)
    probability = np.array([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], np.float32).reshape(3, 4, 1, 1)
    found = class_dice(labels, probability, truth, threshold=0.5)
    assert found == {"whole tumour": 1.0, "tumour core": pytest.approx(2 / 3), "enhancing tumour": 0.0}
    nothing = np.zeros((4, 1, 1), np.uint8)
    assert set(class_dice(labels, 0 * probability, nothing, threshold=0.5).values()) == {1.0}

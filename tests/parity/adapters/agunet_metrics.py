"""AGUNet's validation: scores of voxels and of matched objects."""

from __future__ import annotations

import numpy as np

from tests.parity.fixture import Fixture

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]


def matches(fixture: Fixture) -> bool:
    return fixture.system == "agunet-metrics"


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from shared.metrics.detection import object_scores, voxel_scores

    predictions, truths = _masks(inputs["gt_noise"], inputs["pred_noise"], fixture.config["sigma_gt"], fixture.config["sigma_pred"])
    smallest = fixture.config["tiny_objects_removal_threshold"]
    pairs = list(zip(predictions, truths, strict=True))
    voxels = [voxel_scores(*pair) for pair in pairs]
    objects = [object_scores(*pair, smallest_object=smallest) for pair in pairs]
    return {
        "pixelwise": np.array([(one.dice, one.recall, one.precision, one.f1) for one in voxels]),
        "objectwise": np.array(
            [
                (one.recall, one.precision, one.f1, *one.matched.dice, *one.matched.recall, *one.matched.precision, *one.matched.f1)
                for one in objects
            ]
        ),
        "object_counts": np.array([(len(one.true_objects), one.predicted) for one in objects]),
        "voxels": np.array([(truth.sum(), prediction.sum()) for prediction, truth in pairs]),
    }


def _masks(truth_noise: np.ndarray, noise: np.ndarray, truth_sigma: float, sigma: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions and truths: blobs that agree in part; the fourth truth and the fifth prediction are empty."""
    from scipy.ndimage import gaussian_filter

    predictions, truths = [], []
    for index in range(len(noise)):
        smooth = gaussian_filter(truth_noise[index].astype(np.float64), truth_sigma)
        other = gaussian_filter(noise[index].astype(np.float64), sigma)
        mixed = 0.8 * smooth / smooth.std() + 0.6 * other / other.std()
        truths.append((smooth > 1.6 * smooth.std()) & (index != 3))
        predictions.append((mixed > 1.7 * mixed.std()) & (index != 4))
    return predictions, truths

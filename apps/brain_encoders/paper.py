"""What the authors' evaluation notebooks report of the Algonauts test images: Hosseini Adeli et al., NeurIPS 2025."""

from __future__ import annotations

import re

__all__ = ["published_scores"]

_DINO_TRANSFORMER = (0.593, 0.555, 0.600, 0.563, 0.564, 0.645, 0.423, 0.624)
_DINO_REGRESSION = (0.524, 0.475, 0.474, 0.475, 0.457, 0.494, 0.339, 0.476)
_RESNET_TRANSFORMER = (0.519, 0.498, 0.554, 0.493, 0.505, 0.508, 0.381, 0.568)
_ENSEMBLE_LEFT = (0.662, 0.629, 0.647, 0.581, 0.598, 0.689, 0.453, 0.631)
_ENSEMBLE_RIGHT = (0.645, 0.613, 0.639, 0.636, 0.588, 0.707, 0.439, 0.644)


def published_scores(study: str) -> dict[str, float]:
    """Mean noise-normalised score over the vertices of both hemispheres, by answer, for a study named "algonauts-2023 subj01"; else empty.

    The ensemble's figures are of the hemispheres, and given as their plain mean.
    """
    match = re.fullmatch(r"algonauts-2023 subj0([1-8])", study)
    if match is None:
        return {}
    subject = int(match[1]) - 1
    return {
        "DINOv2 queries, transformer (authors)": _DINO_TRANSFORMER[subject],
        "DINOv2 queries, regression (authors)": _DINO_REGRESSION[subject],
        "ResNet-50, transformer (authors)": _RESNET_TRANSFORMER[subject],
        "vertex queries, six layers, ten runs (authors)": (_ENSEMBLE_LEFT[subject] + _ENSEMBLE_RIGHT[subject]) / 2,
    }

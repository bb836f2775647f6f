"""Folders of the Algonauts 2023 challenge (the Natural Scenes Dataset on fsaverage)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOWHERE", "ROI_NAMES", "region_masks"]

ROI_NAMES: dict[str, tuple[str, ...]] = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
}
"""Family of regions -> the names of its labels 1, 2, ...; 0 is none of them."""

NOWHERE = "elsewhere"
"""The name given to the units of a hemisphere that are in no region."""


def region_masks(labels: Mapping[str, NDArray[np.integer]]) -> dict[str, NDArray[np.bool_]]:
    """Name -> bool [V] of one hemisphere: the regions of each family in order, then the units in none of them.

    Args:
        labels: family -> [V], the label of each vertex.
    """
    masks = {name: labels[family] == label for family in labels for label, name in enumerate(ROI_NAMES[family], start=1)}
    return {**masks, NOWHERE: ~np.any(list(masks.values()), axis=0)}

"""Folders of the Algonauts 2023 challenge: the Natural Scenes Dataset (Allen et al., Nature Neuroscience 2022) on fsaverage.

Gifford et al., "The Algonauts Project 2023 Challenge: How the human brain makes sense of natural scenes", arXiv 2301.03198. Responses are
betas, z-scored in each session and averaged over up to three presentations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.brain_encoders.space import SurfaceSpace
from apps.brain_encoders.study import Study
from shared.arrays import load_npy
from shared.errors import UserError

__all__ = [
    "NOWHERE",
    "ROI_NAMES",
    "is_algonauts",
    "published_membership",
    "read_algonauts",
    "read_algonauts_space",
    "read_regions",
    "region_masks",
]

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

_SIDES = ("lh", "rh")


def is_algonauts(root: Path) -> bool:
    """Whether it is a subject's folder."""
    return (root / "training_split" / "training_images").is_dir()


def read_algonauts(root: Path) -> Study:
    """Reads a subject's folder (subj01): training images, and test images where the responses to them have been added since.

    Raises:
        UserError: if something is missing or does not fit.
    """
    training = root / "training_split"
    images = _images(training / "training_images")
    parts = [load_npy(training / "training_fmri" / f"{side}_training_fmri.npy", lazily=True) for side in _SIDES]
    responses = [np.concatenate(parts, axis=1)]
    count = len(images)
    if len(responses[0]) != count:
        raise UserError(f"{training}: {count:,} images, but {len(responses[0]):,} rows of responses. Unpack the folder again.")
    test, ceiling = [], None
    measured = root / "test_split" / "test_fmri"
    if measured.is_dir():
        test = _images(root / "test_split" / "test_images")
        responses.append(np.concatenate([load_npy(measured / f"{side}_test_fmri.npy") for side in _SIDES], axis=1))
        if len(responses[1]) != len(test):
            raise UserError(f"{measured}: {len(test):,} test images, but {len(responses[1]):,} rows of responses. Unpack the folder again.")
        ceilings = [root / "test_split" / "noise_ceiling" / f"{side}_noise_ceiling.npy" for side in _SIDES]
        if all(path.is_file() for path in ceilings):
            ceiling = np.concatenate([load_npy(path) for path in ceilings]).astype(np.float64)
            ceiling = ceiling / 100 if np.nanmax(ceiling) > 1.5 else ceiling  # in percent in some releases
    return Study(
        root=root,
        name=f"algonauts-2023 {root.resolve().name}",
        images=[*images, *test],
        captions=[""] * (count + len(test)),
        test=np.arange(count + len(test)) >= count,
        trials=np.arange(count + len(test)),
        responses=responses[0] if len(responses) == 1 else np.concatenate(responses),
        space=read_algonauts_space(root),
        regions=read_regions(root),
        ceiling=ceiling,
    )


def read_algonauts_space(root: Path) -> SurfaceSpace:
    """Which vertices of fsaverage the responses are of."""
    left, right = (np.flatnonzero(load_npy(root / "roi_masks" / f"{side}.all-vertices_fsaverage_space.npy")) for side in _SIDES)
    return SurfaceSpace(mesh="fsaverage", left=left, right=right)


def read_regions(root: Path) -> dict[str, NDArray[np.bool_]]:
    """Region -> bool [V] over both hemispheres, left first; a family that the folder lacks is left out."""
    halves = []
    for side in _SIDES:
        files = {family: root / "roi_masks" / f"{side}.{family}_challenge_space.npy" for family in ROI_NAMES}
        labels = {family: load_npy(path) for family, path in files.items() if path.is_file()}
        if not labels:
            raise UserError(f"{root / 'roi_masks'}: has none of the regions' files, such as {files['prf-visualrois'].name}.")
        halves.append({name: mask for name, mask in region_masks(labels).items() if name != NOWHERE})
    if halves[0].keys() != halves[1].keys():
        raise UserError(f"{root / 'roi_masks'}: the two hemispheres have different families of regions. Unpack the folder again.")
    return {name: np.concatenate([halves[0][name], halves[1][name]]) for name in halves[0]}


def region_masks(labels: Mapping[str, NDArray[np.integer]]) -> dict[str, NDArray[np.bool_]]:
    """Name -> bool [V] of one hemisphere: the regions of each family in order, then the units in none of them.

    Args:
        labels: family -> [V], the label of each vertex.
    """
    masks = {name: labels[family] == label for family in labels for label, name in enumerate(ROI_NAMES[family], start=1)}
    return {**masks, NOWHERE: ~np.any(list(masks.values()), axis=0)}


def published_membership(root: Path) -> NDArray[np.float32]:
    """[50, V]: the queries of the published program, region by region in its order, those of the left hemisphere first.

    A row is there for each region, also for one that this subject lacks; the last of each half is for vertices in no region.
    """
    halves = []
    for side in _SIDES:
        labels = {family: load_npy(root / "roi_masks" / f"{side}.{family}_challenge_space.npy") for family in ROI_NAMES}
        halves.append(np.stack(list(region_masks(labels).values())))
    left, right = halves
    rows = np.zeros((len(left) + len(right), left.shape[1] + right.shape[1]), dtype=np.float32)
    rows[: len(left), : left.shape[1]], rows[len(left) :, left.shape[1] :] = left, right
    return rows


def _images(folder: Path) -> list[Path]:
    """In the order of the responses: by number."""
    found = [path for path in folder.glob("*.png") if re.match(r"(train|test)-\d+", path.name)] if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder}: has no images such as train-0001_nsd-00013.png. Unpack the subject's folder again.")
    return sorted(found, key=lambda path: int(re.findall(r"\d+", path.name)[0]))

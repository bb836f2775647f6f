"""A brain with a known encoding: real pictures in, responses of vertices or voxels with a set signal-to-noise ratio out.

Early visual units respond to the contrast within their receptive field, which lies on the other side of the visual field; units of three
ventral patches respond to faces, words and scenes wherever they are; control units respond to nothing. Places are roughly those of the
real areas, on the fsaverage5 surface or the MNI152 grid that nilearn brings along. It says whether an estimate recovers the truth, and
nothing about brains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.phantoms.brain_stimuli import Stimulus, stimulus

__all__ = ["REGIONS", "BrainPhantom", "Region", "brain_phantom"]

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the cortex: what lies near a point of the right hemisphere, and its mirror image in the left."""

    centre_mm: tuple[float, float, float]
    """In MNI coordinates, right hemisphere."""
    radius_mm: float
    responds_to: Literal["contrast", "face", "word", "scene", "nothing"]


REGIONS: dict[str, Region] = {
    "V1": Region(centre_mm=(10, -88, 2), radius_mm=18, responds_to="contrast"),
    "FFA": Region(centre_mm=(41, -54, -18), radius_mm=10, responds_to="face"),
    "VWFA": Region(centre_mm=(46, -70, -8), radius_mm=9, responds_to="word"),
    "PPA": Region(centre_mm=(26, -46, -10), radius_mm=9, responds_to="scene"),
    "control": Region(centre_mm=(38, -20, 55), radius_mm=11, responds_to="nothing"),
}
"""By name. Centres are rough: those of the named areas in MNI space, far enough apart not to overlap."""

IPSILATERAL_GAIN = 0.6
"""How much weaker a category unit responds to what lies on its own side of the visual field."""
VOXEL_MM = 4


@dataclass(frozen=True, kw_only=True)
class BrainPhantom:
    """Stimuli, what the units answered to each of their presentations, and the truth."""

    stimuli: list[Stimulus]
    test: NDArray[np.bool_]
    """[stimuli]: kept for testing."""
    trials: NDArray[np.intp]
    """[T]: the stimulus of each presentation."""
    responses: NDArray[np.float32]
    """[T, V], with noise; signal and noise together have variance 1 over the training stimuli."""
    signal: NDArray[np.float32]
    """[stimuli, V], without noise, mean 0 and variance 1 over the training stimuli; 0 for control units."""
    signal_share: Float
    """[V]: part of a single presentation's variance that is signal; the noise ceiling in R2 of one presentation."""
    regions: dict[str, NDArray[np.bool_]]
    """Region -> bool [V]; every unit is in one."""
    left: int
    """Number of units of the left hemisphere, which come first."""
    receptive_fields: Float
    """[V, 3]: centre (x, y) and standard deviation as fractions of the picture; NaN outside V1."""
    vertices: tuple[NDArray[np.intp], NDArray[np.intp]] | None
    """Vertices of fsaverage5, left and right, of the units; None for a volume."""
    mask: NDArray[np.bool_] | None
    """[X, Y, Z]: the voxels of the units; None for a surface. Units are in its order (C order), the left hemisphere first."""
    affine: Float | None
    """Of the mask: voxel indices to MNI millimetres."""

    def ceiling(self, presentations: int) -> Float:
        """[V]: R2 that a perfect model reaches on the test stimuli, each response the mean of this many presentations; 0 without signal."""
        signal = self.signal_share * self.signal[self.test].var(axis=0)
        return signal / (signal + (1 - self.signal_share) / presentations)


def brain_phantom(
    seed: int,
    *,
    train: int = 240,
    test: int = 40,
    repeats: int = 3,
    side: int = 96,
    signal_share: float = 0.4,
    space: Literal["surface", "volume"] = "surface",
) -> BrainPhantom:
    """Shows pictures to a brain.

    Args:
        seed: decides everything.
        train: pictures shown once.
        test: other pictures, shown ``repeats`` times each.
        side: of the pictures in pixels.
        signal_share: mean over units of the part of a presentation's variance that is signal, 0 to 1; units vary between half and
            one and a half times this.
        space: where the units are: vertices of fsaverage5, or voxels of 4 mm.

    Raises:
        ValueError: if a share is outside 0 to 1.
    """
    if not 0 < signal_share < 1:
        raise ValueError(f"signal_share={signal_share} must be between 0 and 1")
    rng = np.random.default_rng([seed, 7])
    stimuli = [stimulus(rng, side=side, held_out=index >= train) for index in range(train + test)]
    coordinates, sides, vertices, mask, affine = _surface() if space == "surface" else _volume()
    which = _region_of(coordinates, sides)
    kept = which >= 0
    if mask is not None:
        mask = _only(mask, kept)
    if vertices is not None:
        vertices = (vertices[0][kept[: len(vertices[0])]], vertices[1][kept[len(vertices[0]) :]])
    coordinates, sides, which = coordinates[kept], sides[kept], which[kept]
    regions = {name: which == index for index, name in enumerate(REGIONS)}
    fields = _receptive_fields(coordinates, sides, regions["V1"])
    signal = _signal(stimuli, regions, sides, fields)
    signal -= signal[:train].mean(axis=0)
    spread = signal[:train].std(axis=0)
    signal /= np.where(spread > 0, spread, 1)
    share = np.clip(signal_share * rng.uniform(0.5, 1.5, len(which)), 0.02, 0.98) * ~regions["control"]
    trials = np.concatenate([np.arange(train), np.repeat(np.arange(train, train + test), repeats)])
    noise = rng.standard_normal((len(trials), len(which)))
    return BrainPhantom(
        stimuli=stimuli,
        test=np.arange(train + test) >= train,
        trials=trials,
        responses=(np.sqrt(share) * signal[trials] + np.sqrt(1 - share) * noise).astype(np.float32),
        signal=signal.astype(np.float32),
        signal_share=share,
        regions=regions,
        left=int(sides.sum()),
        receptive_fields=fields,
        vertices=vertices,
        mask=mask,
        affine=affine,
    )


Places = tuple[Float, NDArray[np.bool_], tuple[NDArray[np.intp], NDArray[np.intp]] | None, NDArray[np.bool_] | None, Float | None]
"""Coordinates [V, 3] in mm, whether each is left, and either vertices or mask and affine."""


def _surface() -> Places:
    from nilearn.datasets import load_fsaverage

    meshes = load_fsaverage("fsaverage5")["pial"].parts
    left, right = (np.asarray(meshes[side].coordinates, dtype=np.float64) for side in ("left", "right"))
    sides = np.repeat([True, False], [len(left), len(right)])
    return np.concatenate([left, right]), sides, (np.arange(len(left)), np.arange(len(right))), None, None


def _volume() -> Places:
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=VOXEL_MM)
    mask, affine = np.asarray(image.dataobj) > 0, np.asarray(image.affine, dtype=np.float64)
    coordinates = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    return coordinates, coordinates[:, 0] < 0, None, mask, affine


def _only(mask: NDArray[np.bool_], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inside = mask.copy()
    inside[mask] = kept
    return inside


def _region_of(coordinates: Float, left: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The region that each place lies in, by number; -1 for none."""
    mirrored = coordinates * np.where(left[:, None], [-1, 1, 1], 1)
    which = np.full(len(coordinates), -1)
    for index, region in reversed(list(enumerate(REGIONS.values()))):
        which[np.linalg.norm(mirrored - region.centre_mm, axis=1) <= region.radius_mm] = index
    return which


def _receptive_fields(coordinates: Float, left: NDArray[np.bool_], early: NDArray[np.bool_]) -> Float:
    """The fovea is at the pole, the periphery in front of it; the calcarine's lower bank sees the upper field; each side sees the other."""
    fields = np.full((len(coordinates), 3), np.nan)
    _, y, z = coordinates[early].T
    eccentricity = 0.05 + 0.4 * (y - y.min()) / np.ptp(y)
    angle = np.radians(160 * ((z - z.min()) / np.ptp(z) - 0.5))
    direction = np.where(left[early], 1, -1)
    centre_x, centre_y = 0.5 + direction * eccentricity * np.cos(angle), 0.5 + eccentricity * np.sin(angle)
    fields[early] = np.stack([centre_x, centre_y, 0.04 + 0.12 * eccentricity], axis=1)
    return fields


def _signal(stimuli: list[Stimulus], regions: dict[str, NDArray[np.bool_]], left: NDArray[np.bool_], fields: Float) -> Float:
    """[stimuli, V] before standardising."""
    signal = np.zeros((len(stimuli), len(left)))
    early = regions["V1"]
    weights = _field_weights(fields[early], stimuli[0].image.shape[0])
    contralateral = np.where(left, 1, -1)
    for row, shown in zip(signal, stimuli, strict=True):
        row[early] = np.log1p(np.sqrt(weights @ _contrast(shown.image).ravel()))
        for name, region in REGIONS.items():
            if region.responds_to in ("face", "word") and shown.shows[region.responds_to]:
                own_side = contralateral * (shown.place[region.responds_to][0] - 0.5) < 0
                row[regions[name]] = np.where(own_side, IPSILATERAL_GAIN, 1)[regions[name]]
            elif region.responds_to == "scene":
                row[regions[name]] = shown.shows["scene"]
    return signal


def _contrast(image: NDArray[np.uint8]) -> Float:
    """[side, side]: the squared difference of Gaussians of the luminance, grey levels squared."""
    light = image.mean(axis=2)
    return (ndimage.gaussian_filter(light, 1.0) - ndimage.gaussian_filter(light, 3.0)) ** 2


def _field_weights(fields: Float, side: int) -> Float:
    """[V1 units, side * side], each row adding up to 1."""
    axis = (np.arange(side) + 0.5) / side
    across = np.exp(-((axis - fields[:, :1]) ** 2) / (2 * fields[:, 2:] ** 2))
    down = np.exp(-((axis - fields[:, 1:2]) ** 2) / (2 * fields[:, 2:] ** 2))
    weights = (down[:, :, None] * across[:, None, :]).reshape(len(fields), -1)
    return weights / weights.sum(axis=1, keepdims=True)

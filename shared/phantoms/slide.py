"""Phantoms of whole slides: stained tissue that never was, with a tumour whose outline is known exactly.

A slide has stroma, glands, fat and groups of lymphocytes (small dark nuclei that are no tumour), and what happens to slides: pen marks,
folds, parts out of focus, scanner noise. Tumour is a texture of large, dark, crowded, irregular nuclei in a small part of the tissue.
Stains are mixed as light is absorbed (``slide_tissue``), at 0.5 micrometres per pixel or any other scale: the scene is in micrometres.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from shared.errors import UserError
from shared.files import atomic_path, write_json
from shared.phantoms.slide_tissue import Scene, draw_scene, render

__all__ = ["SlidePhantom", "slide_phantom", "write_pyramid", "write_slides"]

SMALLEST_SIDE_UM = 200.0
_TILE = 256


@dataclass(frozen=True, kw_only=True)
class SlidePhantom:
    """A slide and its truth."""

    image: NDArray[np.uint8]
    """[H, W, 3], RGB: level 0."""
    mpp: float
    """Micrometres per pixel."""
    tumour: tuple[NDArray[np.float64], ...]
    """Outlines, each [K, 2], x and y in level-0 pixels; none in a slide without tumour."""
    tissue_mask: NDArray[np.bool_]
    """[H, W]."""
    tumour_mask: NDArray[np.bool_]
    """[H, W]: within the tissue."""

    @property
    def tumour_fraction(self) -> float:
        """Of the tissue."""
        return float(self.tumour_mask.sum() / max(1, self.tissue_mask.sum()))


def slide_phantom(seed: int, *, tumour: bool = True, width: int = 2048, height: int = 2048, mpp: float = 0.5) -> SlidePhantom:
    """The slide of this seed, always the same.

    Args:
        seed: any whole number from 0.
        tumour: whether there is one.
        width, height: of level 0, in pixels.
        mpp: micrometres per pixel.

    Raises:
        UserError: if the slide would be smaller than 0.2 mm, or the seed is negative.
    """
    if seed < 0 or min(width, height) * mpp < SMALLEST_SIDE_UM:
        raise UserError(
            f"Slide phantoms: the seed must not be negative and each side must have at least {SMALLEST_SIDE_UM:g} micrometres; found seed "
            f"{seed} and {width * mpp:g} x {height * mpp:g}."
        )
    random = np.random.Generator(np.random.PCG64([seed, 20]))
    scene: Scene = draw_scene(random, width_um=width * mpp, height_um=height * mpp, tumour=tumour)
    image, tissue, tumour_mask = render(scene, random, width=width, height=height, mpp=mpp)
    outlines = tuple(outline / mpp for outline in scene.tumour)
    return SlidePhantom(image=image, mpp=mpp, tumour=outlines, tissue_mask=tissue, tumour_mask=tumour_mask)


def write_slides(
    folder: Path,
    *,
    count: int,
    seed: int = 0,
    width: int = 2048,
    height: int = 2048,
    mpp: float = 0.5,
    positive: float = 0.5,
    slides_per_patient: int = 1,
) -> None:
    """Writes ``count`` slides as a labelled data set.

    Leaves slides/phantom_0000.tiff (pyramids), truth/phantom_0000.geojson (tumour outlines, for QuPath) and labels.csv (slide, patient,
    label: tumour or normal, tumour_fraction). Each file is whole or absent; labels.csv comes last.

    Args:
        folder: a new folder.
        count: of slides.
        seed: decides everything.
        width, height, mpp: as ``slide_phantom``.
        positive: part of the slides with tumour.
        slides_per_patient: slides that share a patient, and a label.

    Raises:
        UserError: if an argument is out of range or the folder cannot be written to.
    """
    if count < 1 or not 0 <= positive <= 1 or slides_per_patient < 1:
        raise UserError(f"Slide phantoms: count and slides_per_patient from 1, positive from 0 to 1; found {count}, {positive}.")
    random = np.random.Generator(np.random.PCG64([seed, 21]))
    patients = -(-count // slides_per_patient)
    ill = set(random.permutation(patients)[: round(patients * positive)].tolist())
    rows = []
    for number in range(count):
        patient = number // slides_per_patient
        phantom = slide_phantom(int(random.integers(2**31)), tumour=patient in ill, width=width, height=height, mpp=mpp)
        name = f"phantom_{number:04d}"
        write_pyramid(folder / "slides" / f"{name}.tiff", phantom.image, mpp=mpp)
        write_json(folder / "truth" / f"{name}.geojson", _outlines(phantom))
        label = "tumour" if patient in ill else "normal"
        rows.append([name, f"patient_{patient:03d}", label, f"{phantom.tumour_fraction:.5f}"])
    with atomic_path(folder / "labels.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["slide", "patient", "label", "tumour_fraction"])
        table.writerows(rows)


def write_pyramid(path: Path, image: NDArray[np.uint8], *, mpp: float, quality: int = 90, levels: int | None = None) -> None:
    """A tiled, pyramidal TIFF, JPEG inside, each level half of the one before, with its resolution stated: what OpenSlide reads.

    Args:
        path: the file; whole or absent.
        image: uint8 [H, W, 3].
        mpp: micrometres per pixel.
        quality: of JPEG.
        levels: how many; by default until one fits into a tile.

    Raises:
        UserError: if it cannot be written.
    """
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary) as file:
        level, factor = image, 1
        while True:
            per_cm = 10_000 / (mpp * factor)
            file.write(
                _tiles(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=0 if factor == 1 else 1,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            done = levels is not None and 2 ** (levels - 1) <= factor
            if done or (levels is None and max(level.shape[:2]) <= _TILE):
                return
            factor *= 2
            size = (max(1, image.shape[1] // factor), max(1, image.shape[0] // factor))
            level = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX, box=(0, 0, size[0] * factor, size[1] * factor)))


def _tiles(level: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Whole tiles, row after row. Beyond the edge the picture's last pixels go on: black, which is the default, would ring in JPEG."""
    height, width = level.shape[:2]
    padded = np.pad(level, ((0, -height % _TILE), (0, -width % _TILE), (0, 0)), mode="edge")
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield np.ascontiguousarray(padded[top : top + _TILE, left : left + _TILE])


def _outlines(phantom: SlidePhantom) -> dict[str, object]:
    features = []
    for outline in phantom.tumour:
        ring = np.concatenate([outline, outline[:1]]).round(2).tolist()
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
            }
        )
    return json.loads(json.dumps({"type": "FeatureCollection", "features": features}))

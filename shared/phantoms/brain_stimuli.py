"""Photographs with faces and words in them, composed of the real pictures that come with scikit-image and scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

__all__ = ["CATEGORIES", "Stimulus", "stimulus"]

Pixels = NDArray[np.uint8]

CATEGORIES = ("face", "word", "scene")
"""What a stimulus may show. A face or a word lies somewhere on it; a scene is its background, which else is a texture."""
_SCENES = ("china.jpg", "flower.jpg", "coffee", "chelsea", "rocket")
_TEXTURES = ("brick", "grass", "gravel", "hubble_deep_field", "coins")
FACES = 100
"""Faces in scikit-image's ``lfw_subset``."""
HELD_OUT_FACES = 25
"""The last of them are kept for test stimuli."""
SATURATION = 0.4
"""Of the photographs' colours: faces stand out by theirs, so that features without weights can tell them."""


@dataclass(frozen=True, kw_only=True)
class Stimulus:
    """A picture, and what is on it."""

    image: Pixels
    """[side, side, 3] RGB."""
    shows: dict[str, bool]
    """By category."""
    place: dict[str, tuple[float, float]]
    """Centre of the face and of the word as fractions (x, y) of the picture; of those that it shows."""

    @property
    def caption(self) -> str:
        """A sentence."""
        things = [f"a {name}" for name in ("face", "word") if self.shows[name]]
        return f"{' and '.join(things) or 'nothing'} in front of a {'scene' if self.shows['scene'] else 'texture'}"


def stimulus(rng: np.random.Generator, *, side: int = 96, held_out: bool = False) -> Stimulus:
    """A random stimulus: a crop of a photograph, with a face in half of all cases and a word in half.

    Args:
        rng: decides everything.
        side: of the square picture in pixels.
        held_out: with one of the faces that stimuli without this never show.
    """
    scene = bool(rng.random() < 0.5)
    canvas = _crop(rng, str(rng.choice(_SCENES if scene else _TEXTURES)), side)
    place: dict[str, tuple[float, float]] = {}
    shows = {"face": bool(rng.random() < 0.5), "word": bool(rng.random() < 0.5), "scene": scene}
    for name in ("face", "word"):
        if not shows[name]:
            continue
        height = int(side * rng.uniform(0.32, 0.45))
        width = height if name == "face" else int(1.4 * height)
        height = height if name == "face" else int(0.6 * height)
        patch = _face(rng, height, held_out) if name == "face" else _word(rng, height, width)
        top, left = (int(rng.integers(0, side - extent)) for extent in (height, width))
        for _ in range(20):  # a word rather beside the face than on it
            centre = ((left + width / 2) / side, (top + height / 2) / side)
            if all(abs(centre[0] - x) > 0.33 or abs(centre[1] - y) > 0.33 for x, y in place.values()):
                break
            top, left = (int(rng.integers(0, side - extent)) for extent in (height, width))
        place[name] = centre
        region = canvas[top : top + height, left : left + width]
        opacity = _window(height, width, round_=name == "face")[..., None]
        region[:] = opacity * patch + (1 - opacity) * region
    return Stimulus(image=np.clip(canvas, 0, 255).round().astype(np.uint8), shows=shows, place=place)


@cache
def _photograph(name: str) -> Pixels:
    """[H, W, 3], grey ones repeated."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    image = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    return np.ascontiguousarray(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3])


@cache
def _faces() -> NDArray[np.float64]:
    """[100, 25, 25], 0 to 1; the other hundred of the set are no faces."""
    from skimage import data

    return data.lfw_subset()[:FACES]


def _crop(rng: np.random.Generator, name: str, side: int) -> NDArray[np.float64]:
    photograph = _photograph(name)
    extent = int(rng.uniform(0.5, 0.95) * min(photograph.shape[:2]))
    top, left = (int(rng.integers(0, size - extent + 1)) for size in photograph.shape[:2])
    crop = Image.fromarray(photograph[top : top + extent, left : left + extent]).resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(crop, dtype=np.float64)
    light = pixels.mean(axis=2, keepdims=True)
    pixels = light + SATURATION * (pixels - light)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels.copy()


def _face(rng: np.random.Generator, side: int, held_out: bool) -> NDArray[np.float64]:
    known = FACES - HELD_OUT_FACES
    face = _faces()[int(rng.integers(known, FACES) if held_out else rng.integers(known))]
    grey = ndimage.zoom(face, side / face.shape[0], order=1)[:side, :side]
    grey = np.pad(grey, [(0, side - extent) for extent in grey.shape], mode="edge")
    return 255 * grey[..., None] * np.array([1.1, 0.82, 0.68]) * rng.uniform(0.9, 1.1)


def _word(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """The crop of a printed page with most ink among some."""
    page = _photograph("page")
    spans = [size - extent - 20 for size, extent in zip(page.shape[:2], (height, width), strict=True)]
    corners = [(10 + int(rng.integers(spans[0])), 10 + int(rng.integers(spans[1]))) for _ in range(8)]
    crops = [page[top : top + height, left : left + width].astype(np.float64) for top, left in corners]
    return max(crops, key=lambda crop: float(crop.std()))


def _window(height: int, width: int, *, round_: bool) -> NDArray[np.float64]:
    """Opacity [height, width] that falls off at the edges; ``round_``: outside an ellipse it is 0."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    distance = np.hypot(x, y) if round_ else np.maximum(abs(x), abs(y))
    return np.clip((1 - distance) / 0.15, 0, 1)

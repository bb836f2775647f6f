"""The scene of a slide phantom, in micrometres, and its picture: concentrations of two stains, and the light they let through.

Colours follow Beer and Lambert's law with the stain vectors of Ruifrok and Johnston, "Quantification of histochemical staining by color
deconvolution", Analytical and Quantitative Cytology and Histology 2001.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

__all__ = ["Scene", "draw_scene", "render"]

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
"""[K, 2]: x and y in micrometres."""

_HAEMATOXYLIN = np.array([0.650, 0.704, 0.286], np.float32)
_EOSIN = np.array([0.072, 0.990, 0.105], np.float32)
_GLASS = np.array([243, 241, 244], np.float32)
_INKS = ((40, 70, 170), (20, 120, 70), (35, 35, 40))
_FAT_SHARE = 0.25
"""Of the tissue at most: cells have one size, and would leave nothing of a small slide."""
_STAMPS = 16
"""Different nuclei of a kind; each is used many times, turned by chance."""


@dataclass(frozen=True, kw_only=True)
class Gland:
    """A ring of cells around an empty lumen."""

    x: float
    y: float
    radius: float
    flat: float
    turn: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What lies on the glass, in micrometres."""

    width: float
    height: float
    tissue: tuple[Points, ...]
    """Outlines of the pieces."""
    tumour: tuple[Points, ...]
    glands: tuple[Gland, ...]
    fat: tuple[tuple[float, float, float], ...]
    """x, y, radius of each cell."""
    lymphocytes: tuple[tuple[float, float, float], ...]
    """x, y, radius of each group."""
    pen: tuple[tuple[Points, int], ...]
    """Strokes, and the colour of each."""
    fold: Points | None
    blurred: tuple[float, float, float] | None
    """x, y, radius of what is out of focus."""
    haematoxylin: float
    eosin: float
    """Strength of the stains: laboratories differ."""


def draw_scene(random: np.random.Generator, *, width_um: float, height_um: float, tumour: bool) -> Scene:
    """A scene by chance."""
    smaller = min(width_um, height_um)
    centre = np.array([width_um, height_um]) * random.uniform(0.46, 0.54, 2)
    tissue = [_blob(random, centre, smaller * random.uniform(0.34, 0.40), 0.16)]
    if random.uniform() < 0.6:  # a fragment beside it
        away = random.uniform(0, 2 * np.pi)
        place = centre + 0.43 * smaller * np.array([np.cos(away), np.sin(away)])
        tissue.append(_blob(random, place, smaller * random.uniform(0.05, 0.08), 0.12))
    reach = smaller * 0.30

    def somewhere(spread: float = 1.0) -> NDArray[np.float64]:
        angle, distance = random.uniform(0, 2 * np.pi), reach * spread * np.sqrt(random.uniform())
        return np.asarray(centre + distance * np.array([np.cos(angle), np.sin(angle)]))

    growths = []
    if tumour:
        for _ in range(1 + int(random.uniform() < 0.4)):
            growths.append(_blob(random, somewhere(0.8), smaller * random.uniform(0.055, 0.12), 0.2))
    glands = []
    for _ in range(int(random.integers(8, 16))):
        x, y = somewhere()
        glands.append(Gland(x=x, y=y, radius=random.uniform(22, 48), flat=random.uniform(0.6, 1.0), turn=random.uniform(0, np.pi)))
    fat = []
    hub = somewhere()
    for _ in range(int(random.integers(0, 40))):
        x, y = hub + random.normal(0, 75, 2)
        fat.append((x, y, random.uniform(16, 34)))
    fat = fat[: int(_FAT_SHARE * (0.37 * smaller / 25) ** 2)]  # middle radii of tissue and cells
    groups = [(*somewhere(), random.uniform(22, 60)) for _ in range(int(random.integers(1, 4)))]
    pen = []
    if random.uniform() < 0.4:
        start, end = np.array([random.uniform(0.02, 0.10) * width_um, 0.06 * height_um]), np.array([0.12 * width_um, 0.95 * height_um])
        steps = np.linspace(0, 1, 24)[:, None]
        wave = 0.02 * smaller * np.sin(steps * random.uniform(3, 8)) * np.array([1.0, 0.0])
        pen.append((start + (end - start) * steps + wave, int(random.integers(len(_INKS)))))
    fold = None
    if random.uniform() < 0.4:
        middle, angle = somewhere(0.7), random.uniform(0, np.pi)
        along = np.linspace(-0.25, 0.25, 16)[:, None] * smaller * np.array([np.cos(angle), np.sin(angle)])
        fold = middle + along + 10 * np.sin(np.linspace(0, 6, 16))[:, None] * np.array([-np.sin(angle), np.cos(angle)])
    return Scene(
        width=width_um,
        height=height_um,
        tissue=tuple(tissue),
        tumour=tuple(growths),
        glands=tuple(glands),
        fat=tuple(fat),
        lymphocytes=tuple(groups),
        pen=tuple(pen),
        fold=fold,
        blurred=(*somewhere(), smaller * random.uniform(0.08, 0.14)) if random.uniform() < 0.3 else None,
        haematoxylin=random.uniform(0.85, 1.15),
        eosin=random.uniform(0.85, 1.15),
    )


def render(
    scene: Scene, random: np.random.Generator, *, width: int, height: int, mpp: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Picture uint8 [H, W, 3], tissue and tumour bool [H, W]."""
    shape = (height, width)
    tissue = _filled(scene.tissue, shape, mpp)
    tumour = _filled(scene.tumour, shape, mpp) & tissue
    lumen, cells, fat, rim = _structures(scene, shape, mpp)
    fat &= ~tumour
    rim &= ~tumour
    lumen &= ~tumour
    cells &= ~tumour & tissue

    turn = random.uniform(0, 180)
    fibres = _noise(random, shape, (4 / mpp, 34 / mpp), turn) + 0.6 * _noise(random, shape, (7 / mpp, 50 / mpp), turn + 35)
    clouds = _noise(random, shape, (120 / mpp, 120 / mpp))
    eosin = 0.27 + 0.055 * fibres + 0.03 * clouds
    eosin[cells] = 0.29 + 0.03 * clouds[cells]
    eosin[tumour] = 0.23 + 0.03 * fibres[tumour]
    haematoxylin = 0.05 + 0.02 * clouds
    haematoxylin[cells] += 0.08
    haematoxylin[tumour] += 0.13
    nuclei = np.zeros(shape, np.float32)
    _stamp_nuclei(nuclei, scene, random, tissue=tissue & ~fat & ~lumen, tumour=tumour, mpp=mpp)
    haematoxylin += nuclei
    thin = rim & tissue
    empty = ~tissue | (fat & ~thin) | lumen
    haematoxylin[empty] = 0
    eosin[empty] = 0
    if scene.fold is not None:
        thick = 1 + 1.1 * _stroke(scene.fold, shape, mpp, width_um=26)
        haematoxylin *= thick
        eosin *= thick
    stain = scene.haematoxylin * np.clip(haematoxylin, 0, None)[..., None] * _HAEMATOXYLIN
    stain += scene.eosin * np.clip(eosin, 0, None)[..., None] * _EOSIN
    image = _GLASS * np.exp(-1.35 * stain)
    if scene.blurred is not None:
        _defocus(image, scene.blurred, mpp)
    for stroke, color in scene.pen:
        alpha = 0.82 * _stroke(stroke, shape, mpp, width_um=42)[..., None]
        image += alpha * (np.array(_INKS[color], np.float32) * (0.55 + image / 560) - image)
    image += random.normal(0, 1.6, shape).astype(np.float32)[..., None]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), tissue & ~(fat & ~thin) & ~lumen, tumour


def _blob(random: np.random.Generator, centre: NDArray[np.floating], radius: float, ragged: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    distance = np.ones_like(angles)
    for order in range(2, 8):
        distance += ragged / order * random.normal() * np.cos(order * angles + random.uniform(0, 2 * np.pi))
    distance = radius * np.clip(distance, 0.5, 1.6)
    return np.stack([centre[0] + distance * np.cos(angles), centre[1] + distance * np.sin(angles)], axis=1)


def _filled(outlines: tuple[Points, ...], shape: tuple[int, int], mpp: float) -> NDArray[np.bool_]:
    canvas = Image.new("L", (shape[1], shape[0]))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        draw.polygon([(float(x), float(y)) for x, y in outline / mpp], fill=1)
    return np.asarray(canvas) > 0


def _structures(scene: Scene, shape: tuple[int, int], mpp: float) -> tuple[NDArray[np.bool_], ...]:
    """Lumens and cells of glands; fat cells and their rims."""
    lumen, cells, fat = (Image.new("L", (shape[1], shape[0])) for _ in range(3))
    for gland in scene.glands:
        for canvas, factor in ((cells, 1.0), (lumen, 0.45)):
            outline = _ring(gland, factor)
            ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in outline / mpp], fill=1)
    for x, y, radius in scene.fat:
        box = [(x - radius) / mpp, (y - radius) / mpp, (x + radius) / mpp, (y + radius) / mpp]
        ImageDraw.Draw(fat).ellipse(box, fill=1, outline=2, width=max(1, round(1.5 / mpp)))
    hollow, ring, drops = (np.array(canvas) for canvas in (lumen, cells, fat))
    return hollow > 0, (ring > 0) & (hollow == 0), drops > 0, drops == 2


def _ring(gland: Gland, factor: float, count: int = 48) -> Points:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    x, y = gland.radius * factor * np.cos(angles), gland.radius * factor * gland.flat * np.sin(angles)
    cosine, sine = np.cos(gland.turn), np.sin(gland.turn)
    return np.stack([gland.x + cosine * x - sine * y, gland.y + sine * x + cosine * y], axis=1)


def _noise(random: np.random.Generator, shape: tuple[int, int], scale_px: tuple[float, float], degrees: float = 0.0) -> Floats:
    """Smooth noise of standard deviation about one; ``scale_px`` down and across, then turned by ``degrees``."""
    side = int(np.ceil(np.hypot(*shape)))
    rows, columns = (max(4, round(side / scale)) for scale in scale_px)
    coarse = Image.fromarray(random.normal(0, 1, (rows, columns)).astype(np.float32))
    fine = coarse.resize((side, side), Image.Resampling.BICUBIC)
    if degrees:
        fine = fine.rotate(degrees, Image.Resampling.BILINEAR)
    left, top = (side - shape[1]) // 2, (side - shape[0]) // 2
    return np.asarray(fine.crop((left, top, left + shape[1], top + shape[0])))


def _stroke(line: Points, shape: tuple[int, int], mpp: float, *, width_um: float) -> Floats:
    """A line of this width with soft edges, 0 to 1; drawn at a quarter of the resolution."""
    small = (max(1, shape[1] // 4), max(1, shape[0] // 4))
    canvas = Image.new("L", small)
    points = [(float(x), float(y)) for x, y in line / (4 * mpp)]
    ImageDraw.Draw(canvas).line(points, fill=255, width=max(1, round(width_um / (4 * mpp))), joint="curve")
    soft = ndimage.gaussian_filter(np.asarray(canvas, dtype=np.float32) / 255, 1.2)
    return np.asarray(Image.fromarray(soft).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _defocus(image: Floats, where: tuple[float, float, float], mpp: float) -> None:
    x, y, radius = (value / mpp for value in where)
    top, left = max(0, int(y - radius)), max(0, int(x - radius))
    part = image[top : int(y + radius), left : int(x + radius)]
    if not part.size:
        return
    rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    weight = np.clip(2 - 2 * np.hypot(rows - y, columns - x) / radius, 0, 1).astype(np.float32)[..., None]
    part += weight * (ndimage.gaussian_filter(part, (3.2 / mpp, 3.2 / mpp, 0)) - part)


def _stamp_nuclei(
    canvas: Floats, scene: Scene, random: np.random.Generator, *, tissue: NDArray[np.bool_], tumour: NDArray[np.bool_], mpp: float
) -> None:
    """Adds every nucleus: few and slender in stroma, in rows in glands, small and dense among lymphocytes, large and crowded in tumour."""
    slender = _stamps(random, mpp, length=(4.5, 7.5), width=(1.5, 2.4), depth=(0.7, 1.0), ragged=0.05)
    round_ = _stamps(random, mpp, length=(3.2, 4.4), width=(2.6, 3.6), depth=(0.6, 0.9), ragged=0.05)
    small = _stamps(random, mpp, length=(2.4, 3.0), width=(2.3, 2.9), depth=(1.1, 1.5), ragged=0.03)
    large = _stamps(random, mpp, length=(4.6, 8.0), width=(3.6, 6.0), depth=(0.8, 1.4), ragged=0.07)
    _scatter(canvas, random, slender, _everywhere(random, scene, spacing=26), tissue & ~tumour, mpp)
    rows = [_ring(gland, 0.78, max(8, round(gland.radius * 0.72))) + random.normal(0, 0.8, 2) for gland in scene.glands]
    _scatter(canvas, random, round_, np.concatenate(rows) if rows else np.empty((0, 2)), tissue & ~tumour, mpp)
    for x, y, radius in scene.lymphocytes:
        within = random.normal(0, radius / 2, (int(radius**2 / 26), 2))
        _scatter(canvas, random, small, np.array([x, y]) + within, tissue & ~tumour, mpp)
    _scatter(canvas, random, large, _everywhere(random, scene, spacing=11), tumour, mpp)


def _everywhere(random: np.random.Generator, scene: Scene, *, spacing: float) -> Points:
    """A jittered grid over the whole slide."""
    x, y = np.meshgrid(np.arange(0, scene.width, spacing), np.arange(0, scene.height, spacing))
    return np.stack([x.ravel(), y.ravel()], axis=1) + random.uniform(-0.45, 0.45, (x.size, 2)) * spacing


def _stamps(
    random: np.random.Generator,
    mpp: float,
    *,
    length: tuple[float, float],
    width: tuple[float, float],
    depth: tuple[float, float],
    ragged: float,
) -> list[Floats]:
    """Nuclei seen from above: half lengths in micrometres, stain where they are deepest."""
    reach = int(np.ceil(1.3 * length[1] / mpp)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32) * mpp
    stamps = []
    for _ in range(_STAMPS):
        turn, a, b = random.uniform(0, np.pi), random.uniform(*length), random.uniform(*width)
        u, v = (np.cos(turn) * x + np.sin(turn) * y) / a, (np.cos(turn) * y - np.sin(turn) * x) / b
        angle = np.arctan2(v, u)
        edge = 1 + ragged * (np.cos(2 * angle + random.uniform(0, 6)) + np.cos(3 * angle + random.uniform(0, 6)))
        distance = np.hypot(u, v) / edge
        inside = np.clip((1 - distance) * min(a, b) / max(mpp, 0.4), 0, 1)
        chromatin = 0.8 + 0.2 * ndimage.gaussian_filter(random.normal(0, 1, x.shape), 0.9 / mpp) * (1.6 / mpp)
        stamps.append((random.uniform(*depth) * inside * np.clip(chromatin, 0.4, 1.4) * (0.75 + 0.25 * distance)).astype(np.float32))
    return stamps


def _scatter(
    canvas: Floats, random: np.random.Generator, stamps: list[Floats], places: Points, allowed: NDArray[np.bool_], mpp: float
) -> None:
    kinds = random.integers(len(stamps), size=len(places))
    reach = stamps[0].shape[0] // 2
    columns, rows = np.rint(places / mpp).astype(np.int64).T if len(places) else np.empty((2, 0), np.int64)
    height, width = canvas.shape
    inside = (columns >= reach) & (rows >= reach) & (columns < width - reach) & (rows < height - reach)
    for column, row, kind in zip(columns[inside], rows[inside], kinds[inside], strict=True):
        if allowed[row, column]:
            part = canvas[row - reach : row + reach + 1, column - reach : column + reach + 1]
            np.maximum(part, stamps[kind], out=part)

"""The video colonoscope of the colonoscopy phantoms: exposure, focus, movement, noise, the black frame around the picture and its marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Camera", "aperture", "develop", "draw_camera", "picture_axes"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One scope and processor. Lengths are parts of the picture's shorter side."""

    window: Literal["octagon", "rounded", "disc"]
    corner: float
    """How much of the corners is cut, 0 to 1."""
    inset: tuple[float, float]
    """Height and width of the black box at the bottom left; (0, 0): none."""
    marks: int
    """Seed of the text-like marks; negative: none."""
    brightness: float
    balance: Floats
    """[3]: white balance."""
    defocus: float
    movement: tuple[float, float]
    """Down and right, during the exposure."""
    fringe: float
    """Shift between the red and the blue picture, which such scopes take one after the other."""
    sharpening: float
    noise: float
    vignette: float
    bubbles: int


def draw_camera(rng: np.random.Generator) -> Camera:
    """A scope at random."""
    swing = rng.uniform(0, 0.025) if rng.uniform() < 0.35 else 0.0
    towards = rng.uniform(0, 2 * np.pi)
    return Camera(
        window=rng.choice(np.array(["octagon", "rounded", "disc"]), p=[0.74, 0.16, 0.1]).item(),
        corner=rng.uniform(0.4, 0.62),
        inset=(rng.uniform(0.3, 0.46), rng.uniform(0.34, 0.42)) if rng.uniform() < 0.4 else (0.0, 0.0),
        marks=int(rng.integers(2**31)) if rng.uniform() < 0.65 else -1,
        brightness=rng.uniform(0.8, 1.3) if rng.uniform() < 0.75 else rng.uniform(1.3, 2.0),
        balance=rng.uniform([0.97, 0.92, 0.85], [1.03, 1.08, 1.2]).astype(np.float32),
        defocus=rng.uniform(0.0012, 0.0022) if rng.uniform() < 0.75 else rng.uniform(0.0022, 0.0045),
        movement=(swing * np.sin(towards), swing * np.cos(towards)),
        fringe=rng.uniform(0, 0.004) if rng.uniform() < 0.4 else 0.0,
        sharpening=rng.uniform(0.2, 0.9),
        noise=rng.uniform(0.004, 0.016),
        vignette=rng.uniform(0.05, 0.3),
        bubbles=int(rng.integers(4, 30)) if rng.uniform() < 0.18 else 0,
    )


def picture_axes(height: int, width: int) -> tuple[Floats, Floats]:
    """Places of the columns and of the rows, in units of half the shorter side from the centre."""
    half = min(height, width) / 2
    across = (np.arange(width) - (width - 1) / 2) / half
    down = (np.arange(height) - (height - 1) / 2) / half
    return across.astype(np.float32), down.astype(np.float32)


def aperture(camera: Camera, height: int, width: int) -> Bools:
    """Where the picture is not black, [height, width]."""
    across, down = picture_axes(height, width)
    across, down = np.abs(across / np.abs(across).max())[None, :], np.abs(down / np.abs(down).max())[:, None]
    if camera.window == "octagon":
        inside = across + down <= 2 - camera.corner
    elif camera.window == "rounded":
        radius = camera.corner
        inside = np.hypot(np.maximum(across - (1 - radius), 0), np.maximum(down - (1 - radius), 0)) <= radius
    else:
        inside = np.hypot(across, down) <= 1.32 - 0.5 * camera.corner
    side = min(height, width)
    rows, columns = round(camera.inset[0] * side), round(camera.inset[1] * side)
    if rows:
        inside[height - rows :, :columns] = False
    return inside


def develop(camera: Camera, diffuse: Floats, film: Floats, inside: Bools, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture [H, W, 3] from the light diffuse [3, H, W] and film [H, W]; ``rng`` makes noise and bubbles."""
    height, width = inside.shape
    side = min(height, width)
    light = diffuse * camera.balance[:, None, None]
    # Automatic exposure, as the processor does it: the middle of the picture counts, single highlights don't.
    brightness = light[:, ::4, ::4].max(axis=0)[inside[::4, ::4]]
    level = np.percentile(brightness, 55) + 0.12 * np.percentile(brightness, 95) if len(brightness) else 1.0
    gain = np.float32(camera.brightness * 0.95 / max(float(level), 1e-6))
    light *= gain
    light += film * np.float32(0.9 * min(float(gain), 4.0))
    across, down = picture_axes(height, width)
    light *= 1 - np.float32(camera.vignette) * np.clip((across[None, :] ** 2 + down[:, None] ** 2 - 0.3) / 1.4, 0, 1)
    if camera.bubbles:
        _add_bubbles(light, camera.bubbles, rng)
    np.clip(light, 0, 30, out=light)
    np.expm1(-light, out=light)
    picture = np.maximum(-light, 0) ** np.float32(0.6)

    for channel, shift in enumerate((-0.5, 0.0, 0.5)):
        offset = (shift * camera.fringe * side, 0.3 * shift * camera.fringe * side)
        picture[channel] = _expose(picture[channel], camera, side, offset)
    picture += (rng.standard_normal(picture.shape, dtype=np.float32)) * (camera.noise * (1.25 - picture))
    picture *= inside
    if camera.marks >= 0:
        _write_marks(picture, camera)
    return np.ascontiguousarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def _expose(plane: Floats, camera: Camera, side: int, offset: tuple[float, float]) -> Floats:
    """One colour plane, blurred by focus and movement, shifted, and sharpened by the processor."""
    sigma = camera.defocus * side
    down, right = (distance * side for distance in camera.movement)
    steps = int(max(abs(down), abs(right)))
    if steps:
        moments = [(-down * t + offset[0], -right * t + offset[1]) for t in np.linspace(-0.5, 0.5, steps + 1)]
        plane = np.mean([_shifted(plane, round(r), round(c)) for r, c in moments], axis=0, dtype=np.float32)
    else:
        plane = _shifted(plane, round(offset[0]), round(offset[1]))
    plane = ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=2.5)
    soft = ndimage.uniform_filter(plane, max(3, round(3 * side / 352) | 1), mode="nearest")
    plane += (plane - soft) * np.float32(camera.sharpening)
    return plane


def _shifted(plane: Floats, down: int, right: int) -> Floats:
    """The plane moved by whole pixels, its edge repeated."""
    if not down and not right:
        return plane
    rows = np.clip(np.arange(plane.shape[0]) - down, 0, plane.shape[0] - 1)
    columns = np.clip(np.arange(plane.shape[1]) - right, 0, plane.shape[1] - 1)
    return plane[rows][:, columns]


def _add_bubbles(light: Floats, count: int, rng: np.random.Generator) -> None:
    """A patch of foam: thin bright rims, a dim inside, a glint; in place."""
    height, width = light.shape[1:]
    side = min(height, width)
    patch = rng.uniform(0.2, 0.8, 2) * (height, width)
    for _ in range(count):
        row, column = patch + rng.normal(0, 0.07 * side, 2)
        radius = max(1.6, side * rng.uniform(0.006, 0.03))
        top, left = max(0, int(row - radius - 2)), max(0, int(column - radius - 2))
        part = light[:, top : max(top, int(row + radius + 3)), left : max(left, int(column + radius + 3))]
        rows, columns = np.mgrid[top : top + part.shape[1], left : left + part.shape[2]]
        away = np.hypot(rows - row, columns - column) / radius
        rim = np.exp(-(((away - 0.9) * radius / 0.8) ** 2))
        glint = np.exp(-(np.hypot(rows - row + 0.45 * radius, columns - column + 0.35 * radius) ** 2) / (0.08 * radius**2 + 0.3))
        part *= (1 - 0.15 * (away < 0.9) + 0.35 * rim).astype(np.float32)
        part += (1.3 * glint + 0.06 * rim).astype(np.float32)


def _write_marks(picture: Floats, camera: Camera) -> None:
    """Rows of small white signs at the left, where processors print date, time and settings; meaningless by construction; in place."""
    rng = np.random.Generator(np.random.PCG64(camera.marks))
    height, width = picture.shape[1:]
    side = min(height, width)
    dot = max(1, round(side / 400))
    row = int(rng.uniform(0.26, 0.34) * height)
    left = int(rng.uniform(0.0, 0.02) * width)
    for length in rng.choice([4, 6, 8, 10], size=rng.integers(2, 6)):
        for k in range(length):
            sign = rng.uniform(size=(5, 3)) < 0.55
            sign = sign.repeat(dot, axis=0).repeat(dot, axis=1)
            top, start = row, left + k * 4 * dot
            place = picture[:, top : top + sign.shape[0], start : start + sign.shape[1]]
            np.maximum(place, 0.82 * sign[: place.shape[1], : place.shape[2]], out=place)
        row += rng.choice([7, 8, 14]) * dot

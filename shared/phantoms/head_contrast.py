"""How bright each tissue of the head phantoms is in each sequence, in arbitrary units: white matter in T1 is about 0.85.

The values are chosen, not measured; what they keep is the order that a radiologist expects: fluid dark in T1 and FLAIR and bright in T2,
white matter brighter than grey in T1 and darker in T2, oedema bright in T2 and FLAIR and somewhat dark in T1, and after gadolinium only
vessels, dura and the parts of a tumour without a blood-brain barrier brighter than before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.phantoms.head_anatomy import Anatomy
from shared.phantoms.head_lesions import Lesion
from shared.phantoms.head_settings import SEQUENCES
from shared.phantoms.head_template import TISSUES

__all__ = ["BRIGHTNESS", "Contrast", "draw_contrast", "intensities"]

Floats = NDArray[np.float32]

BRIGHTNESS: dict[str, tuple[float, float, float, float]] = {
    "white": (0.85, 0.86, 0.50, 0.56),
    "grey": (0.62, 0.65, 0.70, 0.74),
    "csf": (0.22, 0.22, 1.30, 0.10),
    "blood": (0.30, 1.25, 0.22, 0.22),
    "bone": (0.06, 0.06, 0.06, 0.05),
    "fat": (1.10, 1.10, 0.80, 0.95),
    "muscle": (0.48, 0.62, 0.28, 0.36),
    "necrosis": (0.36, 0.34, 1.10, 0.66),
    "enhancing": (0.60, 1.28, 0.84, 0.92),
    "oedema": (0.60, 0.60, 1.06, 1.14),
    "meningioma": (0.62, 1.20, 0.74, 0.82),
}
"""In the order of ``SEQUENCES``: T1, T1 after gadolinium, T2, FLAIR."""

_ROUGHNESS = {"necrosis": 0.12, "enhancing": 0.14, "oedema": 0.08, "meningioma": 0.05}
"""Variation within a part of a tumour, as a standard deviation relative to its brightness."""
_LESION_STEP = 0.6
"""mm between the places at which a lesion's edge may fall at the finest."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One patient's brightness in each sequence."""

    tissues: Floats
    """[7, 4], rows as ``TISSUES``, columns as ``SEQUENCES``."""
    parts: dict[str, Floats]
    """[4] for each part of a lesion."""


def draw_contrast(rng: np.random.Generator) -> Contrast:
    """``BRIGHTNESS`` with a few percent of chance, too little to change an order that matters."""
    drawn = {name: np.array(values, np.float32) for name, values in BRIGHTNESS.items()}
    drawn = {name: values * np.exp(0.03 * rng.uniform(-1, 1, len(SEQUENCES))).astype(np.float32) for name, values in drawn.items()}
    return Contrast(tissues=np.stack([drawn[name] for name in TISSUES]), parts={name: drawn[name] for name in _ROUGHNESS})


def intensities(anatomy: Anatomy, lesions: list[Lesion], contrast: Contrast, points: Floats, step: int, width: float) -> Floats:
    """The signal [N, 4] at points [3, N], each averaged over about ``step`` mm; a lesion's edge is ``width`` mm wide."""
    signal = anatomy.tissues(points, step) @ contrast.tissues
    for lesion in lesions:
        near = lesion.near(points)
        if not len(near):
            continue
        levels = lesion.levels.at(points[:, near])
        texture = levels[:, -1:]
        here = signal[near]
        if lesion.kind == "meningioma":  # a thin cleft of fluid parts it from the brain
            cleft = np.float32(0.6) * _within(levels[:, 0] - 1.3, width)
            here += cleft[:, None] * (contrast.tissues[TISSUES.index("csf")] - here)
        for index, part in reversed(list(enumerate(lesion.parts))):
            # Oedema fades out, and spares what it goes through a little.
            share = _within(levels[:, index], width + (1.5 if part == "oedema" else 0)) * np.float32(0.85 if part == "oedema" else 1)
            bright = contrast.parts[part] * (1 + np.float32(_ROUGHNESS[part]) * np.clip(texture, -2, 2))
            here += share[:, None] * (bright - here)
        signal[near] = here
    return signal


def _within(level: Floats, width: float) -> Floats:
    """1 within the border, 0 outside, linear over ``width`` mm across it."""
    return np.clip(np.float32(0.5) - level / np.float32(max(width, _LESION_STEP)), 0, 1)

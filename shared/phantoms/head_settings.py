"""The settings of the head phantoms. Imports neither numpy nor the template, so that a command line that offers them answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.config import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["SEQUENCES", "HeadSequence", "HeadSettings", "LesionKind"]

HeadSequence = Literal["t1", "t1ce", "t2", "flair"]
LesionKind = Literal["glioma", "meningioma"]
SEQUENCES: tuple[HeadSequence, ...] = ("t1", "t1ce", "t2", "flair")
"""T1, T1 after gadolinium, T2 and fluid-attenuated T2, in the order of BraTS."""


@dataclass(kw_only=True)
class HeadSettings:
    """What is in the head and how it is scanned. None means: drawn anew for each case."""

    kind: LesionKind = "glioma"
    """glioma: necrotic core (label 1), oedema (2) and enhancing rim (4), as in BraTS; meningioma: the tumour with its dural tail (1)."""
    lesions: NonNegativeInt | None = None
    """How many, at most 4. Drawn: none in 10 % of the cases, two in 15 %, else one."""
    volume_ml: tuple[PositiveFloat, PositiveFloat] = (2.0, 40.0)
    """Smallest and largest tumour without its oedema; drawn evenly in proportion."""
    mass_effect: Fraction = 0.6
    """The part of the tumour's volume by which the brain gives way; 0: it replaces what was there."""
    deformation_mm: NonNegativeFloat = 3.0
    """How far the anatomy departs from the average head, as a standard deviation; at most 6."""
    sequences: tuple[HeadSequence, ...] = SEQUENCES
    skull_stripped: bool = False
    """Zero outside the brain and its fluid, as in BraTS."""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Voxels along the axes of the array; None: as many as the head needs. A small one is laid so that it holds the lesions."""
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Along the axes of the array, 0.5 to 10. Drawn: from 1 mm isotropic to 1 x 1 x 4 mm."""
    orientation: str | None = None
    """Where the axes of the array point, such as RAS or LPI. Drawn: any of the 48."""
    oblique_deg: NonNegativeFloat = 8.0
    """How far the scan is turned off these directions at most; at most 30."""
    bias: Fraction = 0.25
    """How much brighter or darker than the middle the coil makes the margins, at most."""
    noise: Fraction = 0.03
    """Standard deviation of the noise in either channel, as a part of the white matter's intensity; from half of this to this."""

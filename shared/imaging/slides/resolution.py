"""How large a slide's pixels are, in micrometres: read from the file or given by a person, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from shared.errors import InputError, UserError

__all__ = ["LARGEST_MPP", "SMALLEST_MPP", "Resolution"]

SMALLEST_MPP, LARGEST_MPP = 0.05, 10.0
"""A scanner's level 0 lies between: 0.05 is beyond what light resolves, 10 shows no cells."""
_UNEQUAL = 0.05
"""How far the two axes may differ: tiles are squares of pixels and must be squares of tissue."""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What is known of a level-0 pixel's size."""

    x: float | None = None
    y: float | None = None
    """Micrometres, as found; None if nothing is stated."""
    source: str = ""
    """Where it was found, such as "aperio.MPP"."""

    @classmethod
    def given(cls, mpp: float) -> Self:
        """By a person.

        Raises:
            UserError: if it cannot be a level-0 pixel's.
        """
        if not SMALLEST_MPP <= mpp <= LARGEST_MPP:
            raise UserError(
                f"{mpp:g} micrometres per pixel were given, and level 0 of a slide has {SMALLEST_MPP:g} to {LARGEST_MPP:g} "
                "(0.25 for a 40x objective, 0.5 for 20x)."
            )
        return cls(x=mpp, y=mpp, source="given")

    def mpp(self, name: str) -> float:
        """Micrometres per level-0 pixel, the mean of both axes.

        Raises:
            InputError: if none is stated, or what is stated cannot be true; says what to give instead.
        """
        remedy = "Give it yourself: --mpp 0.25 for a 40x objective, 0.5 for 20x, or a table of them with --mpp_table."
        if self.x is None or self.y is None:
            raise InputError(f"{name}: does not state its resolution in micrometres per pixel. {remedy}")
        if not (SMALLEST_MPP <= self.x <= LARGEST_MPP and SMALLEST_MPP <= self.y <= LARGEST_MPP):
            raise InputError(
                f"{name}: states {self.x:g} x {self.y:g} micrometres per pixel ({self.source}), and level 0 of a slide has "
                f"{SMALLEST_MPP:g} to {LARGEST_MPP:g}. {remedy}"
            )
        if abs(self.x - self.y) > _UNEQUAL * max(self.x, self.y):
            raise InputError(
                f"{name}: states {self.x:g} micrometres per pixel across and {self.y:g} down ({self.source}); pixels are expected to be "
                f"square. {remedy}"
            )
        return (self.x + self.y) / 2

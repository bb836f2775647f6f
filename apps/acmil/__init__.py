"""ACMIL: whole slides classified from their labels alone (Zhang et al., ECCV 2024).

from apps.acmil import ACMILPredictor
prediction = ACMILPredictor.load("runs/acmil/model").predict("slide.svs")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.acmil.inference import ACMILPredictor, SlidePrediction
    from apps.acmil.model import ACMIL, MultiHeadACMIL

__all__ = ["ACMIL", "ACMILPredictor", "MultiHeadACMIL", "SlidePrediction"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a name that needs it is asked for, so that `apps.acmil --help` answers at once."""
    if name in ("ACMILPredictor", "SlidePrediction"):
        from apps.acmil import inference

        return getattr(inference, name)
    if name in ("ACMIL", "MultiHeadACMIL"):
        from apps.acmil import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

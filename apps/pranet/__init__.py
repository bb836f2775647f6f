"""PraNet: polyps in colonoscopy frames (Fan et al., MICCAI 2020).

from apps.pranet import PraNetPredictor
prediction = PraNetPredictor.load("runs/pranet/model").predict("frame.png")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.pranet.inference import PolypPrediction, PraNetPredictor
    from apps.pranet.model import PraNet, UNet

__all__ = ["PolypPrediction", "PraNet", "PraNetPredictor", "UNet"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a name that needs it is asked for, so that `apps.pranet --help` answers at once."""
    if name in ("PolypPrediction", "PraNetPredictor"):
        from apps.pranet import inference

        return getattr(inference, name)
    if name in ("PraNet", "UNet"):
        from apps.pranet import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

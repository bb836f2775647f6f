"""AGUNet and DAUNet: meningioma in T1-weighted MRI (Bouget et al., Frontiers in Radiology 2021).

from apps.agunet import AGUNetPredictor
prediction = AGUNetPredictor.load("runs/agunet/model").predict("t1c.nii.gz")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.agunet.inference import AGUNetPredictor
    from apps.agunet.model import AGUNet, DAUNet

__all__ = ["AGUNet", "AGUNetPredictor", "DAUNet"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a name that needs it is asked for, so that `apps.agunet --help` answers at once."""
    if name == "AGUNetPredictor":
        from apps.agunet import inference

        return inference.AGUNetPredictor
    if name in ("AGUNet", "DAUNet"):
        from apps.agunet import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

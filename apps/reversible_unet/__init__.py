"""The partially reversible 3D U-Net: glioma in four MRI sequences (Brügger et al., MICCAI 2019; Pendse et al., BrainLes 2020).

from apps.reversible_unet import ReversibleUNetPredictor
prediction = ReversibleUNetPredictor.load("runs/reversible_unet/model").predict("case_folder")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.reversible_unet.inference import ReversibleUNetPredictor
    from apps.reversible_unet.model import ReversibleUNet, UNet3D

__all__ = ["ReversibleUNet", "ReversibleUNetPredictor", "UNet3D"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a name that needs it is asked for, so that `apps.reversible_unet --help` answers at once."""
    if name == "ReversibleUNetPredictor":
        from apps.reversible_unet import inference

        return inference.ReversibleUNetPredictor
    if name in ("ReversibleUNet", "UNet3D"):
        from apps.reversible_unet import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

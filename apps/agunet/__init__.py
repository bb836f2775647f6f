"""AGUNet and DAUNet: meningioma in T1-weighted MRI (Bouget et al., Frontiers in Radiology 2021).

from apps.agunet import AGUNet
logits = AGUNet()(volume)  # [B, 1, X, Y, Z] to [B, 2, X, Y, Z]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.agunet.model import AGUNet, DAUNet

__all__ = ["AGUNet", "DAUNet"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a name that needs it is asked for, so that `apps.agunet --help` answers at once."""
    if name in ("AGUNet", "DAUNet"):
        from apps.agunet import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Brain encoders: from what a person saw to the responses of their brain, unit by unit (Hosseini Adeli et al., NeurIPS 2025, and others).

from apps.brain_encoders import BrainEncoderPredictor
prediction = BrainEncoderPredictor.load("runs/brain_encoders/model").predict("picture.png")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.brain_encoders.inference import BrainEncoderPredictor, BrainPrediction
    from apps.brain_encoders.model import BrainEncoder, RoutingTransformer
    from apps.brain_encoders.wave import WaveEncoder

__all__ = ["BrainEncoder", "BrainEncoderPredictor", "BrainPrediction", "RoutingTransformer", "WaveEncoder"]

_HOME = {
    "BrainEncoder": "model",
    "BrainEncoderPredictor": "inference",
    "BrainPrediction": "inference",
    "RoutingTransformer": "model",
    "WaveEncoder": "wave",
}


def __getattr__(name: str) -> Any:
    """Imports torch only when a name that needs it is asked for, so that `apps.brain_encoders --help` answers at once."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

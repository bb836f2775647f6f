"""The phantoms of this app; labelled volumes are read by ``shared.segmentation.cases``."""

from apps.reversible_unet.config import ReversiblePhantomConfig
from shared.phantoms.head_settings import SEQUENCES
from shared.segmentation.running import make_heads

__all__ = ["make_phantoms"]


def make_phantoms(config: ReversiblePhantomConfig) -> None:
    """Writes head phantoms in the layout of BraTS, in its four sequences unless others are asked for."""
    make_heads(config, sequences=SEQUENCES, train="apps.reversible_unet train")

"""The phantoms of this app; labelled volumes are read by ``shared.segmentation.cases``."""

from apps.agunet.config import AGUNetPhantomConfig
from shared.segmentation.running import make_heads

__all__ = ["make_phantoms"]


def make_phantoms(config: AGUNetPhantomConfig) -> None:
    """Writes head phantoms in the layout of BraTS, with T1 after contrast agent unless other sequences are asked for."""
    make_heads(config, sequences=("t1ce",), train="apps.agunet train")

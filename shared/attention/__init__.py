"""Attention blocks for images, volumes and sequences. Pure torch: install nothing else to use them. README.md says how to choose one."""

import importlib
import pkgutil

from shared.attention.attend import attend, explain_backend
from shared.attention.cost import Cost
from shared.attention.dropin import dropin
from shared.attention.dual import ChannelAttention, PositionAttention
from shared.attention.maps import AttentionMap, GivenMap, LinearMap, SoftmaxMap
from shared.attention.multihead import MultiHeadAttention
from shared.attention.recording import Recording, record
from shared.attention.registry import cost_of, create, find, list_blocks, load_published, register, settings_of
from shared.attention.squeeze import ChannelSqueeze, ProjectExcite, SpatialChannelSqueeze, SpatialSqueeze

# DEV ONLY: replaced by explicit imports at integration.
import warnings
for _m in pkgutil.iter_modules(__path__):
    if _m.name != "__main__":
        try:
            importlib.import_module(f"{__name__}.{_m.name}")
        except Exception as _e:
            warnings.warn(f"{_m.name}: {_e!r}")
from shared.attention.reverse import ReverseAttention

"""From settings to a network."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from apps.acmil.baselines import ABMIL, DSMIL, IBMIL, MaxMIL, MeanMIL, MultiHeadMIL
from apps.acmil.clam import Clam, softmax_one
from apps.acmil.config import ModelConfig
from apps.acmil.dtfd import DTFD
from apps.acmil.model import ACMIL, Answer, MultiHeadACMIL
from apps.acmil.transmil import TransMIL
from shared.errors import UserError

__all__ = ["NAMES", "Network", "build", "default_channels"]

NAMES = {
    "acmil_ga": "ACMIL-GA",
    "acmil_mha": "ACMIL-MHA",
    "abmil": "ABMIL",
    "mha": "multi-head attention",
    "mean": "mean pooling",
    "max": "max pooling",
    "clam_sb": "CLAM-SB",
    "clam_mb": "CLAM-MB",
    "clam_mb_published": "CLAM-MB of the ACMIL repository",
    "transmil": "TransMIL",
    "dtfd": "DTFD-MIL",
    "dsmil": "DSMIL",
    "ibmil": "IBMIL",
}
"""How people know them."""


class Network(Protocol):
    """What every network of this app does."""

    def __call__(self, bag: Tensor) -> Answer:
        """bag: [N, features], one slide."""

    def losses(self, bag: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The named terms whose sum is minimised."""


def default_channels(features: int) -> int:
    """The inner width that the authors pair with an encoder's: 384 with 128, 512 with 256, 768 with 384, 1024 with 512, 1536 with 768."""
    return max(16, features // 3 if features == 384 else features // 2) // 8 * 8


def build(config: ModelConfig, *, features: int, classes: int):
    """The network with fresh weights.

    Raises:
        UserError: if the settings contradict each other.
    """
    channels = config.channels or default_channels(features)
    sizes = {"features": features, "classes": classes, "channels": channels}
    attention = {"attention_channels": config.attention_channels}
    branches = {"branches": config.branches, "top_instances": config.top_instances, "drop": config.drop}
    clam = {
        "samples": config.samples,
        "subtyping": classes > 2 if config.subtyping is None else config.subtyping,
        "instance_weight": config.instance_weight,
        "dropout": 0.25 if config.dropout is None else config.dropout,
    }
    dropout = {"dropout": 0.1 if config.dropout is None else config.dropout}
    try:
        match config.name:
            case "acmil_ga":
                return ACMIL(**sizes, **attention, **branches, blocks=config.blocks)
            case "acmil_mha":
                return MultiHeadACMIL(**sizes, **branches, **dropout, blocks=config.blocks)
            case "abmil":
                return ABMIL(**sizes, **attention, blocks=config.blocks)
            case "mha":
                return MultiHeadMIL(**sizes, **dropout, blocks=config.blocks)
            case "mean":
                return MeanMIL(**sizes)
            case "max":
                return MaxMIL(**sizes)
            case "clam_sb":
                return Clam(**sizes, **attention, **clam)
            case "clam_mb":
                return Clam(**sizes, **attention, **clam, multi_branch=True)
            case "clam_mb_published":
                return Clam(**sizes, **attention, **clam, multi_branch=True, normalise=softmax_one)
            case "transmil":
                return TransMIL(**sizes, **dropout)
            case "dtfd":
                return DTFD(**sizes, **attention, groups=config.groups, distillation=config.distillation, distilled=config.distilled)
            case "dsmil":
                return DSMIL(**sizes)
            case "ibmil":
                return IBMIL(**sizes, **attention, prototypes=config.prototypes)
    except ValueError as error:
        raise UserError(f"model: {error}") from error

"""What a bundle says of itself besides its weights, and the network that this describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.brain_encoders.config import BackboneConfig, ModelConfig
from apps.brain_encoders.features import backbone_of
from apps.brain_encoders.model import BrainEncoder, FactorisedReadout, LinearReadout, RidgeReadout, RoutingTransformer
from apps.brain_encoders.readout import QueryReadout, UnitReadout
from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace
from shared.config import plain
from shared.errors import UserError

__all__ = ["Settings", "build_readout", "query_membership"]

APP = "brain_encoders"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything besides the weights that decides a prediction; the bundle's config.yaml."""

    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    features: tuple[int, int, int]
    """Channels, height and width of the features."""
    hemispheres: tuple[int, ...]
    """Units of each."""
    queries: tuple[str, ...] = ()
    """What each query stands for; empty for models without queries, and where each unit has its own."""
    pool: int = 1
    """Of ridge."""
    components: int = 0
    """Of ridge's projection; 0: none."""

    def network(self, membership: Tensor | None, *, weights: bool) -> BrainEncoder:
        """The whole network, its readout with fresh weights.

        Args:
            membership: [queries, units], for models that need it.
            weights: give the backbone the weights that the settings ask for; False: random ones.

        Raises:
            UserError: if the settings describe none.
        """
        return BrainEncoder(backbone=backbone_of(self.backbone, weights=weights), readout=build_readout(self, membership))

    def to_dict(self) -> dict[str, Any]:
        """As the bundle's config.yaml keeps it: nothing that points outside the bundle."""
        backbone = dataclasses.replace(self.backbone, pretrained=False, weights=None)
        return plain(dataclasses.replace(self, backbone=backbone))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: Path) -> Settings:
        """The opposite of ``to_dict``; raises UserError, naming ``source``, if it is not one."""
        try:
            backbone = BackboneConfig(**{**values["backbone"], "options": tuple(values["backbone"]["options"])})
            tuples = {name: tuple(values[name]) for name in ("features", "hemispheres", "queries")}
            return cls(**{**values, **tuples, "model": ModelConfig(**values["model"]), "backbone": backbone})
        except (KeyError, TypeError) as error:
            raise UserError(f"{source / 'config.yaml'}: does not describe a brain encoder ({error}). Copy the bundle again.") from error


def build_readout(settings: Settings, membership: Tensor | None) -> nn.Module:
    """The readout with fresh weights.

    Raises:
        UserError: if the settings contradict each other.
    """
    model, (channels, height, width), units = settings.model, settings.features, sum(settings.hemispheres)
    try:
        if model.name == "ridge":
            pool = (settings.pool, settings.pool)
            components = settings.components or None
            return RidgeReadout(feature_channels=channels, grid=(height, width), units=units, components=components, pool=pool)
        if model.name == "linear":
            return LinearReadout(feature_channels=channels, grid=(height, width), units=units, stride=model.stride)
        reads = _reads(model, membership, units, channels if model.name == "factorised" else model.channels)
        if model.name == "factorised":
            return FactorisedReadout(feature_channels=channels, grid=(height, width), readout=reads)
        return RoutingTransformer(
            feature_channels=channels,
            readout=reads,
            channels=model.channels,
            heads=model.heads,
            inner_channels=model.inner_channels,
            encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers,
            norm_first=model.norm_first,
            memory_layer=model.memory_layer,
            projects_values=model.name == "transformer",
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def _reads(model: ModelConfig, membership: Tensor | None, units: int, channels: int) -> QueryReadout | UnitReadout:
    if model.queries == "units":
        return UnitReadout(units=units, channels=channels)
    if membership is None:
        raise UserError("this model reads the tokens of regions or hemispheres, and nothing says which unit belongs to which.")
    return QueryReadout(membership=membership, channels=channels)


def query_membership(
    model: ModelConfig, space: SurfaceSpace | VolumeSpace | TableSpace, regions: Mapping[str, NDArray[np.bool_]]
) -> tuple[tuple[str, ...], Tensor | None]:
    """The queries' names, and which of them each unit reads: [Q, V]; neither, where each unit has its own.

    Raises:
        UserError: if regions are asked for and there are none.
    """
    if model.name in ("ridge", "linear") or model.queries == "units":
        return (), None
    sides = ("left", "right") if len(space.hemispheres) == 2 else ("",)
    units = sum(space.hemispheres)
    start, names, rows = 0, [], []
    if model.queries == "regions" and not regions:
        raise UserError("model.queries regions needs regions, and this study has none. Take hemispheres or units, or add regions.npz.")
    for side, count in zip(sides, space.hemispheres, strict=True):
        here = np.zeros(units, dtype=bool)
        here[start : start + count] = True
        start += count
        masks = (
            {"all": np.ones(units, dtype=bool)} if model.queries == "hemispheres" else {**regions, "elsewhere": _in_none(regions, units)}
        )
        for name, mask in masks.items():
            if (mask & here).any():
                names.append(f"{side} {name}".strip())
                rows.append(mask & here)
    membership = torch.from_numpy(np.stack(rows)).float()
    return tuple(names), membership / membership.sum(0) if model.overlap == "mean" else membership


def _in_none(regions: Mapping[str, NDArray[np.bool_]], units: int) -> NDArray[np.bool_]:
    return ~np.any([*regions.values(), np.zeros(units, dtype=bool)], axis=0)

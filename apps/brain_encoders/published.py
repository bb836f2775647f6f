"""A checkpoint of the authors' program as a bundle."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.brain_encoders.algonauts import NOWHERE, ROI_NAMES, is_algonauts, published_membership, read_algonauts_space, read_regions
from apps.brain_encoders.backbones import published_dino
from apps.brain_encoders.config import BackboneConfig, BrainConvertConfig, ModelConfig
from apps.brain_encoders.features import backbone_of
from apps.brain_encoders.inference import Brain, BrainEncoderPredictor
from apps.brain_encoders.names import BACKBONE_PREFIX, from_published
from apps.brain_encoders.preprocessing import padded_side
from apps.brain_encoders.settings import Settings
from apps.brain_encoders.space import SurfaceSpace, TableSpace
from shared.arrays import load_npz
from shared.bundle import load_weights, provenance, read_checkpoint
from shared.errors import UserError

__all__ = ["convert"]


def convert(config: BrainConvertConfig) -> None:
    """Writes a bundle with the authors' readout on its backbone.

    The backbone's weights are in the checkpoint only if somebody put them there; else they come as for training, by
    ``backbone.pretrained`` or ``backbone.weights``.
    """
    # The authors' files also hold the settings of their run, as an argparse.Namespace: harmless, but refused unless it is named here.
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = read_checkpoint(config.published)
    try:
        weights = from_published(state, norm_first=config.norm_first)
    except UserError as error:
        raise UserError(f"{config.published}: {error}") from error
    hemispheres = tuple(len(state[f"{side}_embed.0.weight"]) for side in ("lh", "rh"))
    model, membership, queries = _model(config, state, weights, hemispheres)
    if membership is not None:
        weights["readout.membership"] = membership
    backbone_state = {name.removeprefix(BACKBONE_PREFIX): value for name, value in state.items() if name.startswith(BACKBONE_PREFIX)}
    backbone = config.backbone
    if not backbone_state and not backbone.pretrained and backbone.weights is None and backbone.source != "gabor":
        raise UserError(
            f"{config.published}: holds no backbone, as usual. Name its weights with --backbone.weights dinov2_vitb14_pretrain.pth, or "
            "let them be downloaded with --backbone.pretrained true."
        )
    settings = Settings(model=model, backbone=backbone, features=_shape(backbone), hemispheres=hemispheres, queries=queries)
    network = settings.network(membership, weights=not backbone_state)
    if backbone_state:
        grid = tuple(network.backbone.network.patch_embed.grid_size)
        load_weights(network.backbone.network, published_dino(backbone_state, grid=grid), source=config.published)
    load_weights(network.readout, weights, source=config.published)
    space, regions = _place(config.subject, hemispheres)
    facts = provenance(converted_from=config.published.name, weights_licence="of whoever trained it; the authors' program is GPL-3.0")
    brain = Brain(space, regions)
    BrainEncoderPredictor(network, settings, brain, facts=facts).save_bundle(config.output)
    print(f"{config.output}: written. Try: apps.brain_encoders infer --model {config.output} --input PICTURES --output results")


def _shape(backbone: BackboneConfig) -> tuple[int, int, int]:
    """Of the features, by asking the network; its weights do not matter for that."""
    side = padded_side(backbone.size, backbone.multiple)
    with torch.inference_mode():
        return tuple(backbone_of(backbone, weights=False)(torch.zeros(1, 3, side, side)).shape[1:])  # type: ignore[return-value]


def _model(
    config: BrainConvertConfig, state: Mapping[str, Tensor], weights: Mapping[str, Tensor], hemispheres: tuple[int, ...]
) -> tuple[ModelConfig, Tensor | None, tuple[str, ...]]:
    """What the shapes of the weights say, the membership of the queries, and the queries' names."""
    units = sum(hemispheres)
    if "maps" not in weights and "queries" not in weights:
        return ModelConfig(name="linear"), None, ()
    tokens = weights["queries"] if "queries" in weights else weights["maps"]
    count = len(tokens)
    custom = any(".cross_attn." in name for name in state)
    queries = "units" if count == units else "hemispheres" if count == 2 else "regions"
    membership, names = None, ()
    if queries == "hemispheres":
        membership, names = torch.eye(2).repeat_interleave(torch.tensor(hemispheres), dim=1), ("left all", "right all")
    elif queries == "regions":
        rows, names = _published_queries(config, count)
        if rows.shape != (count, units):
            raise UserError(
                f"{config.published}: has {count} queries and {units:,} vertices, but {config.subject} describes {rows.shape[0]} and "
                f"{rows.shape[1]:,}. Is it another subject's?"
            )
        membership = torch.from_numpy(rows)
    layers = {side: len({name.split(".")[1] for name in weights if name.startswith(f"{side}.")}) for side in ("encoder", "decoder")}
    if "maps" in weights:
        return ModelConfig(name="factorised", queries=queries, overlap="sum"), membership, names
    model = ModelConfig(
        name="custom_transformer" if custom else "transformer",
        queries=queries,
        overlap="sum",
        channels=tokens.shape[1],
        heads=16 if custom else config.heads,
        inner_channels=len(weights["decoder.0.hidden.bias"]),
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        norm_first=config.norm_first,
        memory_layer=config.memory_layer,
    )
    return dataclasses.replace(model), membership, names


def _published_queries(config: BrainConvertConfig, count: int) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """[Q, V] and the queries' names."""
    if config.subject is None:
        raise UserError(
            f"{config.published}: has {count} queries of regions, and does not say which vertices are in which. Name the subject's folder: "
            "--subject algonauts-2023/subj01"
        )
    if config.subject.is_dir():
        names = [name for family in ROI_NAMES.values() for name in family] + [NOWHERE]
        return published_membership(config.subject), tuple(f"{side} {name}" for side in ("left", "right") for name in names)
    arrays = load_npz(config.subject)
    if not {"lh", "rh"} <= set(arrays):
        raise UserError(f"{config.subject}: must hold lh and rh, [regions, vertices] each; it has {', '.join(arrays)}.")
    left, right = (np.asarray(arrays[side], dtype=np.float32) for side in ("lh", "rh"))
    rows = np.zeros((len(left) + len(right), left.shape[1] + right.shape[1]), dtype=np.float32)
    rows[: len(left), : left.shape[1]], rows[len(left) :, left.shape[1] :] = left, right
    return rows, tuple(f"{side} {number}" for side, half in (("left", left), ("right", right)) for number in range(len(half)))


def _place(subject: Path | None, hemispheres: tuple[int, ...]) -> tuple[SurfaceSpace | TableSpace, dict[str, NDArray[np.bool_]]]:
    """Where the units are, as far as somebody says."""
    if subject is not None and is_algonauts(subject):
        return read_algonauts_space(subject), read_regions(subject)
    names = tuple(f"{side} {number}" for side, count in zip(("left", "right"), hemispheres, strict=True) for number in range(count))
    left = np.arange(len(names)) < hemispheres[0]
    return TableSpace(units=names), {"left hemisphere": left, "right hemisphere": ~left}

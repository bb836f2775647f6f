"""The transformer brain encoder, the readouts it is compared with, its features, and WAVE's encoder. Metrics have their own adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.parity.fixture import Fixture

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["build", "matches", "run"]

Arrays = dict[str, np.ndarray]


def matches(fixture: Fixture) -> bool:
    return fixture.system == "brain_encoders" and _runner(fixture) is not None


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    runner = _runner(fixture)
    assert runner is not None, "run is only called where matches said yes"
    return runner(fixture, state, inputs)


def _runner(fixture: Fixture) -> Callable[[Fixture, Arrays, Arrays], Arrays] | None:
    config = fixture.config
    if "encoder_arch" in config:
        return _whole if "backbone" in config else _readout
    if "num_pos_feats" in config:
        return _positions
    if set(config) >= {"grid", "offset", "antialias"}:
        return _position_table
    if "families" in config:
        return _masks
    if set(config) == {"temperature", "layers", "runs"}:
        return _ensemble
    return _wave if config.get("training_style") == "CSM" else None


def tensors(state: Arrays) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in state.items()}


def membership(fixture: Fixture, inputs: Arrays) -> np.ndarray:
    """[Q, V] of the published queries, left hemisphere first."""
    left, right = fixture.config["lh_vs"], fixture.config["rh_vs"]
    if fixture.config["readout_res"] == "hemis":
        return np.repeat(np.eye(2), [left, right], axis=1)
    half = len(inputs["lh_roi_masks"])
    found = np.zeros((2 * half, left + right))
    found[:half, :left], found[half:, left:] = inputs["lh_roi_masks"], inputs["rh_roi_masks"]
    return found


def build(fixture: Fixture, state: Arrays, inputs: Arrays, *, grid: tuple[int, int]) -> nn.Module:
    """The readout with the published weights."""
    import torch

    from apps.brain_encoders.model import FactorisedReadout, LinearReadout, RoutingTransformer
    from apps.brain_encoders.names import from_published
    from apps.brain_encoders.readout import QueryReadout, UnitReadout

    config = fixture.config
    units, features = config["lh_vs"] + config["rh_vs"], config["feat_dim"]
    weights = from_published(tensors(state), norm_first=bool(config["pre_norm"]))

    def reads(channels: int) -> nn.Module:
        if config["readout_res"] == "voxels":
            return UnitReadout(units=units, channels=channels)
        found = torch.from_numpy(membership(fixture, inputs)).float()
        weights["readout.membership"] = found
        return QueryReadout(membership=found, channels=channels)

    if config["encoder_arch"] == "linear":
        network = LinearReadout(feature_channels=features, grid=grid, units=units)
    elif config["encoder_arch"] == "spatial_feature":
        network = FactorisedReadout(feature_channels=features, grid=grid, readout=reads(features))
    else:
        custom = config["encoder_arch"] == "custom_transformer"
        network = RoutingTransformer(
            feature_channels=features,
            readout=reads(config["hidden_dim"]),
            channels=config["hidden_dim"],
            heads=16 if custom else config["nheads"],
            inner_channels=config["dim_feedforward"],
            encoder_layers=config["enc_layers"],
            decoder_layers=config["dec_layers"],
            norm_first=bool(config["pre_norm"]),
            memory_layer=config["enc_output_layer"] if config["enc_layers"] else -1,
            projects_values=not custom,
        )
    network.load_state_dict(weights, strict=True)
    return network.eval()


def _readout(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.brain_encoders.losses import hemisphere_loss
    from apps.brain_encoders.model import LinearReadout
    from shared.attention import record

    features = torch.from_numpy(inputs["features"])
    network = build(fixture, state, inputs, grid=tuple(features.shape[2:]))
    config = fixture.config
    left, half = config["lh_vs"], config["num_queries"] // 2
    sizes = (left, config["rh_vs"])
    with torch.inference_mode(), record(network) as maps:
        tokens, prediction = network.tokens(features), network(features)
    target = torch.from_numpy(np.concatenate([inputs["lh_target"], inputs["rh_target"]], axis=1))
    outputs = {"output_tokens": tokens.numpy()}
    loss = hemisphere_loss(prediction, target, sizes)
    if isinstance(network, LinearReadout):
        penalty = network.penalty(sizes).detach()
        outputs["l2_reg"], loss = penalty.numpy(), loss + 0.02 * penalty
    outputs["loss"] = loss.numpy()
    outputs["lh_combined"], outputs["rh_combined"] = (part.numpy() for part in prediction.split(sizes, dim=1))
    outputs["lh_f_pred"], outputs["rh_f_pred"] = outputs["lh_combined"], outputs["rh_combined"]
    if config["readout_res"] == "rois_all" and not isinstance(network, LinearReadout):
        weight, bias = network.readout.weight.detach(), network.readout.bias.detach()
        outputs["lh_f_pred"] = (torch.einsum("bqc,vc->bvq", tokens[:, :half], weight[:left]) + bias[:left, None]).numpy()
        outputs["rh_f_pred"] = (torch.einsum("bqc,vc->bvq", tokens[:, half:], weight[left:]) + bias[left:, None]).numpy()
    for name, found in maps.items():
        side, number, _ = name.partition("#")[0].split(".")
        outputs[f"{side}_attention_{number}"] = found.mean().numpy()
    return outputs


def build_whole(fixture: Fixture, state: Arrays, inputs: Arrays, *, side: int | tuple[int, int]) -> nn.Module:
    """Backbone and readout with the published weights, for images of this size."""
    from apps.brain_encoders.backbones import build_backbone, published_dino
    from apps.brain_encoders.model import BrainEncoder
    from apps.brain_encoders.names import BACKBONE_PREFIX

    config = fixture.config
    small = config["backbone"]
    block = f"blocks.{small['depth'] - config['enc_output_layer']}"
    query = config["backbone_arch"] == "dinov2_q"
    backbone = build_backbone(
        "timm",
        name="vit_base_patch14_dinov2",
        layer=f"{block}.attn.qkv" if query else block,
        part="query" if query else "whole",
        norm="" if query else "norm",
        size=side,
        options={"embed_dim": small["embed_dim"], "depth": small["depth"], "num_heads": small["num_heads"], "init_values": 1.0},
    )
    grid = tuple(backbone.network.patch_embed.grid_size)
    weights = {name.removeprefix(BACKBONE_PREFIX): value for name, value in tensors(state).items() if name.startswith(BACKBONE_PREFIX)}
    backbone.network.load_state_dict(published_dino(weights, grid=grid), strict=True)
    return BrainEncoder(backbone=backbone, readout=build(fixture, state, inputs, grid=grid)).eval()


def _whole(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from shared.attention import record

    config, image = fixture.config, torch.from_numpy(inputs["image"])
    network = build_whole(fixture, state, inputs, side=tuple(image.shape[2:]))
    with torch.inference_mode(), record(network.readout) as maps:
        features, prediction = network.backbone(image), network(image)
    left, right = prediction.split((config["lh_vs"], config["rh_vs"]), dim=1)
    attention = maps["decoder.0.attention"].mean().numpy()
    answers = {"backbone_features": features, "lh_combined": left, "rh_combined": right}
    return {"decoder_attention_0": attention, **{name: value.numpy() for name, value in answers.items()}}


def _positions(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.brain_encoders.model import sine_positions

    return {"pos": sine_positions(torch.from_numpy(inputs["mask"]) == 0, channels=2 * fixture.config["num_pos_feats"]).numpy()}


def _position_table(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.brain_encoders.backbones import resample_positions

    patch = fixture.config["patch"]
    grid = tuple(side // patch for side in fixture.config["image"])
    return {"pos_embed": resample_positions(torch.from_numpy(inputs["pos_embed"]), grid).numpy()}


def _masks(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.brain_encoders.algonauts import ROI_NAMES, region_masks

    families = list(zip(fixture.config["names"], fixture.config["families"], strict=True))
    assert [len(ROI_NAMES[name]) for name, _ in families] == [count for _, count in families]
    found = {}
    for side in ("lh", "rh"):
        # Labels above a family's count stand for nothing.
        labels = {
            name: np.where(inputs[f"{side}_{index}"] > count, 0, inputs[f"{side}_{index}"]) for index, (name, count) in enumerate(families)
        }
        found[f"{side}_masks"] = np.stack(list(region_masks(labels).values()))
    return found


def _ensemble(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.brain_encoders.ensemble import combine, layer_weights

    weights = layer_weights(0.3 * inputs["val_corr"].mean(axis=1), sharpness=fixture.config["temperature"])
    mean = combine(inputs["pred"], weights)
    return {"weights": weights, "run_mean": mean, "wrapper_sum": fixture.config["runs"] * mean}


def _wave(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.brain_encoders.losses import contrastive_loss
    from apps.brain_encoders.names import wave_from_published
    from apps.brain_encoders.wave import WaveEncoder

    config = fixture.config
    weights = wave_from_published(tensors(state))
    network = WaveEncoder(
        parcels=config["parcellation_dim"],
        channels=config["embedding_dim"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        positions=config["n_positions"],
        projection=len(weights["project.bias"]),
    ).eval()
    weights |= {name: getattr(network, name).detach() for name in ("image_scale", "text_scale")}
    network.load_state_dict(weights, strict=True)
    with torch.inference_mode():
        bold, valid, seconds = (torch.from_numpy(inputs[name]) for name in ("bold", "attention_mask", "t_rs"))
        answer = network(bold, valid == 1, seconds)
        image, image_logits = contrastive_loss(answer.embedding, torch.from_numpy(inputs["image_emb"]), logit_scale=network.image_scale)
        text, text_logits = contrastive_loss(answer.embedding, torch.from_numpy(inputs["text_emb"]), logit_scale=network.text_scale)
    return {
        "last_hidden_state": answer.hidden.numpy(),
        "attention_mask_out": answer.valid.numpy(),
        "pooled": answer.pooled.numpy(),
        "fmri_features": answer.embedding.numpy(),
        "image_logits": image_logits.numpy(),
        "text_logits": text_logits.numpy(),
        "loss": ((image + text) / 2).numpy(),
    }

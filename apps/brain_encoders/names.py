"""The names of the authors' weights in ours: the transformer brain encoder and its comparisons, and WAVE."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from shared.errors import UserError

__all__ = ["BACKBONE_PREFIX", "from_published", "wave_from_published"]

BACKBONE_PREFIX = "backbone_model.0.backbone."
"""Of the frozen backbone, which the authors' program leaves out of the files that it saves."""

_HALVES = ("lh_embed.0.", "rh_embed.0.")
_DEAD = re.compile(r"transformer\.memory_proj\.|transformer\.decoder\.layers\.\d+\.(self_attn|cross_attn\.(c_attn|v_proj))\.")
"""Kept in the authors' state, and never called by their program."""
_PARTS = {
    "multihead_attn": "attention",
    "self_attn": "attention",
    "linear1": "hidden",
    "linear2": "out",
    "cross_attn.q_proj": "attention.query",
    "cross_attn.k_proj": "attention.key",
    "cross_attn.c_proj": "attention.out",
}
_DECODER_NORMS = {"norm1": "target_norm", "norm2": "attention_norm", "norm3": "out_norm"}
_ENCODER_NORMS = {"norm1": "attention_norm", "norm2": "out_norm"}


def from_published(state: Mapping[str, Tensor], *, norm_first: bool = True) -> dict[str, Tensor]:
    """A checkpoint of the transformer brain encoder, its custom variant, or the factorised or linear model, in the names of ``readout``.

    Both hemispheres become one list of units, the left first. The backbone, if it is there, is not among the result.

    Raises:
        UserError: if it holds a name that is no part of a published model, or lacks the readouts.
    """
    missing = [name for half in _HALVES for name in (f"{half}weight", f"{half}bias") if name not in state]
    if missing:
        raise UserError(
            f"is no checkpoint of a transformer brain encoder: it has no {missing[0]!r} (its first entry is {next(iter(state))!r})."
        )
    custom = any(".cross_attn." in name for name in state)
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith((BACKBONE_PREFIX, *_HALVES)) or _DEAD.match(name):
            continue
        found.update(_ours(name, value, norm_first=norm_first, custom=custom))
    for part in ("weight", "bias"):
        found[f"readout.{part}"] = torch.cat([state[f"{half}{part}"] for half in _HALVES])
    return found


def wave_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """WAVE's weights in the names of ``WaveEncoder``: the pretrained encoder's, or a fine-tuned file's without its CLIP and prompts.

    Raises:
        UserError: if it holds a name that is no part of the published encoder.
    """
    found: dict[str, Tensor] = {}
    for published, value in state.items():
        name = published.removeprefix("fmri_encoder.original_model.")
        if name.startswith(("CLIP.", "meta_net.", "unembedder.")) or name in _WAVE_UNUSED:
            continue
        if name in _WAVE:
            found[_WAVE[name]] = value.flatten() if name == "embedder.cls_embed" else value
            continue
        match = re.fullmatch(r"decoder\.transformer\.h\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None or match[2] not in _WAVE_BLOCK:
            raise UserError(f"the entry {published!r} is no part of WAVE's encoder; is it of another model?")
        transposed = match[3] == "weight" and not match[2].startswith("ln_")
        found[f"blocks.{match[1]}.{_WAVE_BLOCK[match[2]]}.{match[3]}"] = value.T.contiguous() if transposed else value
    return found


_WAVE_UNUSED = {"embedder.msk_embed", "decoder.transformer.wte.weight", "context_vector"}
_WAVE = {
    "embedder.cls_embed": "class_scan",
    "embedder.embed_model.model.0.weight": "embed.weight",
    "embedder.embed_model.model.0.bias": "embed.bias",
    "embedder.embed_model.model.1.weight": "embed_norm.weight",
    "embedder.embed_model.model.1.bias": "embed_norm.bias",
    "embedder.wt_re.weight": "times.weight",
    "decoder.transformer.wpe.weight": "positions.weight",
    "decoder.transformer.ln_f.weight": "norm.weight",
    "decoder.transformer.ln_f.bias": "norm.bias",
    "decoder.pooler_layer.0.weight": "pool.weight",
    "decoder.pooler_layer.0.bias": "pool.bias",
    "fmri_projector.weight": "project.weight",
    "fmri_projector.bias": "project.bias",
    "img_logit_scale": "image_scale",
    "txt_logit_scale": "text_scale",
}
_WAVE_BLOCK = {
    "ln_1": "attention_norm",
    "ln_2": "out_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "hidden",
    "mlp.c_proj": "out",
}


def _ours(name: str, value: Tensor, *, norm_first: bool, custom: bool) -> dict[str, Tensor]:
    plain = {
        "query_embed.weight": "queries",
        "spatial_embed.weight": "maps",
        "transformer.decoder.norm.weight": "norm.weight",
        "transformer.decoder.norm.bias": "norm.bias",
        "transformer.encoder.norm.weight": "encoder_norm.weight",
        "transformer.encoder.norm.bias": "encoder_norm.bias",
        "input_proj.weight": "project.weight",
        "input_proj.bias": "project.bias",
    }
    if name in plain:
        return {plain[name]: value}
    match = re.fullmatch(
        r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.+?)\.(in_proj_weight|in_proj_bias|out_proj\.\w+|weight|bias)", name
    )
    if match is None:
        raise UserError(f"the checkpoint's entry {name!r} is no part of a published transformer brain encoder; is it of another model?")
    side, number, part, kind = match.groups()
    norms = _ENCODER_NORMS if side == "encoder" else _DECODER_NORMS
    unused = side == "decoder" and ((part == "norm2" and norm_first) or (custom and part in ("norm1", "norm2")))
    if unused:
        return {}
    ours = norms.get(part) or _PARTS.get(part)
    if ours is None:
        raise UserError(f"the checkpoint's entry {name!r} is no part of a published transformer brain encoder; is it of another model?")
    stem = f"{side}.{number}.{ours}"
    if kind.startswith("in_proj_"):
        pieces = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return {f"{stem}.{piece}.{kind.removeprefix('in_proj_')}": part for piece, part in pieces}
    return {f"{stem}.{kind.replace('out_proj', 'out')}": value}

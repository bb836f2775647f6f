"""The names of the authors' weights, of ACMIL and of the networks that it is compared with, and ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from shared.errors import UserError

__all__ = ["from_published", "recognise"]

_GATED = (
    (r"attention\.attention_V\.0\.", "pooling.hidden."),
    (r"attention\.attention_U\.0\.", "pooling.gate."),
    (r"attention\.attention_weights\.", "pooling.score."),
)
_REDUCTION = (
    (r"dimreduction\.fc1\.", "reduction.linear."),
    (r"dimreduction\.resBlocks\.(\d+)\.block\.", r"reduction.blocks.\1."),
)
_HEADS = (
    (r"q_proj\.", "query."),
    (r"k_proj\.", "key."),
    (r"v_proj\.", "pooling.value."),
    (r"out_proj\.", "pooling.out."),
    (r"layer_norm\.", "pooling.norm."),
)
_CLAM_NET = {"a": "hidden", "b": "gate"}

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

_RULES: dict[str, Rules] = {
    "acmil_ga": (
        *_REDUCTION,
        *((pattern, ours.replace("pooling.", "pooling.scorer.")) for pattern, ours in _GATED),
        (r"classifier\.(\d+)\.fc\.", r"branch_classifiers.\1."),
        (r"Slide_classifier\.fc\.", "classifier."),
    ),
    "acmil_mha": (
        *_REDUCTION,
        (r"q$", "queries"),
        *((rf"sub_attention\.(\d+)\.{pattern}", rf"branches.\1.{ours}") for pattern, ours in _HEADS),
        (r"bag_attention\.v_proj\.", "bag_pooling.value."),
        (r"bag_attention\.out_proj\.", "bag_pooling.out."),
        (r"bag_attention\.layer_norm\.", "bag_pooling.norm."),
        (r"classifier\.(\d+)\.fc\.", r"branch_classifiers.\1."),
        (r"Slide_classifier\.fc\.", "classifier."),
    ),
    "abmil": (*_REDUCTION, *_GATED, (r"classifier\.fc\.", "classifier.")),
    "mha": (
        *_REDUCTION,
        (r"q$", "query"),
        *((rf"attention\.{pattern}", f"attention.{ours}") for pattern, ours in _HEADS),
        (r"classifier\.fc\.", "classifier."),
    ),
    "clam_sb": (
        (r"attention_net\.0\.", "reduction."),
        (r"attention_net\.[23]\.attention_([ab])\.0\.", lambda m: f"pooling.{_CLAM_NET[m[1]]}."),
        (r"attention_net\.[23]\.attention_c\.", "pooling.score."),
        (r"classifiers\.(\d+)\.", r"classifiers.\1."),
        (r"classifiers\.", "classifiers.0."),
        (r"instance_classifiers\.(\d+)\.", r"instance_classifiers.\1."),
    ),
    "transmil": (
        (r"_fc1\.0\.", "reduction."),
        (r"cls_token$", "class_token"),
        (r"layer([12])\.norm\.", lambda m: f"{_LAYER[m[1]]}.norm."),
        (r"layer([12])\.attn\.to_qkv\.", lambda m: f"{_LAYER[m[1]]}.attention.project."),
        (r"layer([12])\.attn\.to_out\.0\.", lambda m: f"{_LAYER[m[1]]}.attention.out."),
        (r"layer([12])\.attn\.res_conv\.", lambda m: f"{_LAYER[m[1]]}.attention.residual."),
        (r"pos_layer\.proj(\d?)\.", lambda m: f"position.convolutions.{m[1] or 0}."),
        (r"norm\.", "norm."),
        (r"_fc2\.", "classifier."),
    ),
    "dtfd": (
        (r"dim_reduction\.fc1\.", "reduction.linear."),
        (r"dim_reduction\.resBlocks\.(\d+)\.block\.", r"reduction.blocks.\1."),
        *_GATED,
        (r"classifier\.fc\.", "group_classifier."),
        *((rf"att_classifier\.{pattern}", ours.replace("pooling.", "slide_pooling.")) for pattern, ours in _GATED),
        (r"att_classifier\.classifier\.fc\.", "classifier."),
    ),
    "dsmil": (
        (r"i_classifier\.fc\.0\.", "instance_classifier."),
        (r"b_classifier\.q\.", "query."),
        (r"b_classifier\.fcc\.", "bag_classifier."),
    ),
    "ibmil": (
        *_REDUCTION,
        *_GATED,
        (r"confounder_feat$", "prototypes"),
        (r"W_q\.", "query."),
        (r"W_k\.", "key."),
        (r"classifier\.", "classifier."),
    ),
}
_LAYER = {"1": "first", "2": "second"}
_RULES["clam_mb"] = _RULES["clam_mb_published"] = _RULES["clam_sb"]


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The ``model.name`` that a published state dict is of; None if it is none of them."""
    marks = {
        "acmil_mha": ("sub_attention.0.q_proj.weight", "bag_attention.v_proj.weight"),
        "acmil_ga": ("Slide_classifier.fc.weight", "attention.attention_V.0.weight"),
        "dtfd": ("att_classifier.classifier.fc.weight", "dim_reduction.fc1.weight"),
        "clam_sb": ("attention_net.0.weight", "classifiers.weight"),
        "clam_mb": ("attention_net.0.weight", "classifiers.0.weight"),
        "transmil": ("cls_token", "layer1.attn.to_qkv.weight"),
        "dsmil": ("i_classifier.fc.0.weight", "b_classifier.q.weight"),
        "ibmil": ("confounder_feat", "W_q.weight"),
        "mha": ("q", "attention.q_proj.weight", "classifier.fc.weight"),
        "abmil": ("attention.attention_V.0.weight", "dimreduction.fc1.weight", "classifier.fc.weight"),
    }
    return next((name for name, needed in marks.items() if all(key in state for key in needed)), None)


def from_published(state: Mapping[str, Tensor], *, name: str) -> dict[str, Tensor]:
    """The state dict of the published network ``name`` (a ``model.name`` of the settings) in our names.

    Raises:
        UserError: if it holds an entry that is no part of that network.
    """
    converted = {}
    for key, value in state.items():
        for pattern, replacement in _RULES[name]:
            ours, found = re.subn(rf"^{pattern}", replacement, key)
            if found:
                converted[ours] = value.reshape(value.shape[1:]) if key in ("q", "cls_token") else value
                break
        else:
            raise UserError(f"the checkpoint's entry {key!r} is no part of the published {name}; is it of another model?")
    if name == "mha":
        converted["query"] = converted["query"].reshape(-1)
    return converted

"""Attention gates; dual layers and the guided attention that is built of them."""

from __future__ import annotations

from shared.attention import record
from tests.parity.attention import below, built, runs


@runs("gate-2d")
@runs("gate-3d")
def gates(config, state, inputs):
    settings = {
        "channels": config["in_channels"],
        "gate_channels": config["gating_channels"],
        "inner_channels": config["inter_channels"],
        "stride": config["sub_sample_factor"],
        "rank": config["dimension"],
    }
    answers = {}
    for mode, name in (("concatenation", "attn_gate"), ("concatenation_residual", "attn_gate_softmax")):
        block = built(name, below(state, mode), **settings)
        with record(block) as maps:
            answers[f"{mode}_y"] = block(inputs["x"], inputs["g"])
        answers[f"{mode}_a"] = maps[""].dense()
    return answers


@runs("dual-layer")
def dual_layer(config, state, inputs):
    channels = config["in_channels"]
    return {
        "pam": built("dual_layer", below(state, "pam"), channels=channels)(inputs["x"]),
        "cam": built("dual_layer_channel", below(state, "cam"), channels=channels)(inputs["x"]),
    }


@runs("semantic-module")
def semantic(config, state, inputs):
    code, decoded = built("semantic", state, channels=config["in_channels"])(inputs["x"])
    # The published vector runs through the whole batch.
    return {"vector": code.flatten(), "decoded": decoded}


@runs("guided-scale")
def guided(config, state, inputs):
    return {"attention": built("guided", state, channels=config["channels"])(inputs["down"], inputs["fuse"])}

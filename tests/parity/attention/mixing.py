"""Reversible bottlenecks, the residual attention module, ContMix."""

from __future__ import annotations

from shared.attention import record
from tests.parity.attention import built, runs


@runs("reversible-mbconv")
def reversible(config, state, inputs):
    block = built("rev_mbconv", state, channels=config["channels"], expansion=config["expansion"])
    y = block(inputs["x"])
    return {"y": y, "inverse": block.inverse(y)}


@runs("residual-attention-stage1")
def residual_attention(config, state, inputs):
    block = built("residual_attention", state, channels=config["in_channels"], poolings=3)
    with record(block) as maps:
        y = block(inputs["x"])
    return {"y": y, "mask": maps[""].dense()}


@runs("contmix")
@runs("contmix-small")
def contmix(config, state, inputs):
    settings = {
        "channels": config["dim"],
        "kernel": config["kernel_size"],
        "small_kernel": config["smk_size"],
        "heads": config["num_heads"],
        "expansion": config["mlp_ratio"],
        "scale_identity": config["res_scale"],
    }
    return {"y": built("contmix", state, **settings)(inputs["x"])}

"""Attention by convolutions, pooling and shifts: gates and mixing without queries and keys."""

from __future__ import annotations

import torch

from shared.attention import record
from shared.attention.pooling import diversification_loss
from tests.parity.attention import below, built, runs


@runs("ela")
def ela(config, state, inputs):
    answers = {}
    for name, (kernel, groups, norm_groups) in config["variants"].items():
        settings = {"channels": config["channels"], "kernel": kernel, "groups": groups, "norm_groups": norm_groups}
        answers[name] = built("ela", below(state, name), **settings)(inputs["x"])
    return answers


@runs("ulsam")
def ulsam(config, state, inputs):
    block = built("ulsam_published", state, channels=config["nin"], subspaces=config["num_splits"])
    with record(block) as maps:
        answer = block(inputs["x"])
    return {"y": answer, "maps": maps[""].dense().flatten(2)}


@runs("triplet")
def triplet(config, state, inputs):
    settings = {"channels": inputs["x"].shape[1], "kernel": config["kernel_size"]}
    return {
        name: built("triplet", below(state, name), spatial=spatial, **settings)(inputs["x"])
        for name, spatial in (("full", True), ("no_spatial", False))
    }


@runs("focal-modulation")
def focal(config, state, inputs):
    answers = {}
    for name, variant in config["variants"].items():
        block = built(
            "focal",
            below(state, name),
            channels=config["dim"],
            kernel=variant["focal_window"],
            levels=variant["focal_level"],
            growth=config["focal_factor"],
            average=variant.get("normalize_modulator", False),
            normalise=variant.get("use_postln_in_modulation", False),
        )
        with record(block) as maps:
            answers[name] = block(inputs["x"].movedim(-1, 1)).movedim(1, -1)
        answers[f"{name}_gates"] = maps["gates"].dense()
        answers[f"{name}_modulator"] = maps["modulator"].dense()
    return answers


@runs("lka")
def lka(config, state, inputs):
    return {
        "lka": built("lka", below(state, "lka"), channels=config["dim"])(inputs["x"]),
        "attention": built("lka_projected", below(state, "attention"), channels=config["dim"])(inputs["x"]),
    }


@runs("van-block")
def van(config, state, inputs):
    return {"y": built("van", state, channels=config["dim"], expansion=config["mlp_ratio"])(inputs["x"])}


@runs("high-order")
def high_order(config, state, inputs):
    return {
        f"o{order}": built("high_order", below(state, f"o{order}"), channels=config["in_channels"], order=order)(inputs["x"])
        for order in config["orders"]
    }


@runs("shift")
def shift(config, state, inputs):
    settings = {"channels": config["dim"], "division": config["n_div"]}
    return {
        "shift": built("shift", {}, **settings)(inputs["x"]),
        "y": built("shift_block", state, **settings, expansion=config["mlp_ratio"])(inputs["x"]),
    }


@runs("tap")
def tap(config, state, inputs):
    block = built("tap", state, channels=config["dim"], scales=config["num_scales"])
    with record(block) as maps:
        pooled = block(inputs["x"])
    return {"weights": maps[""].dense().movedim(1, -1).unsqueeze(1), "pooled": pooled}


@runs("adl-loss")
def adl_loss(config, state, inputs):
    maps = [torch.softmax(3 * inputs[name], dim=-1).mean(1) for name in ("l0", "l1")]
    return {"loss": torch.stack([diversification_loss(maps, threshold) for threshold in config["threshold"]])}


@runs("in-attention")
def in_attention(config, state, inputs):
    return {"y": built("a2n", state, channels=config["nf"], reduction=config["reduction"], temperature=config["t"])(inputs["x"])}


@runs("spatial-discriminator")
def spatial_discriminator(config, state, inputs):
    block = built("disc_spatial", state, channels=inputs["mask"].shape[1])
    with record(block) as maps:
        attended = block(inputs["mask"], inputs["feature"])
    return {"attention": maps[""].dense(), "attended": attended}

"""Dual attention, squeeze and excitation, multi-head self-attention, reverse attention."""

from __future__ import annotations

from shared.attention import record
from shared.layers import resize
from tests.parity.attention import below, built, runs


@runs("dual-pam-cam")
def dual(config, state, inputs):
    channels, x = config["in_channels"], inputs["x"]
    answers = {}
    for name in ("pam", "cam"):
        block = built(name, below(state, name), channels=channels)
        with record(block) as maps:
            answers[name] = block(x)
        answers[f"{name}_attention"] = maps[""].dense()[:, 0]
    return answers


@runs("scse-2d")
@runs("scse-3d")
def scse(config, state, inputs):
    x = inputs["x"]
    rank = x.ndim - 2
    settings = {"channels": config["num_channels"], "reduction": config["reduction_ratio"]}
    answers = {
        "c": built("cse", below(state, "c"), **settings)(x),
        "s": built("sse", below(state, "s"), channels=config["num_channels"], rank=rank)(x),
        "cs": built("scse", below(state, "cs"), **settings, rank=rank)(x),
    }
    if rank == 3:
        answers["pe"] = built("project_excite", below(state, "pe"), **settings)(x)
    return answers


@runs("vit")
def vit(config, state, inputs):
    answers = {}
    for name, normalise in (("plain", False), ("qknorm", True)):
        block = built("mhsa", below(state, name), channels=config["dim"], heads=config["num_heads"], normalise_heads=normalise)
        with record(block) as maps:
            answers[name] = block(inputs["x"])
        answers[f"{name}_map"] = maps[""].dense()
    return answers


@runs("reverse")
def reverse(config, state, inputs):
    block = built("reverse", state, channels=config["feature_channels"], inner_channels=config["hidden"])
    with record(block) as maps:
        refined = block(inputs["feature"], inputs["coarse"])
    residual = refined - resize(inputs["coarse"], inputs["feature"].shape[2:])
    return {"attention": maps[""].dense(), "residual": residual, "map": refined}

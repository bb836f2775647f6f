"""DaViT, HiLo, MaxViT, Twins, agent attention."""

from __future__ import annotations

from tests.parity.attention import below, built, runs


@runs("davit")
def davit(config, state, inputs):
    x, grid, heads = inputs["x"], tuple(config["size"]), config["num_heads"]
    common = {"channels": config["dim"], "expansion": config["mlp_ratio"]}
    window, biased = config["window_size"], config["qkv_bias"]
    spatial = built("davit_spatial_published", below(state, "spatial"), heads=heads, window=window, qkv_bias=biased["spatial"], **common)
    channel = built("davit_channel", below(state, "channel"), groups=heads, qkv_bias=biased["channel"], **common)
    first = spatial(x, grid=grid)
    return {"spatial": first, "channel": channel(x, grid=grid), "spatial_then_channel": channel(first, grid=grid)}


@runs("hilo")
def hilo(config, state, inputs):
    common = {"channels": config["dim"], "heads": config["num_heads"]}
    return {
        name: built("hilo", below(state, name), window=window, low_share=low_share, **common)(inputs["x"], grid=tuple(config["size"]))
        for name, (window, low_share) in config["variants"].items()
    }


@runs("maxvit")
def maxvit(config, state, inputs):
    common = {"channels": config["dim"], "head_channels": config["dim_head"], "expansion": config["expand_ratio"]}
    block = built("maxvit_block", below(state, "block"), window=tuple(config["window_size"]), **common)
    grid = built("maxvit_grid", below(state, "grid"), window=tuple(config["grid_size"]), **common)
    x = inputs["x"].movedim(-1, 1)
    answers = {"block": block(x), "grid": grid(x), "block_then_grid": grid(block(x))}
    return {name: answer.movedim(1, -1) for name, answer in answers.items()}


@runs("twins")
def twins(config, state, inputs):
    x, grid = inputs["x"], tuple(config["size"])
    answers = {}
    for name, variant in config["variants"].items():
        settings = {"channels": config["dim"], "heads": config["num_heads"], "qkv_bias": variant["qkv_bias"]}
        settings |= {"window": variant["ws"]} if "ws" in variant else {"reduction": variant["sr_ratio"]}
        answers[name] = built(f"twins_{name[:3]}", below(state, name), **settings)(x, grid=grid)
    return answers


@runs("agent")
def agent(config, state, inputs):
    answers = {}
    for name, variant in config["variants"].items():
        block = built(
            "agent",
            below(state, name),
            channels=config["dim"],
            heads=config["num_heads"],
            agents=round(variant["agent_num"] ** 0.5),
            size=tuple(config["size"]),
            reduction=variant["sr_ratio"],
            qkv_bias=variant["qkv_bias"],
        )
        answers[name] = block(inputs["x"], grid=tuple(config["size"]))
    return answers

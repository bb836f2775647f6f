"""Linear attention and its relatives: FLatten, InLine, Flow, separable, Galerkin and Fourier, Hedgehog, LLN, Kronecker."""

from __future__ import annotations

from torch import nn

from shared.attention import record
from shared.attention.feature_maps import HedgehogFeatures, log_normal_attend, matched_deviation
from shared.attention.linear import linear_attend
from shared.attention.windows import window_attend
from tests.parity.attention import below, built, runs


class Heads(nn.Module):
    """Linear attention without projections, as a module: what is recorded has a module's name."""

    def forward(self, query, key, value):
        return linear_attend(query, key, value)


@runs("flatten")
def flatten(config, state, inputs):
    settings = {
        "channels": config["dim"],
        "heads": config["num_heads"],
        "power": float(config["focusing_factor"]),
        "kernel": config["kernel_size"],
    }
    x, grid = inputs["x"], tuple(config["size"])
    return {
        "sr1": built("flatten", below(state, "sr1"), **settings, table=grid)(x, grid),
        "sr2": built(
            "flatten_published", below(state, "sr2"), **settings, table=tuple(side // 2 for side in grid), reduction=2, qkv_bias=False
        )(x, grid),
        "window": built("flatten_window", below(state, "window"), **settings, window=grid)(x, grid),
    }


@runs("inline")
def inline(config, state, inputs):
    settings = {
        "channels": config["dim"],
        "heads": config["num_heads"],
        "qkv_bias": config["qkv_bias"],
        "class_token": config["class_token"],
    }
    return {"y": built("inline", state, **settings)(inputs["x"], (6, 6))}


@runs("flow")
def flow(config, state, inputs):
    normal, vision = config["normal"], config["vision"]
    settings = {
        "channels": normal["d_input"],
        "heads": normal["n_heads"],
        "inner_channels": normal["d_model"],
        "out_channels": normal["d_output"],
    }
    x = inputs["q"]
    return {
        "normal": built("flow", below(state, "normal"), **settings)(x, inputs["kv"]),
        "causal": built("flow_causal", below(state, "causal"), **settings, chunk=5)(x),
        "vision": built("flow", below(state, "vision"), channels=vision["dim"], heads=vision["num_heads"])(x),
    }


@runs("separable-mobilevitv2")
def separable(config, state, inputs):
    """Published layout: [B, C, places of a patch, patches]. Here patches of 2 x 2 in one row."""
    block = built("separable", state, channels=config["embed_dim"], patch=2)

    def unfolded(x):
        return x.unflatten(2, (2, 2)).permute(0, 1, 2, 4, 3).flatten(3)

    def folded(x):
        return x.unflatten(3, (-1, 2)).permute(0, 1, 2, 4, 3).flatten(2, 3)

    x, previous = unfolded(inputs["x"]), unfolded(inputs["prev"])
    return {"self": folded(block(x)), "cross": folded(block(x, previous))}


@runs("galerkin")
def galerkin(config, state, inputs):
    settings = {"channels": config["d_model"], "heads": config["n_head"], "axes": config["pos_dim"]}
    answers = {}
    for name in ("galerkin", "fourier"):
        block = built(name, below(state, name), **settings)
        with record(block) as maps:
            answers[name] = block(inputs["x"], inputs["pos"])
        if name == "fourier":
            answers["fourier_weight"] = maps[""].dense()
        else:
            # What the published code calls weights is the sum of k^T v, which every query is multiplied with.
            answers["galerkin_weight"] = maps[""].key.mT @ maps[""].value / inputs["x"].shape[1]
    return answers


@runs("hedgehog")
def hedgehog(config, state, inputs):
    settings = {"heads": config["num_heads"], "head_channels": config["head_dim"], "features": config["feature_dim"]}
    features = {}
    for name in ("q", "k"):
        layer = HedgehogFeatures(**settings)
        layer.load_state_dict({"weight": state[f"{name}.mlp.layer"]})
        features[name] = layer(inputs[name])
    heads = Heads()
    with record(heads) as maps:
        out = heads(features["q"], features["k"], inputs["v"])
    return {"phi_q": features["q"], "attention": maps[""].dense(), "out": out}


@runs("lln")
def lln(config, state, inputs):
    query, key, value = inputs["q"], inputs["k"], inputs["v"]
    far = log_normal_attend(query, key, value, over_batch=True)
    near = window_attend(query, key, value, window=(query.shape[-1],))
    sigma, _, _ = matched_deviation(query, key, over_batch=True)
    return {"lln": far, "sigma_tilde": sigma.reshape(1), "block_diagonal": near, "lln_plus_diag": (far + near) / 2}


@runs("kronecker")
def kronecker(config, state, inputs):
    settings = {"channels": config["dim"], "heads": config["heads"], "head_channels": config["dim_heads"]}
    return {"y": built("kronecker_qkv", state, **settings)(inputs["x"])}

"""Neighbourhood attention, halo attention, bi-level routing attention."""

from __future__ import annotations

from shared.attention import record
from shared.attention.neighborhood import neighborhood_attend
from tests.parity.attention import below, built, runs


@runs("neighborhood")
def neighborhood(config, state, inputs):
    answers = {}
    for name, settings in config.items():
        if name == "layout":
            continue
        rank = name[2]
        query, key, value = (inputs[f"{letter}{rank}"].movedim(-2, 1) for letter in "qkv")
        output = neighborhood_attend(
            query,
            key,
            value,
            kernel=settings["kernel_size"],
            dilation=settings.get("dilation", 1),
            stride=settings.get("stride", 1),
            causal=settings.get("is_causal", False),
        )
        answers[name] = output.movedim(1, -2)
    return answers


@runs("halo")
def halo(config, state, inputs):
    answers = {}
    for name, settings in config["variants"].items():
        block = built(
            "halo_published",
            below(state, name),
            channels=config["dim"],
            out_channels=settings.get("dim_out"),
            heads=config["num_heads"],
            head_channels=settings.get("dim_head"),
            block=settings["block_size"],
            halo=settings["halo_size"],
            stride=settings.get("stride", 1),
            average=settings.get("avg_down", False),
            scale_positions=settings.get("scale_pos_embed", False),
            qkv_bias=settings.get("qkv_bias", False),
        )
        answers[name] = block(inputs["x"])
    return answers


@runs("biformer")
def biformer(config, state, inputs):
    answers = {}
    for name, settings in config["variants"].items():
        block = built(
            "bra_published",
            below(state, name),
            channels=config["dim"],
            heads=config["num_heads"],
            regions=settings["n_win"],
            topk=settings["topk"],
            pool=settings.get("kv_per_win"),
            local_kernel=settings["side_dwconv"],
            soft=settings.get("soft_routing", False),
            learned_routing=settings.get("param_routing", False),
            differentiable=settings.get("diff_routing", False),
        )
        with record(block) as maps:
            answers[name] = block(inputs["x"].movedim(-1, 1)).movedim(1, -1)
        # Published as the weights of the chosen regions, largest first, and their indices.
        weights, chosen = maps["routing"].dense()[:, 0].topk(settings["topk"])
        answers[f"{name}_routing_weight"] = weights
        answers[f"{name}_routing_index_sorted"] = chosen.sort(-1).values
    return answers

"""Attention over sequences: signed, in pieces, of mixed heads, sparsified, from queries, and position codes."""

from __future__ import annotations

import torch

from shared.attention import record
from shared.attention.chunked import chunked_attend
from shared.attention.sparsifiner import kept_tokens
from tests.parity.attention import below, built, runs


@runs("cog")
def cog(config, state, inputs):
    return {"y": built("cog", state, channels=config["dim"], heads=config["num_heads"])(inputs["x"])}


@runs("moh")
def moh(config, state, inputs):
    answers = {}
    for name, variant in config["variants"].items():
        settings = {"shared_heads": variant["shared_head"], "routed_heads": variant["routed_head"]}
        block = built("moh", below(state, name), channels=config["dim"], heads=config["num_heads"], **settings)
        answers[name] = block(inputs["x"], grid=config["input_resolution"])
    return answers


@runs("sparsifiner")
def sparsifiner(config, state, inputs):
    side = round((config["num_tokens"] - 1) ** 0.5)
    block = built(
        "sparsifiner_published",
        state,
        channels=config["dim"],
        heads=config["num_heads"],
        keep=config["attn_keep_rate"],
        extent=side,
        token_reduction=config["reduce_n_factor"],
        channel_reduction=config["reduce_c_factor"],
        coefficient_threshold=config["basis_coef_threshold"],
        basis_threshold=config["basis_threshold"],
    )
    with record(block) as maps:
        answer = block(inputs["x"], grid=(side, side))
    found = block.connectivity(inputs["x"], grid=(side, side))
    return {
        "x": answer,
        "basis_coef": found.coefficients,
        "approx_attn": found.approximation,
        "attn_mask": found.mask.float(),
        "masked_attn": maps[""].dense(),
        "token_mask": kept_tokens(maps[""].dense(queries=0)[:, :, 0], config["token_keep_rate"]).float(),
    }


@runs("memory-efficient")
def memory_efficient(config, state, inputs):
    query, key, value = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    chunks = {"query_chunk": 7, "key_chunk": 5}
    places = torch.arange(query.shape[2]).unsqueeze(1), torch.arange(key.shape[2])
    seen = places[1] <= places[0] + 2
    return {
        "plain": chunked_attend(query, key, value, **chunks).transpose(1, 2),
        "masked_biased": chunked_attend(query, key, value, bias=inputs["bias"], mask=seen, **chunks).transpose(1, 2),
    }


@runs("pe-learnable-fourier")
def fourier(config, state, inputs):
    settings = {"groups": config["G"], "features": config["F_dim"], "inner_channels": config["H_dim"], "gamma": config["gamma"]}
    block = built("fourier_positions", state, channels=config["D"], rank=config["M"], **settings)
    return {"pe": block(inputs["pos"].flatten(2))}


@runs("pointer-oat")
def pointer(config, state, inputs):
    block = built("object_pointer", state, channels=config["emb_size"], scale=config["d_k"] ** -0.5)
    scores = block(inputs["decoder"].transpose(0, 1), inputs["encoder"].transpose(0, 1))
    return {"scores": scores.transpose(0, 1).unsqueeze(-1)}


@runs("detr-decoder")
def detr(config, state, inputs):
    block = built("detr_decoder", state, channels=config["d_model"], heads=config["nhead"], inner_channels=config["dim_feedforward"])
    target, memory, position, query = (inputs[name].transpose(0, 1) for name in ("tgt", "memory", "pos", "query"))
    return {"y": block(target, memory, query_position=query, position=position).transpose(0, 1)}


@runs("routing-cross")
def routing(config, state, inputs):
    answers = {}
    memory, position = inputs["memory"].transpose(0, 1), inputs["pos"].transpose(0, 1)
    query = inputs["query"].expand(memory.shape[0], -1, -1)
    settings = {"channels": config["d_model"], "heads": config["nhead"], "inner_channels": config["dim_feedforward"]}
    for name, form in (("post", "routing_cross"), ("pre", "routing_cross_pre")):
        block = built(form, below(state, name), **settings)
        with record(block) as maps:
            answers[name] = block(query, memory, position=position).transpose(0, 1)
        answers[f"{name}_map"] = maps["attention"].mean()
    return answers


@runs("box-rpb-cross")
def box(config, state, inputs):
    answers = {}
    centre, size = inputs["boxes"][:, :, 0].split(2, dim=-1)
    boxes = torch.cat([0.5 * centre + 0.25, 0.4 * size + 0.05], dim=-1)
    height, width = config["size"]
    for name, variant in config["variants"].items():
        settings = {"offsets": {"abs_log8": "log", "linear": "linear"}[variant["rpe_type"]], "stride": variant["feature_stride"]}
        block = built(
            "box_cross",
            below(state, name),
            channels=config["dim"],
            heads=config["num_heads"],
            inner_channels=config["rpe_hidden_dim"],
            **settings,
        )
        # The reparameterised form takes boxes in pixels, the other in fractions of the image; ours always in fractions.
        fractions = 4 * boxes / torch.tensor([width, height, width, height]) if variant["reparam"] else boxes
        answers[name] = block(inputs["query"], inputs["memory"], fractions, grid=(height, width), position=inputs["pos"])
    return answers

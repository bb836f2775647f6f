"""Pooling of bags for multiple-instance learning."""

from __future__ import annotations

from tests.parity.attention import built, runs


@runs("mil-abmil")
def abmil(config, state, inputs):
    bag, answers = inputs["h"].unsqueeze(0), {}
    plain = {name: value for name, value in state.items() if name.startswith("attention.")}
    for prefix, name, own in (("", "abmil", plain), ("gated_", "gated_mil", {name: state[name] for name in state if name not in plain})):
        block = built(name, own, channels=config["M"], inner_channels=config["L"], branches=config["branches"])
        features, weights = block.pool(bag)
        answers |= {f"{prefix}attention": weights[0], f"{prefix}pooled": features[0]}
    return answers


@runs("mil-multibranch")
def multi_branch(config, state, inputs):
    bag = inputs["x"].unsqueeze(0)
    block = built("mba", state, channels=config["L"], inner_channels=config["D"], branches=config["K"])
    features, weights = block.pool(bag)
    return {
        "raw": block.scores(bag)[0],
        "normed": weights[0],
        "branch_features": features[0],
        "bag_attention": weights.mean(1),
        "bag_feature": features.mean(1),
    }

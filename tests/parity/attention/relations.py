"""RTNet's two blocks, against formulas: the authors published no code."""

from __future__ import annotations

from tests.parity.attention import built, runs


@runs("rtnet-block-gtb")
def global_context(config, state, inputs):
    return {"out": built("global_context", state, channels=config["channels"])(inputs["x"])}


@runs("rtnet-block-rtb")
def relation(config, state, inputs):
    return {"out": built("relation", state, channels=config["channels"])(inputs["lesion"], inputs["vessel"])}

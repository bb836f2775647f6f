"""The attention blocks of shared/attention, each by the name in its fixture."""

from __future__ import annotations

import numpy as np

from tests.parity.fixture import Fixture

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]

REVERSE = {"ra_conv1.conv": "reduce", "ra_conv1.bn": "reduce_norm", "ra_conv2": "refine.0", "ra_conv3": "refine.1", "ra_conv4": "score"}


def matches(fixture: Fixture) -> bool:
    return fixture.system == "attention-blocks" and set(fixture.config) == {"feature_channels", "hidden"}


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from shared.attention import ReverseAttention
    from shared.layers import resize

    block = ReverseAttention(channels=fixture.config["feature_channels"], inner_channels=fixture.config["hidden"]).eval()
    block.load_state_dict({_ours(name): torch.from_numpy(array) for name, array in state.items()}, strict=True)
    feature, coarse = torch.from_numpy(inputs["feature"]), torch.from_numpy(inputs["coarse"])
    with torch.inference_mode():
        refined = block(feature, coarse)
        residual = refined - resize(coarse, feature.shape[2:])
        return {"attention": block.map(feature, coarse).numpy(), "residual": residual.numpy(), "map": refined.numpy()}


def _ours(name: str) -> str:
    published = next(start for start in REVERSE if name.startswith(f"{start}."))
    return f"{REVERSE[published]}{name.removeprefix(published)}".replace(".bn.", ".norm.")

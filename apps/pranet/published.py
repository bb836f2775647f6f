"""The authors' released weights in our names, and their bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from apps.pranet.config import ConvertConfig, ModelConfig
from apps.pranet.inference import PraNetPredictor, Settings
from shared.bundle import load_weights, provenance, read_checkpoint
from shared.errors import UserError

__all__ = ["convert", "from_published", "published_backbone"]

_CONV = {
    "agg1.conv_upsample1": "decoder.up16",
    "agg1.conv_upsample2": "decoder.up8_from32",
    "agg1.conv_upsample3": "decoder.up8_from16",
    "agg1.conv_upsample4": "decoder.lift16",
    "agg1.conv_upsample5": "decoder.lift8",
    "agg1.conv_concat2": "decoder.join16",
    "agg1.conv_concat3": "decoder.join8",
    "agg1.conv4": "decoder.smooth",
    "agg1.conv5": "decoder.score",
    "ra2_conv4": "reverse8.score",
    "ra3_conv4": "reverse16.score",
    "ra4_conv5": "reverse32.score",
}
_RULES = (
    (r"resnet\.", "backbone."),
    (r"rfb([234])_1\.branch(\d)\.(\d)\.", lambda m: f"receptive.{int(m[1]) - 2}.branches.{m[2]}.{m[3]}."),
    (r"rfb([234])_1\.conv_cat\.", lambda m: f"receptive.{int(m[1]) - 2}.fuse."),
    (r"rfb([234])_1\.conv_res\.", lambda m: f"receptive.{int(m[1]) - 2}.shortcut."),
    (r"ra([234])_conv1\.conv\.", lambda m: f"reverse{2 ** (int(m[1]) + 1)}.reduce."),
    (r"ra([234])_conv1\.bn\.", lambda m: f"reverse{2 ** (int(m[1]) + 1)}.reduce_norm."),
    *((re.escape(published) + r"\.", f"{ours}.") for published, ours in _CONV.items()),
    (r"ra([234])_conv(\d)\.", lambda m: f"reverse{2 ** (int(m[1]) + 1)}.refine.{int(m[2]) - 2}."),
)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict (PraNet-19.pth, or the ResNet-50 variant) in our names; the backbone's unused classifier is left out.

    Raises:
        UserError: if it holds a name that is no part of the published network.
    """
    return {_ours(name): value for name, value in state.items() if not name.startswith("resnet.fc.")}


def published_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's own checkpoint (res2net50_v1b_26w_4s-3cf99910.pth) in the names of ``PraNet.backbone``."""
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def convert(config: ConvertConfig) -> None:
    """Writes a bundle with the authors' weights, with a threshold of 0.5 and no calibration: they published neither."""
    state = read_checkpoint(config.published)
    if "resnet.conv1.0.weight" not in state and "resnet.conv1.weight" not in state:
        hint = ""
        if "layer1.0.conv1.weight" in state:
            hint = " It looks like a backbone alone: train with --model.backbone_weights instead."
        raise UserError(
            f"{config.published}: is no PraNet checkpoint (no entry 'resnet.conv1...'; the first is {next(iter(state))!r}).{hint}"
        )
    backbone = "res2net50d" if "resnet.conv1.0.weight" in state else "resnet50"
    channels = state["rfb2_1.conv_cat.conv.weight"].shape[0] if "rfb2_1.conv_cat.conv.weight" in state else 32
    settings = Settings(model=ModelConfig(backbone=backbone, channels=channels))
    model = settings.build()
    load_weights(model, from_published(state), source=config.published)
    facts = provenance(converted_from=config.published.name, weights_licence="research and education only (authors' README)")
    PraNetPredictor(model, settings, facts=facts).save_bundle(config.output)
    print(f"{config.output}: written. Try: apps.pranet infer --model {config.output} --input FRAMES --output results")


def _ours(name: str) -> str:
    for pattern, replacement in _RULES:
        ours, found = re.subn(rf"^{pattern}", replacement, name)
        if found:
            return ours if ours.startswith("backbone.") else ours.replace(".bn.", ".norm.")
    raise UserError(f"the checkpoint's entry {name!r} is no part of the published PraNet; is it of another model?")

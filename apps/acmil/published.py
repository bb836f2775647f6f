"""The authors' checkpoints in our names, and their bundle: ACMIL's, and those of the networks that it is compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from apps.acmil.config import ACMILConvertConfig, ModelConfig
from apps.acmil.inference import ACMILPredictor, Settings
from apps.acmil.networks import NAMES, default_channels
from apps.acmil.published_names import from_published, recognise
from shared.bundle import load_weights, provenance, read_checkpoint
from shared.errors import UserError

__all__ = ["convert"]


def convert(config: ACMILConvertConfig) -> None:
    """Writes a bundle with the authors' weights; the network is told by their names, and its sizes by their shapes."""
    state = _read(config.published)
    name = recognise(state)
    if name is None:
        known = ", ".join(NAMES.values())
        raise UserError(
            f"{config.published}: is no checkpoint of a network that is known here ({known}); its first entry is {next(iter(state))!r}."
        )
    try:
        ours = from_published(state, name=name)
    except UserError as error:
        raise UserError(f"{config.published}: {error}") from error
    settings = _settings(name, ours, config)
    model = settings.build()
    load_weights(model, ours, source=config.published)
    facts = provenance(converted_from=config.published.name)
    ACMILPredictor(model, settings, facts=facts).save_bundle(config.output)
    print(
        f"{config.output}: {NAMES[name]} for features of width {settings.features}, classes {', '.join(settings.classes)}. "
        f"Try: apps.acmil infer --model {config.output} --input BAGS --output results"
    )


def _settings(name: str, state: Mapping[str, Tensor], config: ACMILConvertConfig) -> Settings:
    """The sizes as the converted weights have them."""
    reduction = next((state[key] for key in ("reduction.linear.weight", "reduction.weight") if key in state), None)
    if name == "dsmil":
        features, channels = state["query.weight"].shape[1], state["query.weight"].shape[0]
        classes = len(state["instance_classifier.weight"])
    else:
        assert reduction is not None, "every other published network reduces its features"
        channels, features = reduction.shape
        heads = [key for key in state if re.fullmatch(r"classifiers\.\d+\.weight", key)]
        classes = sum(len(state[key]) for key in heads) if heads else len(state["classifier.weight"])
    scores = next((state[key] for key in ("pooling.hidden.weight", "pooling.scorer.hidden.weight") if key in state), None)
    branches = len([key for key in state if re.fullmatch(r"branch_classifiers\.\d+\.weight", key)])
    blocks = len([key for key in state if re.fullmatch(r"reduction\.blocks\.\d+\.0\.weight", key)])
    model = ModelConfig(
        name=name if config.name is None else config.name,
        channels=None if channels == default_channels(features) else channels,
        attention_channels=128 if scores is None else len(scores),
        branches=branches or 5,
        blocks=blocks,
    )
    names = config.classes or [f"class {number}" for number in range(classes)]
    if len(names) != classes:
        raise UserError(f"--classes names {len(names)} classes, and {config.published} tells {classes} apart.")
    if len(set(names)) < classes:
        raise UserError(f"--classes: {', '.join(names)}: each class needs a name of its own.")
    return Settings(model=model, classes=tuple(names), features=features, encoder=config.encoder)


def _read(path: Path) -> dict[str, Tensor]:
    """A flat state dict of any of the published kinds of file."""
    try:
        state = read_checkpoint(path)
    except UserError:
        parts = _parts(path)
        if not parts:
            raise
        state = parts
    if all(key.startswith("model.") for key in state):  # Lightning's, of TransMIL
        state = {key.removeprefix("model."): value for key, value in state.items()}
    # CLAM's own loader does the same: data-parallel training, and a loss that is kept as a module.
    return {key.replace(".module.", "."): value for key, value in state.items() if "instance_loss_fn" not in key}


def _parts(path: Path) -> dict[str, Tensor] | None:
    """The weights of a file that also holds the training's settings (ACMIL), or of one with several state dicts (DTFD).

    None if it is not such a file either. Of the pickle nothing runs but the rebuilding of tensors: ACMIL's own class of settings is read
    as a plain namespace, and any other name is refused.
    """
    if not path.is_file():
        return None
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises many types on a damaged file, and on one with more than tensors
        try:
            with torch.serialization.safe_globals([(SimpleNamespace, "utils.utils.Struct")]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            return None
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("model"), dict):
        return {key.removeprefix("module."): value for key, value in content["model"].items() if isinstance(value, Tensor)}
    tiers = ("classifier", "dim_reduction", "attention", "att_classifier")
    if all(isinstance(content.get(tier), dict) for tier in tiers):
        return {f"{tier}.{key.removeprefix('module.')}": value for tier in tiers for key, value in content[tier].items()}
    return None

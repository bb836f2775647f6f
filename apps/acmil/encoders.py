"""What makes features of tiles: texture statistics, foundation models, any model of timm or torchvision, or a program on disk."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.acmil.config_pipeline import EncoderConfig
from apps.acmil.texture import TEXTURE_FEATURES, texture
from shared.bundle import read_checkpoint
from shared.devices import autocast, resolve_device, resolve_precision
from shared.errors import UserError

__all__ = ["Encoder", "build_foundation_model", "foundation_models", "load_encoder"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HEADS = ("fc", "classifier", "heads", "head")
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """Tiles to features. ``load_encoder`` makes it."""

    name: str
    """As bags say it; with the first digits of its weights' checksum where the name alone does not say which weights."""
    dimension: int
    network: Callable[[Tensor], Tensor]
    """Normalised float [B, 3, S, S] to [B, D]."""
    input_px: int | None = None
    """Side that tiles are resized to; None: they stay as they are."""
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    mpp: float | None = None
    """Micrometres per pixel of the tiles it was trained on, where that is known."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"

    @torch.inference_mode()
    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Tiles uint8 [B, H, W, 3] to features float32 [B, D]. May be called from one thread at a time."""
        pixels = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device).permute(0, 3, 1, 2).float() / 255
        if self.input_px is not None and pixels.shape[-2:] != (self.input_px, self.input_px):
            pixels = F.interpolate(pixels, (self.input_px, self.input_px), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        with autocast(self.precision, self.device):
            features = self.network((pixels - mean) / std)
        result: NDArray[np.float32] = features.float().cpu().numpy()
        return result


def load_encoder(config: EncoderConfig, *, device: str = "auto", precision: str = "auto") -> Encoder:
    """The encoder of these settings.

    Raises:
        UserError: if there is none of that name, its weights are missing, cannot be had or are another model's, or it has none.
    """
    where = resolve_device(device)
    facts = {"device": where, "precision": resolve_precision(precision, where)}
    if config.name == "texture":
        if config.weights is not None:
            raise UserError(f"encoder texture: has no weights to be read from {config.weights}. Leave that file out.")
        return Encoder(name="texture", dimension=TEXTURE_FEATURES, network=texture, **facts)
    if config.name == "file":
        return _program(config, facts)
    kind, _, model = config.name.partition("/")
    if kind == "timm" and model:
        return _timm(config, model, facts)
    if kind == "torchvision" and model:
        return _torchvision(config, model, facts)
    if config.name in foundation_models():
        return _foundation(config, foundation_models()[config.name], facts)
    raise UserError(
        f"encoder.name: there is no {config.name!r}. Choose texture, file, timm/MODEL, torchvision/MODEL, or one of "
        f"{', '.join(foundation_models())}."
    )


@cache
def foundation_models() -> Mapping[str, dict[str, Any]]:
    """What encoders.yaml says, by name."""
    entries: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "encoders.yaml").read_text())
    return entries


def _foundation(config: EncoderConfig, entry: dict[str, Any], facts: dict[str, Any]) -> Encoder:
    stage = entry["pooling"] == "third_stage"
    if config.weights is None and not config.pretrained:
        gate = "gated: accept its terms there first; " if entry["gated"] else ""
        raise UserError(
            f"encoder {config.name}: its weights are not part of Fovea. Get them from https://huggingface.co/{entry['hub']} "
            f"({gate}licence: {entry['licence']}) and give the file with --encoder.weights, or set --encoder.pretrained true."
        )
    network = build_foundation_model(entry)
    _fill(network, config.weights or _downloaded(config.name, entry))
    network = network.eval().requires_grad_(False).to(facts["device"])
    call: Callable[[Tensor], Tensor] = network
    if stage:
        call = lambda pixels: network(pixels)[0].mean((2, 3))  # noqa: E731
    elif entry["pooling"] == "token_and_mean":
        first = 1 + entry.get("registers", 0)

        def call(pixels: Tensor) -> Tensor:
            tokens = network.forward_features(pixels)  # type: ignore[operator]
            return torch.cat([tokens[:, 0], tokens[:, first:].mean(1)], dim=-1)

    mean, std = (tuple(entry.get(key, default)) for key, default in zip(("mean", "std"), _IMAGENET, strict=True))
    known = {"mean": mean, "std": std, "input_px": entry["input_px"], "mpp": entry["mpp"]}
    return Encoder(name=config.name, dimension=entry["dimension"], network=call, **known, **facts)


def build_foundation_model(entry: Mapping[str, Any]) -> nn.Module:
    """The network of an entry of encoders.yaml; its weights are to come, so none are drawn where timm lets them be skipped."""
    arguments = {key: _resolved(value) for key, value in entry["arguments"].items()}
    arguments |= {"weight_init": "skip"} if entry["model"].startswith("vit_") else {}
    if entry["pooling"] == "third_stage":
        return _create(entry["model"], arguments | {"features_only": True, "out_indices": (3,)})
    return _create(entry["model"], arguments | {"num_classes": 0})


def _timm(config: EncoderConfig, model: str, facts: dict[str, Any]) -> Encoder:
    from timm.data import resolve_model_data_config

    _need_weights(config)
    network = _create(model, {"num_classes": 0, "pretrained": config.pretrained and config.weights is None})
    if config.weights is not None:
        _fill(network, config.weights)
    own = resolve_model_data_config(network)
    return _wrapped(config, network, facts, input_px=own["input_size"][-1], mean=own["mean"], std=own["std"])


def _torchvision(config: EncoderConfig, model: str, facts: dict[str, Any]) -> Encoder:
    from torchvision.models import get_model

    _need_weights(config)
    try:
        network = get_model(model, weights="DEFAULT" if config.pretrained and config.weights is None else None)
    except ValueError as error:
        raise UserError(f"encoder.name: torchvision has no model {model!r} ({error}).") from error
    except OSError as error:
        raise UserError(
            f"encoder {config.name}: its weights cannot be downloaded ({error}). Give the file with --encoder.weights."
        ) from error
    if config.weights is not None:
        _fill(network, config.weights)
    head = next((name for name in _HEADS if hasattr(network, name)), None)
    if head is None:
        raise UserError(f"encoder.name: {model} is no classifier of whole pictures. Choose another model of torchvision.")
    setattr(network, head, nn.Identity())
    return _wrapped(config, network, facts, input_px=224, mean=_IMAGENET[0], std=_IMAGENET[1])


def _program(config: EncoderConfig, facts: dict[str, Any]) -> Encoder:
    path = config.weights
    if path is None or not path.is_file():
        raise UserError(f"encoder.weights: {path or 'not given'}: `file` needs a TorchScript (.pt) or torch.export (.pt2) program there.")
    try:
        if path.suffix == ".pt2":
            network: nn.Module = torch.export.load(path).module()
        else:
            network = torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: is neither a TorchScript nor a torch.export program ({reason}). Weights alone need timm/MODEL."
        ) from error
    return _wrapped(config, network, facts, input_px=None, mean=_IMAGENET[0], std=_IMAGENET[1])


def _wrapped(
    config: EncoderConfig, network: nn.Module, facts: dict[str, Any], *, input_px: int | None, mean: Triple, std: Triple
) -> Encoder:
    """Measures the width of the features with one blank tile."""
    network = network.to(facts["device"])
    if not isinstance(network, torch.fx.GraphModule):  # an exported program is in the mode that it was exported in
        network = network.eval()
    name = config.name if config.weights is None else f"{config.name}@{_checksum(config.weights)}"
    side = config.input_px or input_px
    known = {"input_px": side, "mean": tuple(config.mean or mean), "std": tuple(config.std or std)}
    encoder = Encoder(name=name, dimension=0, network=network, **known, **facts)
    try:
        features = encoder.embed(np.full((1, side or 224, side or 224, 3), 255, np.uint8))
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"encoder {config.name}: does not answer to a picture of {side or 224} px ({reason}). Give --encoder.input_px."
        ) from error
    if features.ndim != 2:
        raise UserError(f"encoder {config.name}: answers {list(features.shape)} to one tile, and [1, width] was expected: one vector.")
    return Encoder(name=name, dimension=features.shape[1], network=network, **known, **facts)


def _create(model: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    try:
        network: nn.Module = timm.create_model(model, **arguments)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"encoder.name: timm cannot make {model!r} ({' '.join(str(error).split())[:160]}).") from error
    except OSError as error:
        raise UserError(f"encoder {model}: its weights cannot be downloaded ({error}). Give the file with --encoder.weights.") from error
    return network


def _need_weights(config: EncoderConfig) -> None:
    if config.weights is None and not config.pretrained:
        raise UserError(
            f"encoder {config.name}: without weights its features mean nothing. Give the file with --encoder.weights, or set "
            "--encoder.pretrained true."
        )


def _fill(network: nn.Module, path: Path) -> None:
    """Loads every entry that the network has; a classifier that it does not have is left out."""
    state, own = read_checkpoint(path), network.state_dict()
    missing = [name for name in own if name not in state or state[name].shape != own[name].shape]
    strange = [name for name in state if name not in own and not name.startswith((*_HEADS, "layer4", "mask_token"))]
    if missing or strange:
        example = f"{missing[0]} is missing or of another shape" if missing else f"{strange[0]} is not part of it"
        raise UserError(f"{path}: weights of another model: {len(missing) + len(strange)} entries do not fit, such as: {example}.")
    network.load_state_dict({name: state[name] for name in own})


def _downloaded(name: str, entry: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(entry["hub"], file))
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
    raise UserError(
        f"encoder {name}: its weights cannot be downloaded from https://huggingface.co/{entry['hub']} ({reason}). If it is gated, "
        "accept its terms and run `hf auth login`; or give the file with --encoder.weights."
    )


def _resolved(value: Any) -> Any:
    """A class, where a dotted name stands for one."""
    if isinstance(value, str) and "." in value:
        module, _, name = value.rpartition(".")
        return getattr(importlib.import_module(module), name)
    return value


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]

"""The model folder: weights as safetensors, settings, model card and provenance; nothing in it is executed when it is loaded."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from shared.errors import UserError
from shared.files import atomic_folder

__all__ = ["Bundle", "check_finite", "load_bundle", "load_weights", "provenance", "read_checkpoint", "save_bundle"]

FILES = ("model.safetensors", "config.yaml", "card.md", "provenance.json")
FORMAT = 1
_SCALAR = np.float64().__reduce__()[0]
_NUMBERS: list[Any] = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]
"""What a number of numpy's is made of, in old files and new: scores beside the weights may be such. Nothing of it runs code."""
_PACKAGES = ("fovea", "torch", "torchvision", "timm", "lightning", "segmentation-models-pytorch", "monai", "numpy")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a model folder holds."""

    app: str
    """Name of the app whose Predictor reads it, such as pranet."""
    config: dict[str, Any]
    """Everything needed to rebuild the model and its preprocessing, as the app wrote it."""
    state: dict[str, Tensor]
    """The weights by parameter name, on the CPU."""
    card: str
    """The model card, Markdown."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it comes from: see ``provenance``."""


def save_bundle(folder: Path | str, bundle: Bundle) -> Path:
    """Writes the folder whole or not at all; an older one of the same name is replaced.

    Raises:
        UserError: if the folder cannot be written, or holds something else than a bundle.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the bundle.")
    if folder.exists() and (strange := sorted(path.name for path in folder.iterdir() if path.name not in FILES)):
        raise UserError(f"{folder}: holds {strange[0]!r}, which is no part of a bundle; name a new folder, so that nothing is lost.")
    with atomic_folder(folder) as temporary:
        # Copies, because safetensors refuses weights that share memory (tied ones).
        state = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in bundle.state.items()}
        safetensors.torch.save_file(state, temporary / FILES[0])
        config = {"app": bundle.app, "format": FORMAT, **bundle.config}
        (temporary / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        # safetensors makes its file its owner's alone, but a service runs as another user; the umask decides, as for the files beside it.
        shutil.copymode(temporary / "config.yaml", temporary / FILES[0])
        (temporary / "card.md").write_text(bundle.card)
        (temporary / "provenance.json").write_text(json.dumps(bundle.provenance, indent=2, default=str) + "\n")
    return folder


def load_bundle(folder: Path | str, *, app: str) -> Bundle:
    """Reads a model folder.

    Args:
        app: the app that asks; another app's bundle is refused.

    Raises:
        UserError: if the folder or one of its files is missing or damaged, or it is another app's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder. `apps.{app} train` and `apps.{app} convert` make one.")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: not a complete bundle, {', '.join(missing)} is missing. Copy the whole folder again, or train or convert anew."
        )
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        found, version = config.pop("app"), config.pop("format")
        details = dict(json.loads((folder / "provenance.json").read_text()))
        card = (folder / "card.md").read_text()
        state = safetensors.torch.load_file(folder / "model.safetensors")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, yaml.YAMLError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: damaged bundle ({type(error).__name__}: {reason}). Copy it again, or train or convert anew.") from error
    if found != app:
        raise UserError(f"{folder}: is a bundle of {found!r}, not of {app!r}. Use `apps.{found}`.")
    if version != FORMAT:
        raise UserError(f"{folder}: bundle format {version}, this version of Fovea reads {FORMAT}. Install the version that wrote it.")
    return Bundle(app=found, config=config, state=state, card=card, provenance=details)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Loads ``state`` into ``model``, every name and every shape.

    Raises:
        UserError: if they do not fit; names ``source``, how much does not fit, and an example.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not part of this model" for name in state if name not in own]
    problems += [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        raise UserError(f"{source}: weights of another model: {len(problems)} of {len(own)} entries do not fit, the first: {problems[0]}.")
    model.load_state_dict(dict(state))


def read_checkpoint(
    path: Path | str,
    *,
    wrappers: Sequence[str] = ("state_dict", "model"),
    advice: str = "Download it again.",
    missing: str = "Download the checkpoint first; the app's README says where.",
) -> dict[str, Tensor]:
    """A published checkpoint as a flat state dict on the CPU: of ``torch.save`` (tensors and numbers; nothing is executed) or safetensors.

    A wrapper such as {"state_dict": ...} is opened, wrappers within wrappers too, and a common "module." prefix removed.

    Args:
        path: the file.
        wrappers: keys under which the state dict may stand.
        advice: what to do about a file that is no checkpoint.
        missing: what to do if there is none.

    Raises:
        UserError: if the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. {missing}")
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(_NUMBERS):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on a damaged file
        # torch's own text advises to load it without the safety catch, or comes from within the unpickler ("pop from empty list")
        foreign = "weights_only" in str(error) or isinstance(error, (EOFError, LookupError))
        reason = "it holds more than tensors, or is none of torch's files" if foreign else " ".join(str(error).split())
        raise UserError(f"{path}: not a readable checkpoint of tensors ({reason}). {advice}") from error
    for wrapper in wrappers:
        if isinstance(state, dict) and wrapper in state:
            state = state[wrapper]
    entries = state.items() if isinstance(state, dict) else ()
    if not entries or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries):
        raise UserError(f"{path}: holds no state dict (names with tensors), so it is not a model's checkpoint. {advice}")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def check_finite(state: Mapping[str, Tensor], *, source: Path | str, advice: str = "Download it again.") -> None:
    """Raises UserError if a weight is NaN or infinite; names ``source`` and the first such entry."""
    if broken := next((name for name, value in state.items() if not value.isfinite().all()), None):
        raise UserError(f"{source}: holds weights that are not finite (the first: {broken}). {advice}")


def provenance(**facts: Any) -> dict[str, Any]:
    """Where a bundle comes from: time, code version, package versions, and the given facts (seed, data, metrics)."""
    return {"created": datetime.now(UTC).isoformat(timespec="seconds"), "code": _commit(), "packages": _versions(), **facts}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, with "+changes" if it was edited; None if it is no checkout."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")

"""What an app says about itself so that the promises can be tried on it; apps are found, not listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["APPS", "BadInput", "Content", "Contract", "GoodInput", "Published", "contract_of", "predictor_of", "wrap_in_torch"]

APPS = sorted(path.parent.name for path in (Path(__file__).parents[2] / "apps").glob("*/__main__.py"))
"""Every folder under apps/ that has a command line."""


Content = bytes | Mapping[str, bytes]
"""Of a file; or of the files of a folder that is one input, by name: a DICOM series, the sequences of an examination."""


@dataclass(frozen=True, kw_only=True)
class GoodInput:
    """A file or folder that the app reads, and what its results must look like."""

    content: Callable[[], Content]
    """The same at each call. A folder is sent to the service as a zip archive."""
    geometry: Any
    """What ``Contract.geometry`` must find in the results of each of its samples; compared by ``==``."""
    samples: tuple[str, ...] = ("",)
    """The ids of its samples; more than one for a video, a series, a multi-page file."""
    same_as: str | None = None
    """The name of another input that shows the very same thing in another format; the main results must be the same: see Contract.same."""


@dataclass(frozen=True, kw_only=True)
class BadInput:
    """A file or folder that must be refused."""

    content: Callable[[], Content]
    reason: str
    """Part of what failures.csv must say, in upper or lower case."""


def wrap_in_torch(checkpoint: Path, wrapped: Path) -> None:
    """A file of torch's as DataParallel and many training programs leave it."""
    import torch

    state = torch.load(checkpoint, weights_only=True)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, wrapped)


@dataclass(frozen=True, kw_only=True)
class Published:
    """The authors' checkpoint, made up: their names and shapes with drawn weights, from a parity fixture."""

    write: Callable[[Path], None]
    """Writes a file as the authors' program saved it."""
    suffix: str = ".pth"
    """Of that file's name."""
    wrap: Callable[[Path, Path], None] = wrap_in_torch
    """Writes what the first file holds to the second, as other programs leave the same weights."""
    errors: Callable[[Path], Mapping[str, tuple[float, float]]]
    """Of a bundle made from it: output -> (largest error against the published program's answer, tolerance), in any one unit."""
    strangers: Callable[[Path], Mapping[str, str]] = field(default=lambda folder: {})
    """Writes into a folder checkpoints that people mistake for it; file name -> what the message must say."""
    options: Callable[[Path], Sequence[object]] = field(default=lambda folder: [])
    """Other words for ``convert``: what the file itself does not say. May write files into the folder."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One app. Commands are given as their words, without the app's name."""

    predictor: str
    """The name of the Predictor in the app's package."""
    phantoms: Callable[[Path], Sequence[object]]
    """``data phantom ...``: the command that makes labelled phantoms in a folder, to train on."""
    unseen: Callable[[Path], Sequence[object]]
    """``data phantom ...`` with another seed, to score on."""
    train: Callable[[Path, Path], Sequence[object]]
    """``train ...``: data folder, run folder; long enough to reach ``score``."""
    few_epochs: Sequence[object]
    """Options that make this training short: a handful of epochs, of several optimiser steps each."""
    evaluate: Callable[[Path, Path, Path], Sequence[object]]
    """``evaluate ...``: bundle, data folder, output folder."""
    scores: Callable[[Path], tuple[float, float]]
    """Of evaluate's output folder: the model's score, and that of the best answer that needs no model. Higher is better."""
    score: float
    """What the model reaches on phantoms that it has not seen."""
    good: Mapping[str, GoodInput]
    """Inputs of every kind and of odd sizes, by name, with no spaces in it. The first is a file that the app answers fast: it is made
    into many, and truncated to make a bad one."""
    bad: Mapping[str, BadInput]
    """Inputs that only this app's formats can have, such as a picture that claims to be huge."""
    main_result: str
    """The kind of file, in a prediction's "files", that ``Prediction.encode`` makes of the first media type."""
    geometry: Callable[[Mapping[str, Path]], Any]
    """Of the result files of one sample, by kind: their geometry (size; shape and rounded affine); fails if they disagree."""
    published: Published
    same: Callable[[Path], Any] = Path.read_bytes
    """Of a main result: what must be equal (``==``) for one thing in two formats. Bytes, unless the result keeps its source's header."""


def contract_of(app: str) -> Contract:
    """The app's own: tests/apps/<app>/contract.py."""
    contract = import_module(f"tests.apps.{app}.contract").CONTRACT
    assert isinstance(contract, Contract)
    return contract


def predictor_of(app: str) -> Any:
    """The app's Predictor class."""
    return getattr(import_module(f"apps.{app}"), contract_of(app).predictor)

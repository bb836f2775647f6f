"""A command line with all that an app's has: nested settings, lists, groups, and verbs that fail in every way."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.cli import verb
from shared.config import Fraction, PositiveFloat, PositiveInt, plain
from shared.errors import UserError

__all__ = ["VERBS"]


@dataclass(kw_only=True)
class ModelConfig:
    name: Literal["large", "small"] = "small"
    """Which network."""
    channels: PositiveInt = 32


@dataclass(kw_only=True)
class FitConfig:
    epochs: PositiveInt = 20
    lr: PositiveFloat = 1e-4
    clip: PositiveFloat | None = None


@dataclass(kw_only=True)
class TrainConfig:
    """Train on labelled frames."""

    model: ModelConfig = field(default_factory=ModelConfig)
    fit: FitConfig = field(default_factory=lambda: FitConfig(clip=0.5))
    scales: tuple[PositiveFloat, ...] = (0.75, 1.0)
    validation: Fraction = 0.1
    augment: bool = True
    output: Path = Path("runs/toy")
    resume: Path | None = None


@dataclass(kw_only=True)
class InferConfig:
    """Predict for files."""

    model: Path
    """A bundle."""
    input: list[Path]
    """Files or folders."""


@dataclass(kw_only=True)
class FailConfig:
    """Fail."""

    how: Literal["user", "package", "bug", "interrupt", "code"]


@dataclass(kw_only=True)
class ListConfig:
    """List the data sets."""

    long: bool = False


@dataclass(kw_only=True)
class FetchConfig:
    """Get a data set."""

    name: str
    root: str = "data"


def show(settings: object) -> None:
    """Prints what the verb was called with."""
    print(json.dumps(plain(settings)))


def fail(config: FailConfig) -> int:
    """Ends as it is told to."""
    if config.how == "user":
        raise UserError("frame.png: is empty. Copy it again.")
    if config.how == "package":
        raise ModuleNotFoundError("No module named 'flash'", name="flash.ops")
    if config.how == "bug":
        raise ModuleNotFoundError("No module named 'shared.flash'", name="shared.flash")
    if config.how == "interrupt":
        raise KeyboardInterrupt
    return 3


VERBS = {
    "train": verb("tests.shared.toy:show", TrainConfig),
    "infer": verb("tests.shared.toy:show", InferConfig),
    "fail": verb("tests.shared.toy:fail", FailConfig),
    "data": {"list": verb("tests.shared.toy:show", ListConfig), "fetch": verb("tests.shared.toy:show", FetchConfig, positional="name")},
}

"""Types for settings. The command line checks values against them before any work begins. Imports no torch."""

import dataclasses
from pathlib import PurePath
from typing import Any, Literal

import yaml
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["Device", "Fraction", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "Precision", "plain", "to_yaml"]

Fraction = ClosedUnitInterval
"""A number from 0 to 1, both included."""

Device = str
"""auto (the first GPU, else the CPU), cpu, cuda, cuda:1, mps."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""auto: bf16 or fp16 where the device computes it natively and measures faster, else fp32."""


def to_yaml(settings: Any) -> str:
    """A settings dataclass as the YAML that --cfg reads."""
    return yaml.safe_dump(plain(settings), sort_keys=False)


def plain(value: Any) -> Any:
    """A settings dataclass, or anything in one, as YAML and JSON have it: dictionaries, lists, text and plain numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, PurePath):
        return str(value)
    return value

"""Settings become YAML that reads back as the same settings."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from shared.config import Fraction, PositiveInt, plain, to_yaml
from shared.training.config import FitConfig


@dataclass(kw_only=True)
class Inner:
    root: Path = Path("data/frames")
    scales: tuple[float, ...] = (0.75, 1.0)


@dataclass(kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    count: PositiveInt = 3
    part: Fraction = 0.1
    name: str | None = None


def test_settings_become_plain_values_in_the_order_of_their_class() -> None:
    assert plain(Outer()) == {"inner": {"root": "data/frames", "scales": [0.75, 1.0]}, "count": 3, "part": 0.1, "name": None}
    assert list(plain(Outer())) == ["inner", "count", "part", "name"]
    assert plain({"a": [Path("b"), (1, Outer)]}) == {"a": ["b", [1, Outer]]}


def test_the_yaml_reads_back() -> None:
    assert yaml.safe_load(to_yaml(Outer())) == plain(Outer())


def test_small_learning_rates_are_read_back_as_numbers() -> None:
    """YAML takes 1e-05 for text, unless it is written 1.0e-05."""
    settings = FitConfig()
    settings.optimizer.lr = 1e-5
    assert yaml.safe_load(to_yaml(settings))["optimizer"]["lr"] == 1e-5

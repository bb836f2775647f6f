"""Weights and inputs that both sides can draw for themselves, so that a fixture stores only names, shapes and a seed.

Each array is drawn by its own PCG64 generator, seeded with the CRC-32 of its name and the fixture's seed: the order of the entries does
not matter, and renaming one changes only that one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["draw_inputs", "draw_state"]


def draw_state(entries: Iterable[Mapping[str, Any]], seed: int) -> dict[str, np.ndarray]:
    """A state dict under the published names. Entries: name, shape, dtype, and a literal value for what is not drawn.

    Floats are scaled so that a deep network neither dies nor blows up; integers without a value (counters of batches) are zero.
    """
    return {entry["name"]: _parameter(entry, seed) for entry in entries}


def draw_inputs(entries: Iterable[Mapping[str, Any]], seed: int) -> dict[str, np.ndarray]:
    """The inputs. Entries: name, shape, and kind (normal; uniform on 0 to 1; int from 0 to below ``high``), or a literal value.

    Raises:
        ValueError: if a kind is not one of the three.
    """
    return {entry["name"]: _input(entry, seed) for entry in entries}


def _parameter(entry: Mapping[str, Any], seed: int) -> np.ndarray:
    name, shape, dtype = entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"])
    if "value" in entry:
        return _literal(entry)
    if dtype.kind != "f":
        return np.zeros(shape, dtype)
    noise = _generator(name, seed).standard_normal(shape).astype(np.float32)
    kind = name.rpartition(".")[2]
    if kind == "running_var":
        return (1.0 + 0.1 * np.abs(noise)).astype(np.float32)
    if kind == "running_mean" or (len(shape) < 2 and kind != "weight"):
        return (0.1 * noise).astype(np.float32)
    if len(shape) < 2:
        return (1.0 + 0.1 * noise).astype(np.float32)
    inputs_per_output = max(math.prod(shape[1:]), 1)
    return (noise / math.sqrt(inputs_per_output)).astype(np.float32)


def _input(entry: Mapping[str, Any], seed: int) -> np.ndarray:
    if "value" in entry:
        return _literal(entry)
    generator, shape = _generator(f"input:{entry['name']}", seed), tuple(entry["shape"])
    match entry.get("kind", "normal"):
        case "normal":
            return generator.standard_normal(shape).astype(np.float32)
        case "uniform":
            return generator.random(shape).astype(np.float32)
        case "int":
            return generator.integers(0, entry["high"], size=shape).astype(np.int64)
        case other:
            raise ValueError(f"input {entry['name']!r} is of kind {other!r}; known are normal, uniform and int")


def _literal(entry: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(entry["value"], dtype=entry["dtype"]).reshape(entry["shape"])


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))

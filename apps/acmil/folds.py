"""Which slides are trained on, which choose the epoch, and which are held out: whole patients, and every class in every part."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apps.acmil.config import DataConfig
from apps.acmil.data import LabelledSlide
from shared.errors import UserError

__all__ = ["Parts", "class_weights", "divide", "monte_carlo_splits", "patient_folds", "read_splits"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Three parts; ``test`` may be empty."""

    train: Any
    validation: Any
    test: Any


def divide(slides: Sequence[LabelledSlide], config: DataConfig, *, seed: int) -> Parts:
    """The slides of each part, as the settings say: a table of the user's, the column ``split``, or folds by patient.

    Raises:
        UserError: if a patient would be in two parts, a part would be empty, training slides were of one class only, or the folds cannot
            be made.
    """
    if config.splits is not None:
        parts = _named(slides, read_splits(config.splits), source=config.splits)
    elif any(slide.split for slide in slides):
        parts = _by_column(slides, config, seed=seed)
    else:
        parts = _by_patient(slides, config, seed=seed)
    _check(parts, config.splits or "the division")
    return parts


def patient_folds(labels: ArrayLike, patients: Sequence[str], *, folds: int, seed: int) -> list[NDArray[np.intp]]:
    """The indices of each fold: no patient in two of them, the classes spread evenly (scikit-learn's StratifiedGroupKFold).

    Raises:
        UserError: if there are fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if len(set(patients)) < folds:
        raise UserError(f"{len(set(patients))} patients cannot be divided into {folds} folds: ask for fewer with --data.folds.")
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    labels = np.asarray(labels)
    return [test for _, test in splitter.split(np.zeros(len(labels)), labels, groups=list(patients))]


def monte_carlo_splits(labels: ArrayLike, *, validation: Sequence[int], test: Sequence[int], repeats: int, seed: int) -> Iterator[Parts]:
    """CLAM's divisions: of each class so many drawn for validation and testing, slide by slide; repeated, and not folds.

    Kept so that a published division can be made again; it knows no patients. Indices in each part.

    Args:
        labels: int [S].
        validation, test: how many slides of each class.
    """
    labels = np.asarray(labels)
    random = np.random.RandomState(seed)
    for _ in range(repeats):
        parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        for number, (checked, tested) in enumerate(zip(validation, test, strict=True)):
            own = np.flatnonzero(labels == number)
            chosen = random.choice(own, checked, replace=False)
            rest = np.setdiff1d(own, chosen)
            held = random.choice(rest, tested, replace=False)
            parts["validation"].extend(chosen)
            parts["test"].extend(held)
            parts["train"].extend(np.setdiff1d(rest, held))
        yield Parts(**{name: np.array(indices) for name, indices in parts.items()})


def class_weights(labels: ArrayLike) -> NDArray[np.float64]:
    """How often each slide is drawn so that all classes come equally often: slides over slides of its class. labels: int [S]."""
    labels = np.asarray(labels)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(labels) / counts[inverse]


def read_splits(path: Path) -> dict[str, list[str]]:
    """Slide names by part (train, validation, test) of a table: ACMIL's split_<seed>.json or CLAM's splits_<k>.csv in either of its forms.

    Raises:
        UserError: if the file cannot be read or is neither.
    """
    names = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            return {part: list(map(str, content.get(f"{short}_names") or [])) for short, part in names.items() if short != "validation"}
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no table of splits ({' '.join(str(error).split())}).") from error
    columns = {column.strip().lower(): column for column in (rows[0] if rows else {}) if column}
    parts = {part: columns[short] for short, part in names.items() if short in columns}
    if "train" not in parts:
        raise UserError(f"{path}: is no table of splits: no column train. Give splits_<k>.csv of CLAM or split_<seed>.json of ACMIL.")
    first = next(iter(rows[0]))
    flags = {value.strip().lower() for row in rows for value in (row[column] for column in parts.values()) if value}
    if flags <= {"true", "false"}:
        return {part: [row[first] for row in rows if (row[column] or "").strip().lower() == "true"] for part, column in parts.items()}
    return {part: [value.strip() for row in rows if (value := row[column] or "").strip()] for part, column in parts.items()}


def _by_patient(slides: Sequence[LabelledSlide], config: DataConfig, *, seed: int) -> Parts:
    if config.folds == 1 or (config.folds and config.fold >= config.folds):
        raise UserError(f"data.folds {config.folds} and data.fold {config.fold}: give at least 2 folds, and one of 0 to folds - 1.")
    held: set[int] = set()
    if config.folds:
        held = set(patient_folds(_labels(slides), _patients(slides), folds=config.folds, seed=seed)[config.fold].tolist())
    rest = [slide for index, slide in enumerate(slides) if index not in held]
    return _with_validation(rest, [slides[index] for index in sorted(held)], config, seed=seed)


def _by_column(slides: Sequence[LabelledSlide], config: DataConfig, *, seed: int) -> Parts:
    own = {"val": "validation", "valid": "validation", "training": "train", "testing": "test"}
    named: dict[str, list[LabelledSlide]] = {"train": [], "validation": [], "test": []}
    for slide in slides:
        part = own.get(slide.split.lower(), slide.split.lower())
        if part not in named:
            raise UserError(f"slide {slide.name}: the column split says {slide.split!r}; it must be train, validation or test.")
        named[part].append(slide)
    if named["validation"]:
        return Parts(**named)
    return _with_validation(named["train"], named["test"], config, seed=seed)


def _with_validation(slides: Sequence[LabelledSlide], test: list[LabelledSlide], config: DataConfig, *, seed: int) -> Parts:
    if not 0 < config.validation <= 0.5:
        raise UserError(f"data.validation is {config.validation}: part of the slides must choose the epoch, above 0 and at most 0.5.")
    folds = max(2, round(1 / config.validation))
    chosen = set(patient_folds(_labels(slides), _patients(slides), folds=min(folds, len(set(_patients(slides)))), seed=seed)[0].tolist())
    train = [slide for index, slide in enumerate(slides) if index not in chosen]
    return Parts(train=train, validation=[slides[index] for index in sorted(chosen)], test=test)


def _named(slides: Sequence[LabelledSlide], names: dict[str, list[str]], *, source: Path) -> Parts:
    by_name = {slide.name: slide for slide in slides}
    if unknown := [name for part in names.values() for name in part if name not in by_name]:
        raise UserError(f"{source}: names slides without a label or a bag, {len(unknown)} in all, the first {unknown[0]!r}.")
    return Parts(**{part: [by_name[name] for name in names.get(part, [])] for part in ("train", "validation", "test")})


def _check(parts: Parts, source: Path | str) -> None:
    for part in ("train", "validation"):
        if not getattr(parts, part):
            raise UserError(f"{source}: no slides for {part}. Give more slides, or another division.")
    seen: dict[str, str] = {}
    for part in ("train", "validation", "test"):
        for slide in getattr(parts, part):
            other = seen.setdefault(slide.patient, part)
            if other != part:
                raise UserError(
                    f"{source}: patient {slide.patient} is in {other} and in {part} (slide {slide.name}). "
                    "Slides of one patient resemble each other: put them all into one part."
                )
    if len({slide.label for slide in parts.train}) < 2:
        (label,) = {slide.label_name for slide in parts.train}
        raise UserError(f"{source}: all {len(parts.train)} slides for training are {label!r}. Slides of at least two classes are needed.")


def _labels(slides: Sequence[LabelledSlide]) -> list[int]:
    return [slide.label for slide in slides]


def _patients(slides: Sequence[LabelledSlide]) -> list[str]:
    return [slide.patient for slide in slides]

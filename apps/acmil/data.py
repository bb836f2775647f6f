"""Labelled slides: their table, their bags, and what training makes of them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from apps.acmil.bags import Bag, BagFile, bag_shape, read_bag
from apps.acmil.config import DataConfig
from shared.errors import InputError, UserError

__all__ = [
    "LabelledSlide",
    "TrainingBags",
    "ValidationBags",
    "check_encoder",
    "describe",
    "labelled_slides",
    "read_labels",
    "usable_bags",
]

Batch = dict[str, Tensor]
_COLUMNS = {
    "slide": ("slide", "slide_id", "slide_name", "wsi", "filename", "image"),
    "label": ("label", "class", "target", "tumor", "type"),
    "patient": ("patient", "patient_id", "case_id", "case"),
    "split": ("split", "part", "subset", "fold_name"),
}


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One line of a table of labels."""

    slide: str
    label: str
    patient: str
    """The slide's own name where the table names no patients."""
    split: str
    """Empty where the table has no such column."""


@dataclass(frozen=True, kw_only=True)
class LabelledSlide:
    """A slide with its label."""

    name: str
    label: int
    label_name: str
    patient: str
    split: str
    source: BagFile
    """Its bag, or the slide itself."""


def read_labels(path: Path) -> list[LabelRow]:
    """The rows of a table of labels: CSV, or TSV, with a header; names are read as text, so that 007 stays 007.

    Raises:
        UserError: if it cannot be read, has no columns of slides and labels, a slide without a label, or two labels for one slide.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() in (".tsv", ".txt") else ","))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). Give a table of labels with --data.labels.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no table ({error}). Save it as CSV.") from error
    header = [name for name in (rows[0] if rows else {}) if name]
    lower = {name.strip().lower(): name for name in header}
    columns = {kind: next((lower[name] for name in names if name in lower), None) for kind, names in _COLUMNS.items()}
    for kind in ("slide", "label"):
        if columns[kind] is None:
            found = ", ".join(header) or "nothing"
            raise UserError(f"{path}: has no column {' or '.join(_COLUMNS[kind][:2])}; it has {found}. Rename the column in the table.")
    found: dict[str, LabelRow] = {}
    for number, row in enumerate(rows, start=2):
        cells = {kind: (row.get(column) or "").strip() if column else "" for kind, column in columns.items()}
        name = _bare(cells["slide"])
        if not name or not cells["label"]:
            raise UserError(f"{path}: line {number} has no {'label' if name else 'slide'}. Complete it, or delete the line.")
        one = LabelRow(slide=name, label=cells["label"], patient=cells["patient"] or name, split=cells["split"])
        other = found.setdefault(name, one)
        if other.label != one.label:
            raise UserError(
                f"{path}: slide {name} is labelled {other.label!r} and, in line {number}, {one.label!r}. Keep one of the lines."
            )
    if not found:
        raise UserError(f"{path}: has no lines. Give a slide and its label in each.")
    return list(found.values())


def labelled_slides(
    rows: Sequence[LabelRow], sources: Iterable[BagFile], *, classes: Sequence[str] | None = None, table: Path
) -> tuple[list[LabelledSlide], tuple[str, ...]]:
    """Slides that have a label and a bag, and the class names; says on the terminal what has only one of the two.

    Args:
        rows: the labels.
        sources: bags, or slides.
        classes: those that a model knows; the table's own, in order, if not given.
        table: named in messages.

    Raises:
        UserError: if no slide has both, or a label is none of ``classes``.
    """
    by_name = {source.slide: source for source in sources}
    names = tuple(classes) if classes is not None else _sorted_classes({row.label for row in rows if row.slide in by_name})
    if missing := [row.slide for row in rows if row.slide not in by_name]:
        print(f"left out: {len(missing)} of {len(rows)} slides of {table} have no features and no slide here: {_some(missing)}")
    known = {row.slide for row in rows}
    if extra := [name for name in by_name if name not in known]:
        print(f"left out: {len(extra)} slides have no label in {table}: {_some(extra)}")
    slides = []
    for row in rows:
        if row.slide not in by_name:
            continue
        if row.label not in names:
            raise UserError(f"{table}: slide {row.slide} is labelled {row.label!r}, and the classes are {', '.join(names)}.")
        facts = {"patient": row.patient, "split": row.split, "source": by_name[row.slide]}
        slides.append(LabelledSlide(name=row.slide, label=names.index(row.label), label_name=row.label, **facts))
    if not slides:
        raise UserError(
            f"{table}: not one of its {len(rows)} slides is here, such as {rows[0].slide!r}; there are {_some(list(by_name))}. "
            "The names must be those of the files, without folder and suffix."
        )
    return slides, names


def usable_bags(slides: Sequence[LabelledSlide], *, encoder: str = "") -> tuple[int, str]:
    """Width of the features and name of the encoder, the same in every bag; opens each of them without reading its features.

    Args:
        encoder: what they must be of; whatever the first says, if empty.

    Raises:
        UserError: if a bag is of another encoder than the others, empty, or cannot be read.
    """
    width, first = 0, ""
    for slide in slides:
        rows, columns = bag_shape(slide.source)
        if not rows:
            raise UserError(f"{slide.source}: the bag of {slide.name} is empty: no tissue was found. Remove its line from the table.")
        if not width:
            width, first = columns, slide.name
        name = _encoder_of(slide.source)
        if columns != width or (encoder and name and name != encoder):
            theirs, ours = f"{columns} wide{_of(name)}", f"{width} wide{_of(encoder)} in {first}"
            raise UserError(f"{slide.source}: features of another encoder: {theirs}, and {ours}. Make all bags with one encoder.")
        encoder = encoder or name
    return width, encoder


def check_encoder(bag: Bag, *, width: int, encoder: str, name: str) -> None:
    """That a model can read a bag.

    Raises:
        InputError: if it is of another encoder, by name or by the width of its features.
    """
    if bag.features.shape[1] != width or (bag.encoder and encoder and bag.encoder != encoder):
        theirs, ours = f"{bag.features.shape[1]} wide{_of(bag.encoder)}", f"{width} wide{_of(encoder)}"
        raise InputError(
            f"{name}: features of another encoder: {theirs}; this model reads features {ours}. Make them again: apps.acmil features"
        )


def describe(root: Path, slides: Sequence[LabelledSlide]) -> dict[str, str]:
    """What a bundle says of the slides it was trained on: the folder's name, and a checksum over names, labels and sizes of the bags."""
    lines = [f"{slide.name} {slide.label_name} {slide.patient} {bag_shape(slide.source)}\n" for slide in slides]
    return {"data": root.resolve().name, "data_sha256": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()}


class TrainingBags:
    """Bags to train on, read when they are asked for.

    Args:
        slides: what to draw from.
        balance: draw a class first and then one of its slides, instead of every slide once.
        max_instances: at most so many tiles, drawn anew each time.
    """

    def __init__(self, slides: Sequence[LabelledSlide], *, balance: bool, max_instances: int | None = None) -> None:
        self.slides, self.balance, self.max_instances = list(slides), balance, max_instances
        self.by_class = [[slide for slide in slides if slide.label == label] for label in sorted({slide.label for slide in slides})]

    def __len__(self) -> int:
        return len(self.slides)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """key: index, and seed of what is drawn. Returns "bag" [N, D] and "label"."""
        index, seed = key
        random = np.random.default_rng(seed)
        slide = self.slides[index]
        if self.balance:
            own = self.by_class[random.integers(len(self.by_class))]
            slide = own[random.integers(len(own))]
        features = read_bag(slide.source).features
        if self.max_instances is not None and len(features) > self.max_instances:
            features = features[np.sort(random.choice(len(features), self.max_instances, replace=False))]
        return {"bag": torch.from_numpy(features), "label": torch.tensor(slide.label)}


class ValidationBags(Dataset[Batch]):
    """Whole bags, each once."""

    def __init__(self, slides: Sequence[LabelledSlide]) -> None:
        self.slides = list(slides)

    def __len__(self) -> int:
        return len(self.slides)

    def __getitem__(self, index: int) -> Batch:
        """ "bag" [N, D] and "label"."""
        slide = self.slides[index]
        return {"bag": torch.from_numpy(read_bag(slide.source).features), "label": torch.tensor(slide.label)}


def bags_of(config: DataConfig) -> tuple[Path, Path]:
    """Folder (or file) of bags and table of labels."""
    return config.bags or first_folder(config.root, ("bags", "features", "h5_files")), config.labels or config.root / "labels.csv"


def first_folder(root: Path, names: Sequence[str]) -> Path:
    """The first of these folders that exists, else the first of them all."""
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def _encoder_of(source: BagFile) -> str:
    """The encoder's name as the bag says it, without reading its features."""
    if source.path.suffix == ".pt":
        return ""
    with h5py.File(source.path, "r") as file:
        group = file[source.group] if source.group else file
        tables = [group[name] for name in ("features", "feats", "feat") if name in group]
        name = (tables[0].attrs.get("encoder") if tables else None) or file.attrs.get("extractor") or ""
    return name.decode() if isinstance(name, bytes) else str(name)


def _sorted_classes(labels: set[str]) -> tuple[str, ...]:
    return tuple(sorted(labels, key=lambda label: (0, int(label), label) if label.isdecimal() else (1, 0, label)))


def _bare(name: str) -> str:
    """Without folder, and without the suffix of a slide or a bag; a name may have dots of its own."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    suffix = Path(name).suffix.lower()
    known = {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm", ".h5", ".hdf5", ".pt"}
    return name[: -len(suffix)] if suffix in known else name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _of(encoder: str) -> str:
    return f", of {encoder!r}" if encoder else ""

"""A study: stimuli that somebody saw, and responses to each presentation. Its folder layout, and the checks that every study passes."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace, space_from_arrays
from shared.arrays import load_npy, load_npz
from shared.encoding.splits import check_leakage
from shared.errors import UserError
from shared.files import atomic_path, write_text
from shared.imaging import write_png
from shared.phantoms.brain import BrainPhantom

__all__ = ["Study", "checked", "content_key", "read_own", "write_phantom"]

TABLE = "trials.csv"


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """One subject."""

    root: Path
    name: str
    images: list[Path]
    """The different stimuli."""
    captions: list[str]
    """What each shows, in words; empty where nothing is known."""
    test: NDArray[np.bool_]
    """[images]: kept for testing."""
    trials: NDArray[np.intp]
    """[T]: the stimulus of each presentation."""
    responses: NDArray[np.float32]
    """[T, V]; may be a memory map."""
    space: SurfaceSpace | VolumeSpace | TableSpace
    regions: dict[str, NDArray[np.bool_]]
    """Region -> bool [V]. Regions may overlap, and a unit may be in none."""
    ceiling: NDArray[np.float64] | None = None
    """[V]: noise ceiling of the test images' mean responses, in R2 (0 to 1), where the publisher gives one."""
    truth: Mapping[str, NDArray] = field(default_factory=dict)
    """Of a phantom."""

    @property
    def units(self) -> int:
        """V."""
        return self.responses.shape[1]

    def part(self, *, test: bool) -> NDArray[np.intp]:
        """The stimuli to test on, or to train on, that were presented."""
        shown = np.unique(self.trials)
        return shown[self.test[shown] == test]

    def mean_responses(self, stimuli: NDArray[np.intp]) -> NDArray[np.float32]:
        """[stimuli, V]: the mean over each one's presentations."""
        place = np.full(len(self.images), -1)
        place[stimuli] = np.arange(len(stimuli))
        rows = np.flatnonzero(place[self.trials] >= 0)
        target = place[self.trials[rows]]
        counts = np.bincount(target, minlength=len(stimuli))
        if (counts == 1).all():
            return np.asarray(self.responses[rows[target.argsort()]], dtype=np.float32)
        total = np.zeros((len(stimuli), self.units), dtype=np.float64)
        np.add.at(total, target, self.responses[rows])
        return (total / counts[:, None]).astype(np.float32)

    def presentations(self, stimuli: NDArray[np.intp]) -> NDArray[np.float32] | None:
        """[repeats, stimuli, V] if each was presented equally often and more than once, else None."""
        rows = [np.flatnonzero(self.trials == one) for one in stimuli]
        counts = {len(one) for one in rows}
        if len(counts) != 1 or min(counts) < 2:
            return None
        return np.stack([self.responses[[one[repeat] for one in rows]] for repeat in range(counts.pop())])

    def fingerprint(self) -> str:
        """A checksum over the stimuli, the split and the responses."""
        digest = hashlib.sha256()
        for path, held_out in zip(self.images, self.test, strict=True):
            digest.update(f"{path.name} {int(held_out)}\n".encode())
        digest.update(np.ascontiguousarray(self.trials).tobytes())
        for start in range(0, len(self.responses), 512):
            digest.update(np.ascontiguousarray(self.responses[start : start + 512]).tobytes())
        return digest.hexdigest()


def read_own(root: Path) -> Study:
    """Reads our own layout: images/, trials.csv, responses.npy, space.npz, and, if there are any, regions.npz, ceiling.npy and truth.npz.

    ``trials.csv`` has a row for each presentation, in the order of the rows of ``responses.npy``: image (a path below the folder), split
    (train or test), and, if known, caption.

    Raises:
        UserError: if a file is missing, damaged, or does not fit the others.
    """
    table = _rows(root / TABLE)
    names = list(dict.fromkeys(row["image"] for row in table))
    index = {name: position for position, name in enumerate(names)}
    split = {row["image"]: row["split"] for row in table}
    torn = sorted({row["image"] for row in table if row["split"] != split[row["image"]]})
    if torn:
        raise UserError(f"{root / TABLE}: {torn[0]} is in train and in test ({len(torn)} such images). Keep an image on one side.")
    strange = sorted(set(split.values()) - {"train", "test"})
    if strange:
        raise UserError(f"{root / TABLE}: split must be train or test, found {strange[0]!r}.")
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise UserError(f"{root / missing[0]}: no such file, and {len(missing)} of {len(names)} images are missing. Copy images/ too.")
    captions = {row["image"]: row.get("caption") or "" for row in table}
    responses = load_npy(root / "responses.npy", lazily=True)
    space = space_from_arrays(load_npz(root / "space.npz"), source=root / "space.npz")
    regions = {}
    if (root / "regions.npz").is_file():
        regions = {name: mask > 0 for name, mask in load_npz(root / "regions.npz").items()}
    truth = load_npz(root / "truth.npz") if (root / "truth.npz").is_file() else {}
    return Study(
        root=root,
        name=root.resolve().name,
        images=[root / name for name in names],
        captions=[captions[name] for name in names],
        test=np.array([split[name] == "test" for name in names]),
        trials=np.array([index[row["image"]] for row in table]),
        responses=responses,
        space=space,
        regions=regions,
        ceiling=load_npy(root / "ceiling.npy") if (root / "ceiling.npy").is_file() else None,
        truth=truth,
    )


def checked(study: Study, *, bad_units: str = "refuse", allow_repeats: bool = False) -> Study:
    """The study, if it can be used: numbers that fit together, no stimulus on both sides by content, no dead units.

    Args:
        bad_units: "refuse" or "drop" units whose responses are constant over the training presentations or not numbers.
        allow_repeats: let test images be among those that are fitted.

    Raises:
        UserError: with what was found and what to do.
    """
    if study.responses.ndim != 2 or study.responses.dtype.kind not in "fiu":
        found = f"{study.responses.dtype} of shape {study.responses.shape}"
        raise UserError(f"{study.root}: responses must be a table of numbers [presentations, units]; found {found}. Export them anew.")
    if len(study.responses) != len(study.trials):
        raise UserError(
            f"{study.root}: {len(study.trials):,} presentations, but responses with {len(study.responses):,} rows. Give one row for each "
            "presentation."
        )
    units = sum(study.space.hemispheres)
    if units != study.units:
        raise UserError(
            f"{study.root}: the responses have {study.units:,} units, but mask or vertices are {units:,}. Take both from one export."
        )
    for name, mask in study.regions.items():
        if mask.shape != (units,):
            raise UserError(f"{study.root}: region {name!r} has {mask.size:,} entries; {units:,} are expected, one for each unit.")
    if study.ceiling is not None and study.ceiling.shape != (units,):
        raise UserError(f"{study.root}: the noise ceiling has {study.ceiling.size:,} entries; {units:,} are expected, one for each unit.")
    if not len(study.part(test=False)):
        raise UserError(f"{study.root}: there is no training image. trials.csv says which are, in the column split.")
    contents = [content_key(path) for path in study.images]
    named = {content: path.name for content, path in zip(contents, study.images, strict=True)}
    train, test = ([contents[one] for one in study.part(test=side)] for side in (False, True))
    try:
        check_leakage([named[one] for one in train], [named[one] for one in test], allow_repeats=allow_repeats)
    except UserError as error:
        raise UserError(f"{study.root}: {error} (the option allow_repeats)") from error
    return _without_bad_units(study, bad_units)


def content_key(path: Path) -> str:
    """What a picture is known by, whatever its name: 16 hexadecimal digits of its file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write_phantom(folder: Path, phantom: BrainPhantom) -> None:
    """Writes a phantom brain as a study, with its truth."""
    rows = []
    for index, stimulus in enumerate(phantom.stimuli):
        write_png(folder / "images" / f"{index:05d}.png", stimulus.image)
    for index in phantom.trials:
        rows.append([f"images/{index:05d}.png", "test" if phantom.test[index] else "train", phantom.stimuli[index].caption])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["image", "split", "caption"], *rows])
    write_text(folder / TABLE, text.getvalue())
    if phantom.vertices is not None:
        space: SurfaceSpace | VolumeSpace = SurfaceSpace(mesh="fsaverage5", left=phantom.vertices[0], right=phantom.vertices[1])
    else:
        assert phantom.mask is not None
        assert phantom.affine is not None
        space = VolumeSpace(mask=phantom.mask, affine=phantom.affine)
    _save(folder / "responses.npy", phantom.responses)
    _save_all(folder / "space.npz", space.arrays())
    _save_all(folder / "regions.npz", phantom.regions)
    shown = np.array([[stimulus.shows[name] for name in ("face", "word", "scene")] for stimulus in phantom.stimuli])
    place = np.array([[stimulus.place.get(name, (np.nan, np.nan)) for name in ("face", "word")] for stimulus in phantom.stimuli])
    truth = {"signal": phantom.signal, "signal_share": phantom.signal_share, "receptive_fields": phantom.receptive_fields}
    _save_all(folder / "truth.npz", {**truth, "shows": shown, "place": place})


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}). It has a row for each presentation: image, split.") from error
    if not rows or not {"image", "split"} <= rows[0].keys():
        raise UserError(f"{path}: must have the columns image and split, and a row for each presentation.")
    return rows


def _without_bad_units(study: Study, bad_units: str) -> Study:
    training = np.isin(study.trials, study.part(test=False))
    rows = study.responses[training]
    unknown = ~np.isfinite(study.responses).all(axis=0)
    constant = ~unknown & (np.ptp(rows, axis=0) == 0)
    bad = unknown | constant
    if not bad.any():
        return study
    found = ", ".join(
        f"{count:,} {what}" for count, what in ((unknown.sum(), "not numbers (NaN or infinite)"), (constant.sum(), "constant")) if count
    )
    if bad_units == "refuse":
        raise UserError(
            f"{study.root}: {int(bad.sum()):,} of {study.units:,} units have responses that are {found}. Mask them out of the export, "
            "or leave them out with --data.bad_units drop."
        )
    if bad.all():
        raise UserError(f"{study.root}: no unit is left: responses are {found}. Export them anew.")
    return keep_units(study, ~bad)


def keep_units(study: Study, kept: NDArray[np.bool_]) -> Study:
    """The study of some of its units."""
    space = study.space
    if isinstance(space, SurfaceSpace):
        left, right = np.split(kept, [len(space.left)])
        space = replace(space, left=space.left[left], right=space.right[right])
    elif isinstance(space, VolumeSpace):
        mask = space.mask.copy()
        mask[space.mask] = kept
        space = replace(space, mask=mask)
    else:
        space = replace(space, units=tuple(np.array(space.units)[kept].tolist()))
    ceiling = None if study.ceiling is None else study.ceiling[kept]
    regions = {name: mask[kept] for name, mask in study.regions.items()}
    truth = {name: values[..., kept] if values.shape[-1:] == kept.shape else values for name, values in study.truth.items()}
    return replace(study, responses=study.responses[:, kept], space=space, regions=regions, ceiling=ceiling, truth=truth)


def _save(path: Path, array: NDArray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _save_all(path: Path, arrays: Mapping[str, NDArray]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)

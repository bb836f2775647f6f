"""Head phantoms: MR scans of heads with tumours of known form and volume, in several sequences, with nothing to download.

The brain is the MNI152 template inside nilearn, bent at random (``head_template``, ``head_anatomy``); tumours push it aside and grow in it
(``head_lesions``, ``head_growth``); each sequence shows them as it would (``head_contrast``); a scanner lays its voxels askew, shades and
adds noise (``head_scanner``). Truth is measured on the tumours themselves, not on voxels. The phantoms are for demos, tests and teaching:
no result on them says how a model does on patients.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.config import plain
from shared.errors import UserError
from shared.files import atomic_folder, write_json
from shared.phantoms.head_anatomy import Anatomy, draw_anatomy
from shared.phantoms.head_contrast import Contrast, draw_contrast, intensities
from shared.phantoms.head_growth import grow
from shared.phantoms.head_lesions import LABELS, Lesion, LesionPlan, LesionTruth, measure, plan_lesion, push
from shared.phantoms.head_scanner import Scan, draw_scan, shading, with_noise
from shared.phantoms.head_settings import SEQUENCES, HeadSequence, HeadSettings

__all__ = ["HeadCase", "head_case", "head_follow_up", "write_head_follow_ups", "write_heads"]

_LAYER_POINTS = 400_000
"""Voxels worked on together."""
_STRIPPED_MM = 0.7
"""Beneath the inner table: taking the skull off takes the dura with it."""


@dataclass(frozen=True, kw_only=True)
class HeadCase:
    """One scan of one head, and its truth."""

    volumes: dict[HeadSequence, NDArray[np.float32]]
    """[X, Y, Z] each, whole numbers from 0, all on one grid."""
    labels: NDArray[np.uint8]
    """[X, Y, Z]: the part of a lesion in which the voxel's centre lies, as in ``HeadSettings.kind``; 0 elsewhere."""
    affine: NDArray[np.float64]
    """[4, 4]: voxel to mm, x to the right, y to the front, z upwards."""
    lesions: tuple[LesionTruth, ...]
    seed: int
    settings: HeadSettings


@dataclass(frozen=True, kw_only=True)
class _Patient:
    anatomy: Anatomy
    lesions: list[Lesion]
    contrast: Contrast


def head_case(seed: int, settings: HeadSettings | None = None) -> HeadCase:
    """The case of this seed, always the same.

    How it is scanned (``sequences``, ``skull_stripped`` and what follows in ``HeadSettings``) changes nothing about head and lesions.

    Args:
        seed: any whole number from 0.
        settings: the defaults if None.

    Raises:
        UserError: if a setting is out of range, the lesions do not fit, or nilearn is not installed.
    """
    settings = _checked(seed, settings)
    anatomy, plans = _plan(seed, settings)
    return _scanned(seed, settings, _patient(seed, anatomy, plans, settings), visit=0)


def head_follow_up(seed: int, settings: HeadSettings | None = None, *, growth: float = 1.5) -> tuple[HeadCase, HeadCase]:
    """``head_case(seed, settings)`` and a later scan of the same patient, in which each part of each lesion has grown.

    Both are in the same frame, as after registration. Shading, noise and whatever else of the scan is left to chance are drawn anew.

    Args:
        growth: factor on every volume, 0.2 to 5; below 1 the lesions shrink.

    Raises:
        UserError: as ``head_case``.
    """
    settings = _checked(seed, settings)
    if not 0.2 <= growth <= 5:
        raise UserError(f"Phantoms: growth must be between 0.2 and 5; found {growth:g}.")
    anatomy, plans = _plan(seed, settings)
    later = [plan.grown(growth) for plan in plans]
    first, second = (_patient(seed, anatomy, those, settings) for those in (plans, later))
    return _scanned(seed, settings, first, visit=0), _scanned(seed, settings, second, visit=1)


def write_heads(
    folder: Path, *, count: int, seed: int = 0, settings: HeadSettings | None = None, empty_fraction: float | None = None
) -> None:
    """Writes ``count`` cases as a labelled data set in the layout of BraTS.

    Leaves case_0000/case_0000_t1ce.nii.gz and so on for each sequence (int16), case_0000/case_0000_seg.nii.gz (uint8), and truth.json: for
    each case its name, patient, seed and lesions. Each case is whole or absent; truth.json comes last.

    Args:
        empty_fraction: part of the cases without a lesion; by ``settings.lesions`` if None.

    Raises:
        UserError: as ``head_case``, or if the folder cannot be written to.
    """
    settings = _checked(seed, settings)
    if count < 1 or not 0 <= (empty_fraction or 0) <= 1:
        raise UserError(f"Phantoms: count must be at least 1 and empty_fraction between 0 and 1; found {count} and {empty_fraction}.")
    drawn = np.random.Generator(np.random.PCG64([seed, 9]))
    empty = set(drawn.permutation(count)[: round(count * (empty_fraction or 0))].tolist())
    rows = []
    for number in range(count):
        wanted = settings
        if number in empty:
            wanted = replace(settings, lesions=0)
        elif empty_fraction is not None and settings.lesions is None:
            wanted = replace(settings, lesions=2 if drawn.uniform() < 0.15 else 1)
        case = head_case(int(drawn.integers(2**31)), wanted)
        name = f"case_{number:04d}"
        _write(folder, name, case)
        rows.append(_row(name, name, case))
    write_json(folder / "truth.json", {"settings": plain(settings), "cases": rows})


def write_head_follow_ups(
    folder: Path, *, count: int, seed: int = 0, settings: HeadSettings | None = None, growth: tuple[float, float] = (0.6, 2.5)
) -> None:
    """Writes two scans of each of ``count`` patients, case_0000_0 and case_0000_1, in the layout of ``write_heads``.

    Args:
        growth: range of the factor on the volumes, drawn evenly in proportion for each patient; truth.json says which it was.

    Raises:
        UserError: as ``head_follow_up``, or if the folder cannot be written to.
    """
    settings = _checked(seed, settings)
    if count < 1 or not 0.2 <= growth[0] <= growth[1] <= 5:
        raise UserError(f"Phantoms: count must be at least 1 and growth a range within 0.2 to 5; found {count} and {growth}.")
    drawn = np.random.Generator(np.random.PCG64([seed, 9]))
    rows = []
    for number in range(count):
        factor = float(np.exp(drawn.uniform(*np.log(growth))))
        patient = f"case_{number:04d}"
        for visit, case in enumerate(head_follow_up(int(drawn.integers(2**31)), settings, growth=factor)):
            _write(folder, f"{patient}_{visit}", case)
            rows.append({**_row(f"{patient}_{visit}", patient, case), "visit": visit, "growth": factor if visit else 1.0})
    write_json(folder / "truth.json", {"settings": plain(settings), "cases": rows})


def _checked(seed: int, settings: HeadSettings | None) -> HeadSettings:
    settings = settings or HeadSettings()

    def need(good: bool, key: str, range_: str) -> None:
        if not good:
            raise UserError(f"Phantoms: {key} must be {range_}; found {getattr(settings, key)}.")

    if seed < 0:
        raise UserError(f"Phantoms: the seed must not be negative; found seed {seed}.")
    need(settings.kind in LABELS, "kind", "glioma or meningioma")
    need(settings.lesions is None or 0 <= settings.lesions <= 4, "lesions", "0 to 4")
    low, high = settings.volume_ml
    need(0.3 <= low <= high <= 90, "volume_ml", "a range within 0.3 to 90 ml")
    need(0 <= settings.mass_effect <= 1, "mass_effect", "between 0 and 1")
    need(0 <= settings.deformation_mm <= 6, "deformation_mm", "between 0 and 6 mm")
    unique = set(settings.sequences)
    need(
        bool(unique) and unique <= set(SEQUENCES) and len(unique) == len(settings.sequences), "sequences", f"some of {', '.join(SEQUENCES)}"
    )
    need(settings.shape is None or (len(settings.shape) == 3 and min(settings.shape) >= 8), "shape", "three sizes of at least 8 voxels")
    spacing = settings.spacing_mm
    need(
        spacing is None or (len(spacing) == 3 and 0.5 <= min(spacing) <= max(spacing) <= 10), "spacing_mm", "three lengths of 0.5 to 10 mm"
    )
    axes = settings.orientation
    named = axes is None or (len(axes) == 3 and all(sum(letter in pair for letter in axes) == 1 for pair in ("RL", "AP", "SI")))
    need(named, "orientation", "three letters, one each of R or L, A or P, S or I, such as RAS")
    need(0 <= settings.oblique_deg <= 30, "oblique_deg", "between 0 and 30 degrees")
    need(0 <= settings.bias < 1, "bias", "at least 0 and below 1")
    need(0 <= settings.noise <= 1, "noise", "between 0 and 1")
    return settings


def _stream(seed: int, number: int) -> np.random.Generator:
    """Random numbers for one purpose, so that what is drawn for one changes nothing for another."""
    return np.random.Generator(np.random.PCG64([seed, number]))


def _plan(seed: int, settings: HeadSettings) -> tuple[Anatomy, list[LesionPlan]]:
    anatomy = draw_anatomy(_stream(seed, 0), settings.deformation_mm)
    rng = _stream(seed, 1)
    drawn = int(rng.choice(3, p=[0.1, 0.75, 0.15]))
    plans: list[LesionPlan] = []
    for _ in range(drawn if settings.lesions is None else settings.lesions):
        plans.append(plan_lesion(rng, anatomy, settings.kind, settings.volume_ml, plans))
    return anatomy, plans


def _patient(seed: int, anatomy: Anatomy, plans: list[LesionPlan], settings: HeadSettings) -> _Patient:
    for plan in plans:
        anatomy = push(anatomy, plan, settings.mass_effect)
    lesions: list[Lesion] = []
    for plan in plans:
        lesions.append(grow(anatomy, plan, lesions))
    return _Patient(anatomy=anatomy, lesions=lesions, contrast=draw_contrast(_stream(seed, 2)))


def _scanned(seed: int, settings: HeadSettings, patient: _Patient, *, visit: int) -> HeadCase:
    held = np.concatenate([np.zeros((3, 0), np.float32), *(lesion.nodes() for lesion in patient.lesions)], axis=1)
    scan = draw_scan(_stream(seed, 10 + 10 * visit), settings, patient.anatomy.brain(), held)
    signal, labels, inside = _rendered(scan, patient)
    volumes = {}
    for name in settings.sequences:
        number = SEQUENCES.index(name)
        rng = _stream(seed, 11 + 10 * visit + number)
        scale = float(np.exp(rng.uniform(np.log(250), np.log(1500))))
        deviation = settings.noise * rng.uniform(0.5, 1) * float(patient.contrast.tissues[0, number])
        values = _shaded(scan, signal[..., number], rng, settings.bias)
        values = with_noise(rng, values, deviation)
        if settings.skull_stripped:
            values *= inside
        volumes[name] = np.rint(values * np.float32(scale))
    truth = tuple(measure(lesion) for lesion in patient.lesions)
    return HeadCase(volumes=volumes, labels=labels, affine=scan.affine, lesions=truth, seed=seed, settings=settings)


def _rendered(scan: Scan, patient: _Patient) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
    """Signal [X, Y, Z, 4], labels [X, Y, Z], and what is left when the skull is taken off [X, Y, Z]."""
    step = min(max(int(min(scan.spacing_mm) + 0.01), 1), 4)
    repeats = [max(1, round(spacing / step)) for spacing in scan.spacing_mm]
    shifts = [[(index + 0.5) / repeat - 0.5 for index in range(repeat)] for repeat in repeats]
    signal = np.zeros((*scan.shape, len(SEQUENCES)), np.float32)
    labels, inside = np.zeros(scan.shape, np.uint8), np.zeros(scan.shape, bool)
    layers = max(1, _LAYER_POINTS // math.prod(scan.shape[1:]))
    for first in range(0, scan.shape[0], layers):
        last = min(first + layers, scan.shape[0])
        target = signal[first:last].reshape(-1, len(SEQUENCES))
        for x in shifts[0]:
            for y in shifts[1]:
                for z in shifts[2]:
                    points = scan.points(first, last, (x, y, z))
                    target += intensities(patient.anatomy, patient.lesions, patient.contrast, points, step, step)
        points = scan.points(first, last)
        found, kept = labels[first:last].reshape(-1), inside[first:last].reshape(-1)
        kept[:] = patient.anatomy.depth(points) > _STRIPPED_MM
        for lesion in patient.lesions:
            near = lesion.near(points)
            part = lesion.part_at(points[:, near])
            codes = np.array([*LABELS[lesion.kind].values(), 0], np.uint8)
            found[near[part >= 0]] = codes[part[part >= 0]]
        kept |= found > 0
    signal /= math.prod(repeats)
    return signal, labels, inside


def _shaded(scan: Scan, signal: NDArray[np.float32], rng: np.random.Generator, strength: float) -> NDArray[np.float32]:
    """The signal [X, Y, Z] times the coil's sensitivity, layer by layer."""
    state = rng.bit_generator.state
    shaded = np.empty(scan.shape, np.float32)
    for first in range(scan.shape[0]):
        rng.bit_generator.state = state  # the same field in every layer
        shaded[first] = signal[first] * shading(rng, scan.points(first, first + 1), strength).reshape(scan.shape[1:])
    return shaded


def _write(folder: Path, name: str, case: HeadCase) -> None:
    import nibabel

    with atomic_folder(folder / name) as temporary:
        arrays: dict[str, NDArray[Any]] = {key: volume.astype(np.int16) for key, volume in case.volumes.items()}
        arrays["seg"] = case.labels
        for key, array in arrays.items():
            image = nibabel.Nifti1Image(array, case.affine)
            image.header.set_xyzt_units("mm")
            image.set_sform(case.affine, code="scanner")
            image.set_qform(case.affine, code="scanner")
            # gzip.compress with a fixed time: the same case gives the same bytes.
            (temporary / f"{name}_{key}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))


def _row(name: str, patient: str, case: HeadCase) -> dict[str, Any]:
    """One case in truth.json."""
    lesions = [dataclasses.asdict(lesion) for lesion in case.lesions]
    return {"name": name, "patient": patient, "seed": case.seed, "shape": list(case.labels.shape), "lesions": lesions}

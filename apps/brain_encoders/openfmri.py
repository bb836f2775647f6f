"""Runs in the layout of OpenFMRI (Haxby et al. 2001 as published): sub001/BOLD/task001_run001/ with a volume series and its events."""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.encoding.checks import check_grid
from shared.errors import InputError, UserError

__all__ = ["Run", "find_runs", "read_run", "read_volume"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One run, as a table of the mask's voxels."""

    number: int
    bold: NDArray[np.float64]
    """[T, V], detrended above a period of 128 s and z-scored; a voxel that is constant is 0."""
    onsets_s: NDArray[np.float64]
    durations_s: NDArray[np.float64]
    names: tuple[str, ...]
    """The category of each event."""
    repetition_time_s: float


def find_runs(folder: Path, subject: str, task: str = "task001") -> dict[int, Path]:
    """Number -> folder of a run.

    Raises:
        UserError: if there is none.
    """
    found = {int(path.name[-3:]): path for path in sorted((folder / subject / "BOLD").glob(f"{task}_run[0-9][0-9][0-9]"))}
    if not found:
        raise UserError(f"{folder}: has no {subject}/BOLD/{task}_run001 and so on. Name a folder in the layout of OpenFMRI.")
    return found


def read_volume(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A NIfTI file's voxels, and their affine.

    Raises:
        InputError: if it is missing or damaged.
    """
    import nibabel as nib

    try:
        image = nib.load(path)
        return np.asarray(image.dataobj, dtype=np.float64), np.asarray(image.affine)
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise InputError(
            f"{path}: cannot be read as a NIfTI image ({' '.join(str(error).split())}). Name another, or copy it again."
        ) from error


def read_run(number: int, folder: Path, *, bold: str, mask: NDArray[np.bool_], affine: NDArray[np.float64], mask_name: str) -> Run:
    """Reads one run through a mask.

    Args:
        number: the run's.
        folder: of the run.
        bold: the name of the series in it.
        mask, affine: the voxels to read, and where they are.
        mask_name: for messages.

    Raises:
        InputError: if a file is missing or cannot be read.
        UserError: if the series does not lie on the mask's grid.
    """
    import nibabel as nib
    from nilearn.signal import clean

    path, events = folder / bold, folder / "bold_events.tsv"
    data, grid = read_volume(path)
    if data.ndim != 4 or data.shape[3] < 10:
        raise InputError(f"{path}: a series of volumes [x, y, z, t] is needed; found {data.shape}.")
    check_grid(data.shape, grid, mask.shape, affine, names=(str(path), mask_name))
    series, repetition_time = data[mask].T, float(nib.load(path).header.get_zooms()[3])
    constant = np.ptp(series, axis=0) == 0
    cleaned = np.zeros_like(series)
    cleaned[:, ~constant] = clean(series[:, ~constant], t_r=repetition_time, high_pass=1 / 128, detrend=True, standardize="zscore_sample")
    try:
        with open(events, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        onsets, durations = (np.array([float(row[name]) for row in rows]) for name in ("onset", "duration"))
        names = tuple(row["trial_type"] for row in rows)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{events}: cannot be read as a table with onset, duration and trial_type ({error}).") from error
    return Run(number=number, bold=cleaned, onsets_s=onsets, durations_s=durations, names=names, repetition_time_s=repetition_time)

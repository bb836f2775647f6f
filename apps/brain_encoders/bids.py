"""Runs of preprocessed BOLD as fMRIPrep leaves them in a BIDS derivatives folder: volumes, GIFTI surfaces or CIFTI, cleaned, z-scored."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.parsers.expat import ExpatError

import numpy as np
from numpy.typing import NDArray

from apps.brain_encoders.space import VERTICES, SurfaceSpace, VolumeSpace
from shared.encoding.runs import zscore_runs
from shared.errors import InputError, UserError

__all__ = ["BoldRun", "find_runs", "read_bold"]

Kind = Literal["volume", "surface", "cifti"]
_MESH_OF_COUNT = {count: mesh for mesh, count in VERTICES.items()}


@dataclass(frozen=True, kw_only=True)
class BoldRun:
    """The files of one run."""

    name: str
    bold: tuple[Path, ...]
    """One file, or left and right hemisphere."""
    kind: Kind
    mask: Path | None
    """Of a volume."""
    events: Path | None
    repetition_time_s: float
    confounds: Path | None


def find_runs(
    derivatives: Path, raw: Path | None, *, subject: str, task: str = "", space: str = "", kind: Kind = "volume"
) -> list[BoldRun]:
    """The runs of a subject, in order.

    Args:
        derivatives: fMRIPrep's output folder, with dataset_description.json.
        raw: the BIDS data set itself, for the events; the derivatives folder is asked too.
        subject, task, space: BIDS entities without their keys ("01", "localizer", "MNI152NLin2009cAsym"); empty: whichever there is.
        kind: of files.

    Raises:
        UserError: if there is no such folder or run, or runs of several tasks or spaces would be mixed.
    """
    from bids import BIDSLayout

    if not (derivatives / "dataset_description.json").is_file():
        raise UserError(f"{derivatives}: has no dataset_description.json, so it is no BIDS derivatives folder. Name fMRIPrep's output.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layout = BIDSLayout(derivatives, validate=False, config=["bids", "derivatives"])
        sources = [layout] + ([BIDSLayout(raw, validate=False)] if raw is not None else [])
    wanted: dict[str, Any] = {"subject": subject, "suffix": "bold"}
    wanted |= {"task": task} if task else {}
    wanted |= {"space": space} if space else {}
    wanted |= {
        "volume": {"desc": "preproc", "extension": [".nii", ".nii.gz"]},
        "surface": {"extension": ".func.gii", "hemi": "L"},
        "cifti": {"extension": ".dtseries.nii"},
    }[kind]
    found = sorted(layout.get(**wanted), key=lambda file: (file.entities.get("session", ""), file.entities.get("run", 0), file.path))
    if not found:
        raise UserError(
            f"{derivatives}: no preprocessed {kind} BOLD of sub-{subject} {task} {space}. Check the entities, or choose another kind."
        )
    for entity in ("task", "space"):
        values = sorted({str(file.entities.get(entity, "")) for file in found})
        if len(values) > 1:
            raise UserError(f"{derivatives}: sub-{subject} has runs of {entity} {', '.join(values)}; name one of them.")
    return [_run(file, layout, sources, kind) for file in found]


def read_bold(
    run: BoldRun, *, confounds: bool = True, high_pass_hz: float = 0.01
) -> tuple[NDArray[np.float32], VolumeSpace | SurfaceSpace]:
    """[T, V], z-scored in time, and where the units are.

    Slow drifts are taken out by cosines, and, if there is fMRIPrep's table, head motion and the means of white matter and CSF (nilearn's
    load_confounds with motion, wm_csf and high_pass).

    Raises:
        UserError: if files do not fit each other: an affine or a shape that is not the mask's, hemispheres of different length.
    """
    from nibabel.filebasedimages import ImageFileError
    from nilearn.signal import clean

    try:
        series, space = {"volume": _volume, "surface": _surfaces, "cifti": _cifti}[run.kind](run)
    except (OSError, EOFError, ValueError, zlib.error, ExpatError, ImageFileError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{run.bold[0]}: this run cannot be read as {run.kind} BOLD ({reason}). Copy it again, or leave it out."
        ) from error
    nuisance = _confounds(run) if confounds and run.confounds is not None else None
    if nuisance is not None and len(nuisance) != len(series):
        raise UserError(f"{run.confounds}: {len(nuisance)} rows, but {run.bold[0]} has {len(series)} volumes. Are they of one run?")
    drift = (
        {"high_pass": high_pass_hz, "filter": "cosine"}
        if nuisance is None and high_pass_hz > 0 and len(series) * run.repetition_time_s > 1 / high_pass_hz
        else {}
    )
    cleaned = clean(series, confounds=nuisance, t_r=run.repetition_time_s, detrend=True, standardize=None, **(drift or {"filter": False}))
    return zscore_runs(cleaned).astype(np.float32), space


def _run(file: Any, layout: Any, sources: list[Any], kind: Kind) -> BoldRun:
    keys = {name: value for name, value in file.entities.items() if name in ("subject", "session", "task", "run")}
    bold = (Path(file.path),)
    if kind == "surface":
        right = layout.get(**keys, suffix="bold", extension=".func.gii", hemi="R", space=file.entities.get("space"))
        if not right:
            raise UserError(f"{file.path}: the right hemisphere's file (hemi-R) is missing.")
        bold = (bold[0], Path(right[0].path))
    mask = layout.get(**keys, suffix="mask", desc="brain", space=file.entities.get("space"), extension=[".nii", ".nii.gz"])
    if kind == "volume" and not mask:
        raise UserError(f"{file.path}: its brain mask (desc-brain_mask) is missing.")
    tables = [each for name in ("timeseries", "regressors") for each in layout.get(**keys, suffix=name, desc="confounds", extension=".tsv")]
    events = [each for source in sources for each in source.get(**keys, suffix="events", extension=".tsv")]
    return BoldRun(
        name=" ".join(f"{name}-{value}" for name, value in keys.items()),
        bold=bold,
        kind=kind,
        mask=Path(mask[0].path) if mask else None,
        events=Path(events[0].path) if events else None,
        repetition_time_s=_repetition_time(file, bold[0]),
        confounds=Path(tables[0].path) if tables else None,
    )


def _repetition_time(file: Any, path: Path) -> float:
    """Of the JSON beside the file, else of its header."""
    known = file.get_metadata().get("RepetitionTime")
    if known is None:
        import nibabel as nib

        header = nib.load(path).header
        zooms = getattr(header, "get_zooms", lambda: ())()
        known = zooms[3] if len(zooms) > 3 else getattr(header.get_axis(0), "step", None) if hasattr(header, "get_axis") else None
    if not known or not 0.1 <= float(known) <= 20:
        raise UserError(f"{path}: the repetition time is not known ({known}). Put RepetitionTime, in seconds, into its JSON file.")
    return float(known)


def _volume(run: BoldRun) -> tuple[NDArray[np.float64], VolumeSpace]:
    import nibabel as nib

    assert run.mask is not None
    image, mask_image = nib.load(run.bold[0]), nib.load(run.mask)
    if image.shape[:3] != mask_image.shape[:3]:
        raise UserError(
            f"{run.mask}: has {mask_image.shape[:3]} voxels and {run.bold[0]} {image.shape[:3]}. Take the mask of the same space."
        )
    if not np.allclose(image.affine, mask_image.affine, atol=1e-3):
        raise UserError(
            f"{run.mask}: its affine is not that of {run.bold[0]}, so voxels would be mixed up. Resample the mask to the BOLD grid."
        )
    mask = np.asarray(mask_image.dataobj) > 0
    if not mask.any():
        raise UserError(f"{run.mask}: holds no voxel.")
    return np.asarray(image.dataobj)[mask].T.astype(np.float64), VolumeSpace(mask=mask, affine=np.asarray(image.affine))


def _surfaces(run: BoldRun) -> tuple[NDArray[np.float64], SurfaceSpace]:
    import nibabel as nib

    halves = [np.stack([array.data for array in nib.load(path).darrays]).astype(np.float64) for path in run.bold]
    if halves[0].shape != halves[1].shape:
        raise UserError(
            f"{run.bold[1]}: is {halves[1].shape} (volumes, vertices), but the left hemisphere {halves[0].shape}. Are they of one run?"
        )
    count = halves[0].shape[1]
    if count not in _MESH_OF_COUNT:
        raise UserError(f"{run.bold[0]}: {count:,} vertices are of no known mesh ({', '.join(VERTICES)}).")
    everyone = np.arange(count)
    return np.concatenate(halves, axis=1), SurfaceSpace(mesh=_MESH_OF_COUNT[count], left=everyone, right=everyone)


def _cifti(run: BoldRun) -> tuple[NDArray[np.float64], SurfaceSpace]:
    import nibabel as nib

    image = nib.load(run.bold[0])
    axis = image.header.get_axis(1)
    parts = {name: (place, model) for name, place, model in axis.iter_structures() if "CORTEX" in name}
    sides = [parts.get(f"CIFTI_STRUCTURE_CORTEX_{side}") for side in ("LEFT", "RIGHT")]
    if None in sides:
        raise UserError(f"{run.bold[0]}: has no left or no right cortex.")
    data = np.asarray(image.dataobj, dtype=np.float64)
    (left_place, left), (right_place, right) = sides  # type: ignore[misc]
    count = next(iter(axis.nvertices.values()))
    if count not in _MESH_OF_COUNT:
        raise UserError(f"{run.bold[0]}: a mesh of {count:,} vertices is not known ({', '.join(VERTICES)}).")
    space = SurfaceSpace(mesh=_MESH_OF_COUNT[count], left=np.asarray(left.vertex), right=np.asarray(right.vertex))
    return np.concatenate([data[:, left_place], data[:, right_place]], axis=1), space


def _confounds(run: BoldRun) -> NDArray[np.float64]:
    from nilearn.interfaces.fmriprep import load_confounds

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, _ = load_confounds(
                [str(path) for path in run.bold] if len(run.bold) > 1 else str(run.bold[0]), strategy=("motion", "wm_csf", "high_pass")
            )
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{run.confounds}: cannot be used ({' '.join(str(error).split())[:200]}). Give --confounds false to go on without."
        ) from error
    return np.asarray(found[0] if isinstance(found, list) else found, dtype=np.float64)

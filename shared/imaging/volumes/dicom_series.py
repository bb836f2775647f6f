"""DICOM series as volumes: sorted by where the images lie, refused with a reason when they do not make one volume."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.volumes.dicom_slices import SEGMENTATIONS, Image, Slice, function, images, is_dicom, parsed, slices
from shared.imaging.volumes.formats import printable
from shared.imaging.volumes.grid import LPS_TO_RAS, Grid
from shared.imaging.volumes.limits import VolumeLimits, check_shape
from shared.imaging.volumes.raw import Raw
from shared.imaging.volumes.stored import StoredFile, stored_files
from shared.imaging.volumes.volume import DicomSource, Source

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Series", "list_series", "read_series"]

_GAP = 0.02
"""Distances of slices may differ by this share, or by ``_GAP_MM``: positions are written with few digits."""
_GAP_MM = 0.02
_TURN = 2e-3
_DIFFERING = (
    "EchoTime",
    "EchoNumbers",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "TriggerTime",
    "InversionTime",
    "AcquisitionTime",
    "ContentTime",
    "ImageType",
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series among the files of an input."""

    uid: str
    description: str
    """Such as "T1 gd (MR, 176 images)"."""
    files: tuple[str, ...]


def list_series(source: Path | bytes | Sequence[Path], *, name: str, limits: VolumeLimits) -> list[Series]:
    """The series with images in a folder, a zip archive or a list of files, the largest first.

    Raises:
        InputError: if there is no DICOM image, or one is damaged.
    """
    with stored_files(source, name=name, limits=limits) as files, decoding(name, "DICOM"):
        found = _by_series(files, name)
        return [_described(uid, members) for uid, members in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))]


def read_series(files: Sequence[StoredFile], *, series: str | None, name: str, limits: VolumeLimits) -> Raw:
    """The volume that the DICOM images among these files make: the one series, or that of this UID.

    The first axis runs along the columns of an image, the second along its rows, the third from slice to slice, so that all three are
    right-handed. Distances come from the positions of the images alone, not from the thickness of a slice.

    Raises:
        InputError: if there are several series, or the images of one do not make a volume (missing or repeated slices, other sizes,
            orientations or spacings); says which.
    """
    found = _by_series(files, name)
    chosen = _chosen(found, series, name)
    members = found[chosen]
    left_out = "; ".join(_described(uid, others).description for uid, others in found.items() if uid != chosen)
    notes: tuple[str, ...] = (f"Not read: {left_out}.",) if left_out else ()
    pictures = [picture for image in members for picture in slices(image, name=name)]
    _check_one_object(pictures, name)
    _check_alike(pictures, name)
    pictures = _sorted(pictures)
    columns, rows = pictures[0].size
    check_shape((columns, rows, len(pictures)), name=name, limits=limits)
    step, tilt = _step(pictures, name)
    if tilt > 0.1:
        notes += (f"The slices are shifted against each other (gantry tilt of {tilt:.1f} degrees); the affine is sheared accordingly.",)
    values = np.empty((columns, rows, len(pictures)), np.float32)
    for index, picture in _decoded(pictures, name):
        values[:, :, index] = picture.T
    source = Source(
        suffix=".dcm", grid=Grid(shape=(columns, rows, len(pictures)), affine=_affine(pictures[0], step)), dicom=_source(pictures)
    )
    return Raw(values=values, source=source, notes=notes)


def _by_series(files: Sequence[StoredFile], name: str) -> dict[str, list[Image]]:
    """The images among the files: of those beside each other, or if there are none, of those in sub-folders."""
    fitting = [file for file in files if is_dicom(file, name=name)]
    fitting = [file for file in fitting if "/" not in file.name] or fitting
    if not fitting:
        others = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
        raise InputError(f"{name}: holds no DICOM files (found: {others}). Give a folder or zip archive of one series, or a volume file.")
    found: dict[str, list[Image]] = defaultdict(list)
    modalities: Counter[str] = Counter()
    for image in images(fitting, name=name):
        modalities[printable(image.header.get("Modality") or "unknown", longest=16)] += 1
        if "Rows" in image.header and "Columns" in image.header and str(image.header.get("SOPClassUID")) not in SEGMENTATIONS:
            found[image.series].append(image)
    if not found:
        kinds = ", ".join(f"{count} of modality {modality}" for modality, count in sorted(modalities.items()))
        raise InputError(f"{name}: holds DICOM files, but no images of a scan ({kinds}). Give the images of the series.")
    return dict(found)


def _chosen(found: dict[str, list[Image]], wanted: str | None, name: str) -> str:
    if wanted is not None:
        if wanted not in found:
            raise InputError(f"{name}: holds no series {wanted}. It holds: {_listed(found)}.")
        return wanted
    placed = [uid for uid, members in found.items() if any(_placed(image.header) for image in members)]
    candidates = placed or list(found)  # pages of text that were saved as pictures lie nowhere
    if len(candidates) > 1:
        raise InputError(f"{name}: holds {len(candidates)} series: {_listed(found)}. Put the files of one into a folder of their own.")
    return candidates[0]


def _placed(header: Dataset) -> bool:
    return "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header


def _described(uid: str, members: list[Image]) -> Series:
    header = members[0].header
    number = f"series {header.get('SeriesNumber') or 'without a name'}"
    title = printable(header.get("SeriesDescription") or header.get("ProtocolName") or number)
    modality = printable(header.get("Modality") or "unknown modality", longest=16)
    count = "1 image" if len(members) == 1 else f"{len(members)} images"
    return Series(
        uid=uid,
        description=f"{title} ({modality}, {count})",
        files=tuple(image.file.name for image in members),
    )


def _listed(found: dict[str, list[Image]]) -> str:
    names = [f"{_described(uid, members).description}, starting with {members[0].file.name}" for uid, members in found.items()]
    return "; ".join(names[:6]) + ("; ..." if len(names) > 6 else "")


def _check_one_object(pictures: list[Slice], name: str) -> None:
    """Raises InputError if the pictures belong to several multi-frame images, or to patients in several positions."""
    if any(picture.frame is not None for picture in pictures):
        names = list(dict.fromkeys(picture.image.file.name for picture in pictures))
        if len(names) > 1:
            raise InputError(f"{name}: holds {len(names)} multi-frame images ({', '.join(names[:3])}), each a volume. Give one of them.")
    frames = {str(picture.image.header.get("FrameOfReferenceUID", "")) for picture in pictures}
    if len(frames) > 1:
        raise InputError(
            f"{name}: its images are in {len(frames)} frames of reference, as if the patient had been moved between them. "
            "Give the images of one acquisition."
        )


def _check_alike(pictures: list[Slice], name: str) -> None:
    """Raises InputError unless all pictures have the size, spacing and orientation of most."""
    checks = (
        ("size", [picture.size for picture in pictures], lambda one, two: one == two, "columns x rows"),
        ("pixel spacing", [picture.spacing for picture in pictures], lambda one, two: np.allclose(one, two, rtol=1e-3), "mm"),
        ("orientation", [picture.along for picture in pictures], lambda one, two: bool(abs(one - two).max() < _TURN), ""),
    )
    for what, values, alike, unit in checks:
        usual = _commonest(values)
        odd = [picture for picture, value in zip(pictures, values, strict=True) if not alike(value, usual)]
        if odd:
            strange = values[pictures.index(odd[0])]
            raise InputError(
                f"{name}: is no single volume: {odd[0].label} has the {what} {_shown(strange)}{unit and ' ' + unit}, and most have "
                f"{_shown(usual)} ({len(odd)} of {len(pictures)} differ). Leave out localisers and images of other acquisitions."
            )


def _commonest(values: list[Any]) -> Any:
    keys = [tuple(np.round(np.asarray(value, dtype=np.float64), 3).ravel().tolist()) for value in values]
    return values[keys.index(Counter(keys).most_common(1)[0][0])]


def _shown(value: Any) -> str:
    return " x ".join(f"{number:.4g}" for number in value) if np.ndim(value) == 1 else str(np.round(value, 3).ravel().tolist())


def _sorted(pictures: list[Slice]) -> list[Slice]:
    normal = pictures[0].normal
    return sorted(pictures, key=lambda picture: float(picture.position @ normal))


def _step(pictures: list[Slice], name: str) -> tuple[NDArray[np.float64], float]:
    """From each slice to the next, and by how many degrees that leans away from the normal."""
    positions = np.stack([picture.position for picture in pictures])
    heights = positions @ pictures[0].normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    _check_repeated(pictures, gaps, usual, name)
    tolerance = max(_GAP * usual, _GAP_MM)
    wide = np.flatnonzero(gaps > usual + tolerance)
    narrow = np.flatnonzero(gaps < usual - tolerance)
    if wide.size or narrow.size:
        at = int(wide[0] if wide.size else narrow[0])
        lost = round(gaps[at] / usual) - 1
        what = f"{lost} missing" if lost > 0 and abs(gaps[at] / usual - 1 - lost) < 0.1 else "unevenly spaced"
        raise InputError(
            f"{name}: slices are {what} between {pictures[at].label} and {pictures[at + 1].label}: {gaps[at]:.4g} mm apart, elsewhere "
            f"{usual:.4g} mm ({wide.size + narrow.size} such places in {len(pictures)} slices). Export the whole series again, or resample "
            "it to even slices."
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(pictures) - 1)
    drift = np.linalg.norm(positions - positions[0] - np.outer(np.arange(len(pictures)), step), axis=1)
    if drift.max() > 2 * tolerance:
        at = int(drift.argmax())
        raise InputError(
            f"{name}: {pictures[at].label} lies {drift[at]:.3g} mm beside the line through the other slices. "
            "The patient may have been moved between two acquisitions; give the images of one."
        )
    lean = float(step @ pictures[0].normal / np.linalg.norm(step))
    return step, float(np.degrees(np.arccos(min(lean, 1.0))))


def _check_repeated(pictures: list[Slice], gaps: NDArray[np.float64], usual: float, name: str) -> None:
    same = np.flatnonzero(gaps < max(1e-3, 1e-3 * usual))
    if not same.size:
        return
    one, two = pictures[int(same[0])], pictures[int(same[0]) + 1]
    if one.frame is None and one.image.header.get("SOPInstanceUID") == two.image.header.get("SOPInstanceUID"):
        raise InputError(f"{name}: {one.label} and {two.label} are copies of the same image. Remove one of each pair.")
    differing = [
        f"{keyword} {printable(one.image.header.get(keyword))} and {printable(two.image.header.get(keyword))}"
        for keyword in _DIFFERING
        if one.image.header.get(keyword) != two.image.header.get(keyword)
    ]
    raise InputError(
        f"{name}: {one.label} and {two.label} lie at the same place, as {same.size} pairs of {len(pictures)} slices do: the series holds "
        f"several volumes{' (' + ', '.join(differing[:3]) + ')' if differing else ''}. Give the images of one."
    )


def _affine(first: Slice, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """PS3.3, C.7.6.2.1.1, and from LPS to RAS."""
    affine = np.eye(4)
    affine[:3, 0] = first.along[0] * first.spacing[0]
    affine[:3, 1] = first.along[1] * first.spacing[1]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _source(pictures: list[Slice]) -> DicomSource:
    if pictures[0].frame is None:
        return DicomSource(images=tuple(picture.image.header for picture in pictures))
    frames = tuple(picture.frame for picture in pictures if picture.frame is not None)
    return DicomSource(images=(pictures[0].image.header,), frames=frames)


def _decoded(pictures: list[Slice], name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(index of the slice, float32 [rows, columns]) for every picture, file by file."""
    wanted: dict[int, list[tuple[int, Slice]]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        wanted[id(picture.image)].append((index, picture))
    for group in wanted.values():
        yield from _decoded_file(group, name)


def _decoded_file(group: list[tuple[int, Slice]], name: str) -> list[tuple[int, NDArray[np.float32]]]:
    from pydicom.pixels import iter_pixels, pixel_array

    first = group[0][1]
    label = f"{name} ({first.image.file.name})"
    dataset = parsed(first.image.file, pixels=True, name=name)
    results = []
    with decoding(label, "a DICOM image"):
        _check_decoder(dataset, label)
        if len(group) == 1 and first.frame is None:
            stored = [pixel_array(dataset)]
        else:
            stored = list(iter_pixels(dataset))
        for index, picture in group:
            frame = picture.frame or 0
            values = _physical(stored[frame], dataset, picture.frame)
            if values.shape != picture.size[::-1]:
                raise InputError(f"{label}: its pixels do not fit its header. Export it again.")
            results.append((index, values))
    return results


def _check_decoder(dataset: Dataset, label: str) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise InputError(f"{label}: no installed decoder reads its compression ({syntax.name}). Install one: pip install python-gdcm")


def _physical(stored: NDArray[Any], dataset: Dataset, frame: int | None) -> NDArray[np.float32]:
    """Through the modality transformation (PS3.3, C.11.1), which may differ from slice to slice; never through a window."""
    from pydicom.pixels import apply_modality_lut

    if frame is None:
        return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    scale = function(dataset, frame, "PixelValueTransformationSequence")
    slope, intercept = scale.get("RescaleSlope", 1), scale.get("RescaleIntercept", 0)
    return np.asarray(stored * np.float64(slope) + np.float64(intercept), dtype=np.float32)

"""Reads one volume or one label map from a file, a folder, a list of files or the content of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.formats import HEAD_BYTES
from shared.imaging.limits import Limits, check_bytes, opened
from shared.imaging.volumes.dicom_segmentation import read_segmentation
from shared.imaging.volumes.dicom_series import Series, list_series, read_series
from shared.imaging.volumes.dicom_slices import SEGMENTATIONS, is_dicom, parsed
from shared.imaging.volumes.formats import Format, describe, recognise
from shared.imaging.volumes.limits import VolumeLimits
from shared.imaging.volumes.metaimage import read_metaimage
from shared.imaging.volumes.nifti import read_nifti
from shared.imaging.volumes.nrrd import read_nrrd
from shared.imaging.volumes.raw import Raw, to_image, to_labels
from shared.imaging.volumes.stored import StoredFile, stored_files
from shared.imaging.volumes.volume import Volume

__all__ = ["VolumeInput", "read_labels", "read_volume", "series_in"]

VolumeInput = Path | str | bytes | Sequence[Path]
"""A file, the content of one, a folder with a DICOM series, or the files of a DICOM series."""


def read_volume(
    source: VolumeInput,
    *,
    name: str | None = None,
    series: str | None = None,
    limits: VolumeLimits = VolumeLimits(),  # noqa: B008 (frozen)
) -> Volume:
    """A volume of NIfTI-1 or -2 (plain or gzip), MetaImage (.mha, .mhd), NRRD or DICOM; what it is, its content says.

    - The array stays as it is stored: nothing is flipped, permuted or resampled. ``affine`` says where it lies, in RAS+ millimetres
      whatever the format counts in. For another order of the axes, see ``reorient``.
    - Values are float32, scaled as the file says (NIfTI scl_slope, DICOM rescaling of each slice, never a window).
    - NIfTI: the sform if its code is set, else the qform; a disagreement is in ``notes``. Lengths in metres or micrometres become mm.
    - Four axes become channels first, [C, X, Y, Z]; a single channel vanishes.
    - DICOM: a folder (its own files, or if it has none, those of its sub-folders), a list of files, a zip archive, or one enhanced
      (multi-frame) file. Sorted by position along the normal; refused if a slice is missing or there twice, or sizes, spacings or
      orientations differ. Axes run along columns, rows and slices. A zip archive may hold one volume of another format instead.

    Args:
        source: see ``VolumeInput``.
        name: what messages call it; the path by default.
        series: UID of the DICOM series to read where there are several; see ``series_in``.
        limits: what is refused before it is decoded.

    Raises:
        InputError: if there is no such file, it is no volume, it is damaged, too large or 2-D, has voxels that are not finite, or no valid
            place in space; names it and says what was found, what was expected, and what to do.
    """
    name = _name(source, name)
    return to_image(_raw(source, name=name, series=series, limits=limits), name=name)


def read_labels(
    source: VolumeInput,
    *,
    name: str | None = None,
    classes: Sequence[int] | None = None,
    labelled: bool = False,
    limits: VolumeLimits = VolumeLimits(),  # noqa: B008 (frozen)
) -> Volume:
    """A label map: as ``read_volume``, but whole numbers, in the file's own integer type.

    Labels stored as real numbers are taken if every one is whole, in the smallest type that holds them. A DICOM segmentation (SEG) gives
    the numbers of its segments, on a grid from its first labelled slice to its last; ``restore_labels`` brings it onto the image's.

    Args:
        source, name, limits: as ``read_volume``.
        classes: the labels that may occur; any by default.
        labelled: refuse a map in which no voxel has a label.

    Raises:
        InputError: as ``read_volume``, and if a voxel is not a whole number or none of ``classes``; says how many and where the first is.
    """
    name = _name(source, name)
    return to_labels(_raw(source, name=name, series=None, limits=limits), name=name, classes=classes, labelled=labelled)


def series_in(
    source: VolumeInput,
    *,
    name: str | None = None,
    limits: VolumeLimits = VolumeLimits(),  # noqa: B008 (frozen)
) -> list[Series]:
    """The DICOM series in a folder, a zip archive or a list of files, the largest first; raises InputError if there is none."""
    return list_series(Path(source) if isinstance(source, str) else source, name=_name(source, name), limits=limits)


def _name(source: VolumeInput, name: str | None) -> str:
    if name is not None:
        return name
    if isinstance(source, (str, Path)):
        return str(source)
    return "the volume" if isinstance(source, bytes) or not source else str(source[0].parent)


def _raw(source: VolumeInput, *, name: str, series: str | None, limits: VolumeLimits) -> Raw:
    if isinstance(source, str):
        source = Path(source)
    if not isinstance(source, (Path, bytes)) or (isinstance(source, Path) and source.is_dir()):
        with stored_files(source, name=name, limits=limits) as files:
            return _dicom(files, series=series, name=name, limits=limits)
    with opened(source, name=name) as file:
        check_bytes(file, name=name, limits=Limits(bytes=limits.bytes))
        head = file.read(HEAD_BYTES)
        file.seek(0)
        kind = recognise(head)
        if kind == "ZIP":
            return _zipped(source, series=series, name=name, limits=limits)
        if kind == "DICOM":
            content = source if isinstance(source, bytes) else file.read()
            one = StoredFile(name=name, read=lambda: content, head=lambda count: content[:count])
            return _dicom([one], series=series, name=name, limits=limits)
        if kind is None:
            raise InputError(
                f"{name}: is not a volume: it holds {describe(head)}. NIfTI, MetaImage, NRRD and DICOM series (a folder or a zip) are read."
            )
        return _single(file, kind, path=source if isinstance(source, Path) else None, name=name, limits=limits)


def _single(file: BinaryIO, kind: Format, *, path: Path | None, name: str, limits: VolumeLimits) -> Raw:
    if kind == "NIfTI":
        return read_nifti(file, name=name, limits=limits)
    read = read_metaimage if kind == "MetaImage" else read_nrrd
    return read(file, path=path, name=name, limits=limits)


def _dicom(files: Sequence[StoredFile], *, series: str | None, name: str, limits: VolumeLimits) -> Raw:
    with decoding(name, "DICOM"):  # pydicom parses an attribute, and complains of it, when it is asked for
        if len(files) == 1 and is_dicom(files[0], name=name):
            header = parsed(files[0], pixels=False, name=name)
            if str(header.get("SOPClassUID")) in SEGMENTATIONS:
                return read_segmentation(files[0], name=name, limits=limits)
        return read_series(files, series=series, name=name, limits=limits)


def _zipped(source: Path | bytes, *, series: str | None, name: str, limits: VolumeLimits) -> Raw:
    with stored_files(source, name=name, limits=limits) as files:
        kinds = {file.name: recognise(file.head(HEAD_BYTES)) for file in files}
        volumes = [file for file in files if kinds[file.name] in {"NIfTI", "MetaImage", "NRRD"}]
        if not volumes:
            return _dicom(files, series=series, name=name, limits=limits)
        if len(volumes) > 1 or "DICOM" in kinds.values():
            some = ", ".join(file.name for file in volumes[:4])
            raise InputError(f"{name}: holds {len(volumes)} volume files ({some}), and one volume was expected. Pack each by itself.")
        return _raw(volumes[0].read(), name=f"{name} ({volumes[0].name})", series=series, limits=limits)

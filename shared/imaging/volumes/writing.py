"""Volumes and label maps as NIfTI, MetaImage or NRRD, in the source's own grid, written atomically."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.files import write_bytes
from shared.imaging.volumes.formats import volume_suffix
from shared.imaging.volumes.grid import LPS_TO_RAS, Grid
from shared.imaging.volumes.volume import Volume

__all__ = ["WRITTEN_SUFFIXES", "encode_labels", "encode_volume", "write_labels", "write_volume"]

WRITTEN_SUFFIXES = frozenset({".nii", ".nii.gz", ".mha", ".nrrd"})

_LABEL_INTENT = "label"
_SCANNER = 1


def encode_labels(labels: NDArray[Any], *, like: Volume, suffix: str) -> bytes:
    """A label map as one file, lossless.

    NIfTI keeps the header of a NIfTI source: affine, sform and qform with their codes, units, description. Its scaling, display range and
    extensions, which speak of the source's values, are left out.

    Args:
        labels: bool or integers [X, Y, Z] from 0 to 65535, written as uint8 if they fit, else as uint16.
        like: the volume on whose grid they are.
        suffix: one of ``WRITTEN_SUFFIXES``.

    Raises:
        ValueError: for another type, range, shape or suffix.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu" or labels.ndim != 3:
        raise ValueError(f"labels are integers [X, Y, Z], not {labels.dtype} {list(labels.shape)}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > 65535:
        raise ValueError(f"labels from 0 to 65535 are written, not {lowest} to {highest}")
    return _encoded(labels.astype(np.uint8 if highest < 256 else np.uint16), like, suffix, intent=_LABEL_INTENT)


def write_labels(path: Path | str, labels: NDArray[Any], *, like: Volume) -> None:
    """``encode_labels`` into a file that is either whole or absent; the format is that of its suffix.

    Raises:
        ValueError: as ``encode_labels``.
        UserError: if the file cannot be written.
    """
    write_bytes(path, encode_labels(labels, like=like, suffix=volume_suffix(str(path))))


def encode_volume(values: NDArray[Any], *, like: Volume, suffix: str) -> bytes:
    """Real numbers, such as probabilities, as one float32 file; the rules are those of ``encode_labels``.

    Args:
        values: [X, Y, Z] or [C, X, Y, Z].
        like: the volume on whose grid they are.
        suffix: one of ``WRITTEN_SUFFIXES``.

    Raises:
        ValueError: for another shape or suffix.
    """
    values = np.asarray(values)
    if values.ndim not in (3, 4):
        raise ValueError(f"a volume has the shape [X, Y, Z] or [C, X, Y, Z], not {list(values.shape)}")
    return _encoded(values.astype(np.float32), like, suffix, intent="none")


def write_volume(path: Path | str, values: NDArray[Any], *, like: Volume) -> None:
    """``encode_volume`` into a file that is either whole or absent; the format is that of its suffix.

    Raises:
        ValueError: as ``encode_volume``.
        UserError: if the file cannot be written.
    """
    write_bytes(path, encode_volume(values, like=like, suffix=volume_suffix(str(path))))


def _encoded(values: NDArray[Any], like: Volume, suffix: str, *, intent: str) -> bytes:
    if suffix not in WRITTEN_SUFFIXES:
        raise ValueError(f"volumes are written as {', '.join(sorted(WRITTEN_SUFFIXES))}, not as {suffix!r}")
    if values.shape[-3:] != like.shape:
        raise ValueError(f"values of shape {list(values.shape)} do not fit the grid {list(like.shape)} of {like.name}")
    if suffix in {".nii", ".nii.gz"}:
        content = _nifti(np.moveaxis(values, 0, -1) if values.ndim == 4 else values, like, intent)
        level = 5 if intent == _LABEL_INTENT else 1  # real numbers hardly shrink, however long it takes
        return gzip.compress(content, compresslevel=level, mtime=0) if suffix == ".nii.gz" else content
    return _itk(values, like.grid, suffix)


def _nifti(values: NDArray[Any], like: Volume, intent: str) -> bytes:
    """values: [X, Y, Z] or [X, Y, Z, C]."""
    import nibabel

    known = like.source.nifti if like.source is not None else None
    if known is None:
        kind = nibabel.Nifti1Header
        header = kind()
        header.set_xyzt_units("mm")
    else:
        kind = type(known)
        header = kind(known.binaryblock, known.endianness, check=False)
    header["magic"] = kind.single_magic
    header.set_data_shape(values.shape)
    header.set_data_dtype(values.dtype)
    header.set_intent(intent)
    header["cal_min"] = header["cal_max"] = 0
    header["aux_file"] = b""
    if known is None or not np.array_equal(like.affine, like.source_grid.affine):
        _place(header, like.grid, code=_SCANNER if known is None else max(int(known["sform_code"]), int(known["qform_code"]), 1))
    image = {nibabel.Nifti1Header: nibabel.Nifti1Image, nibabel.Nifti2Header: nibabel.Nifti2Image}[kind]
    return bytes(image(values, None, header).to_bytes())


def _place(header: Any, grid: Grid, *, code: int) -> None:
    """The qform cannot hold shear, so then it is left out."""
    header.set_xyzt_units("mm", header.get_xyzt_units()[1])
    header.set_sform(grid.affine, code)
    turned = grid.affine[:3, :3] / grid.spacing_mm
    sheared = not np.allclose(turned.T @ turned, np.eye(3), atol=1e-4)
    header.set_qform(grid.affine, 0 if sheared else code, strip_shears=True)


def _itk(values: NDArray[Any], grid: Grid, suffix: str) -> bytes:
    import SimpleITK

    affine = LPS_TO_RAS @ grid.affine
    if values.ndim == 4:
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.transpose(3, 2, 1, 0)), isVector=True)
    else:
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((affine[:3, :3] / grid.spacing_mm).ravel().tolist())
    with tempfile.TemporaryDirectory() as folder:  # ITK writes to paths only
        path = Path(folder, f"volume{suffix}")
        SimpleITK.WriteImage(image, str(path), useCompression=True)
        return path.read_bytes()

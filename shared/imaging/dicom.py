"""Single frames of DICOM files as 8-bit RGB, as a viewer shows them. pydicom is imported when the first one is read."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

import numpy as np

from shared.errors import InputError
from shared.imaging.decoding import decoding
from shared.imaging.limits import Limits, check_pixels

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["DicomFrames"]

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DISPLAY = (
    "BitsStored",
    "ModalityLUTSequence",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
)
_DEFLATED = b"1.2.840.10008.1.2.1.99"


class DicomFrames:
    """The frames of one DICOM file, decoded on demand. May be called from any thread and in any order."""

    def __init__(self, *, content: bytes, name: str, limits: Limits) -> None:
        self._lock = threading.Lock()
        self._name = name
        if _DEFLATED in content:  # pydicom would inflate it without a limit
            raise InputError(f"{name}: is a deflated DICOM file, which is not read here. Convert it with: dcmconv +te INPUT OUTPUT")
        with decoding(name, "a DICOM file"):
            self._dataset, self._count = _checked(content, name, limits)

    def __len__(self) -> int:
        return self._count

    def rgb(self, frame: int) -> np.ndarray:
        """uint8 [H, W, 3]. The rules are those of ``read_image``.

        Raises:
            InputError: if the frame is damaged, or no installed decoder reads its compression; then it says what to install.
        """
        from pydicom.pixels import apply_color_lut, pixel_array

        with self._lock, decoding(self._name, "a DICOM frame"):
            self._check_decoder()
            dataset = self._dataset
            try:
                values = pixel_array(dataset, index=frame)  # YBR comes back as RGB
            except RuntimeError as error:  # every installed decoder was tried
                raise InputError(
                    f"{self._name}: no installed decoder could read this frame ({error}). If other programs show it, install another "
                    "decoder: pip install python-gdcm"
                ) from error
            if dataset.PhotometricInterpretation == "PALETTE COLOR":
                values = apply_color_lut(values, dataset)
                return (values >> 8 if values.dtype == np.uint16 else values)[..., :3].astype(np.uint8)
            if values.ndim == 3:
                return np.array(values >> max(int(dataset.BitsStored) - 8, 0), dtype=np.uint8)
            grey = _displayed(values, _display_settings(dataset, frame), self._name)
            return np.repeat(grey[..., None], 3, axis=2)

    def _check_decoder(self) -> None:
        from pydicom.pixels import get_decoder

        syntax = self._dataset.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated and not get_decoder(syntax).is_available:
            raise InputError(
                f"{self._name}: no installed decoder reads its compression ({syntax.name}). Install one: pip install python-gdcm"
            )


def _checked(content: bytes, name: str, limits: Limits) -> tuple[Dataset, int]:
    """The data set, and its number of frames."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(content))
    if "Rows" not in dataset or not any(keyword in dataset for keyword in _PIXELS):
        modality = dataset.get("Modality") or "unknown"
        raise InputError(f"{name}: is a DICOM file without an image (modality {modality}). Choose an image of the series.")
    check_pixels(int(dataset.Columns), int(dataset.Rows), name=name, limits=limits)
    if int(dataset.SamplesPerPixel) not in (1, 3):
        raise InputError(f"{name}: has {dataset.SamplesPerPixel} samples per pixel; 1 (grey, palette) or 3 (colour) are read.")
    count = int(dataset.get("NumberOfFrames") or 1)
    if not 1 <= count <= max(len(content), 1):  # each frame takes at least one byte
        raise InputError(f"{name}: claims {count} frames in {len(content)} bytes. It is damaged; export it again.")
    return dataset, count


def _display_settings(dataset: Dataset, frame: int) -> Dataset:
    """What decides how this frame is shown; enhanced objects say it for all frames, or for each (PS3.3, C.7.6.16)."""
    from pydicom import Dataset

    settings = Dataset()
    for keyword in _DISPLAY:
        if keyword in dataset:
            settings[keyword] = dataset[keyword]
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *each[frame : frame + 1]]:
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(keyword) or [])[:1]:
                settings.update(item)
    return settings


def _displayed(values: np.ndarray, settings: Dataset, name: str) -> np.ndarray:
    """Stored grey values [H, W] as uint8, through modality and VOI transformation (PS3.3, C.11.1 and C.11.2)."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if not np.isfinite(values).all():
        raise InputError(f"{name}: has pixels that are not numbers (NaN or infinite). Replace them and export it again.")
    eight_bits = values.dtype.kind in "iu" and int(settings.BitsStored) <= 8 and int(settings.PixelRepresentation) == 0
    stored = np.array([0, 2 ** int(settings.BitsStored) - 1]) if eight_bits else values
    with np.errstate(all="ignore"):
        values = apply_modality_lut(values, settings)
        if settings.get("VOILUTSequence"):
            ends = np.array([0, 2 ** int(settings.VOILUTSequence[0].LUTDescriptor[2]) - 1])
            values = apply_voi_lut(values, settings)
        elif settings.get("WindowCenter") is not None and settings.get("WindowWidth") is not None:
            ends = apply_voi_lut(np.array([-1e9, 1e9]), settings)  # what the window makes of the darkest and brightest values there can be
            values = apply_voi_lut(values, settings)
        else:
            ends = np.sort(apply_modality_lut(stored, settings), axis=None)[[0, -1]]
        dark, bright = ends.astype(np.float64)
        shown = np.clip((values - dark) / (bright - dark), 0, 1) if bright != dark else np.zeros(values.shape)
    if settings.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.rint(255 * shown).astype(np.uint8)

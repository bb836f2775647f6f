"""What a network answers about one volume, on the volume's own voxels."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from shared.errors import UserError
from shared.files import write_bytes, write_text
from shared.imaging import encode_png
from shared.imaging.volumes import (
    Code,
    Segment,
    SegmentationMaker,
    Volume,
    encode_labels,
    encode_segmentation,
    write_volume,
)
from shared.metrics.lesions import LesionMap, find_lesions
from shared.reports.patient import Scan, write_patient_report
from shared.reports.slices import figure, preview
from shared.segmentation.labels import Labels

__all__ = ["Kept", "VolumePrediction"]

NIFTI, DICOM = "application/x-nifti", "application/dicom"

_ABNORMAL = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
_ANATOMY = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
_NEOPLASM = Code(value="108369006", scheme="SCT", meaning="Neoplasm")
_TISSUE = Code(value="85756007", scheme="SCT", meaning="Tissue")
_COLORS = ((230, 75, 60), (60, 160, 230), (245, 190, 50), (120, 200, 90), (170, 110, 220))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which files ``VolumePrediction.save`` writes besides the segmentation, the measurements and the picture."""

    uncertainty: bool = True
    probability: bool = False
    report: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumePrediction:
    """The segmentation of one volume."""

    media_types: ClassVar[tuple[str, ...]] = (NIFTI, DICOM)

    volume: Volume
    """As it was read."""
    classes: Labels
    probability: NDArray[np.float32]
    """[K, X, Y, Z], 0 to 1: of each class, in the order of ``classes.names``, without the background."""
    labels: NDArray[np.uint8]
    """[X, Y, Z]: the value of a class, 0 for none."""
    uncertainty: NDArray[np.float32]
    """[X, Y, Z], 0 (sure) to 1: entropy of the probabilities."""
    maker: tuple[str, str]
    """Name and version of the model, for DICOM."""
    lesion: bool = True
    """Whether the classes are parts of lesions; False for anatomy, such as the hippocampus."""
    kept: Kept = field(default_factory=Kept)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[X, Y, Z]: whatever is labelled."""
        return self.labels != 0

    @property
    def affine(self) -> NDArray[np.float64]:
        """[4, 4]: voxel index to millimetres (RAS+), the input's own."""
        return self.volume.affine

    @cached_property
    def lesions(self) -> LesionMap:
        """Connected parts, measured; the largest first."""
        return find_lesions(self.labels, self.volume.affine)

    @property
    def scan(self) -> Scan:
        """For a comparison with another time."""
        return Scan(volume=self.volume, labels=self.labels, lesions=self.lesions)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Of each class."""
        return {name: float(mask.sum()) * self.volume.voxel_ml for name, mask in self.classes.masks(self.labels).items()}

    def summary(self) -> dict[str, Any]:
        """Measurements, JSON-ready; the largest part is that of ``lesions``."""
        largest = self.lesions.lesions[0] if self.lesions.lesions else None
        inside = self.mask
        return {
            "found": bool(inside.any()),
            "lesions" if self.lesion else "parts": len(self.lesions.lesions),
            "volume_ml": round(self.lesions.volume_ml, 4),
            **{f"{name.replace(' ', '_')}_ml": round(value, 4) for name, value in self.volumes_ml.items()},
            "largest_ml": round(largest.volume_ml, 4) if largest else 0.0,
            "largest_diameter_mm": round(largest.diameter.length_mm, 2) if largest else None,
            "largest_axial_diameters_mm": [
                round(largest.axial.longest.length_mm, 2),
                round(largest.axial.perpendicular.length_mm, 2),
            ]
            if largest
            else None,
            "largest_centroid_mm": [round(value, 2) for value in largest.centroid_mm] if largest else None,
            "mean_probability": round(float(self.probability.max(axis=0)[inside].mean()), 4) if inside.any() else None,
            "mean_uncertainty_inside": round(float(self.uncertainty[inside].mean()), 4) if inside.any() else None,
            "shape": list(self.volume.shape),
            "spacing_mm": [round(value, 4) for value in self.volume.spacing_mm],
            "notes": list(self.volume.notes),
        }

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """Writes the segmentation as ``encode`` makes it (gzipped NIfTI on the source's voxels; for DICOM a SEG as well), measurements of
        each lesion, a picture, and what ``kept`` says.

        Raises:
            UserError: if a file cannot be written; no half-written one stays.
        """
        names = {"segmentation": f"{stem}_segmentation.nii.gz"}
        write_bytes(folder / names["segmentation"], self.encode(NIFTI))
        if self._is_dicom:
            try:
                content = self.encode(DICOM)
            except UserError as error:  # anonymisers drop what it must repeat, and the other volumes of a run go on
                print(error)
            else:
                names["dicom"] = f"{stem}_dicom_seg.dcm"
                write_bytes(folder / names["dicom"], content)
        names["lesions"] = f"{stem}_lesions.csv"
        write_text(folder / names["lesions"], self._table())
        names["overlay"] = f"{stem}_overlay.png"
        write_bytes(folder / names["overlay"], self.preview())
        if self.kept.uncertainty:
            names["uncertainty"] = f"{stem}_uncertainty.nii.gz"
            # Steps of a hundredth, or noise in the last digits would make the file ten times as large.
            write_volume(folder / names["uncertainty"], np.round(self.uncertainty, 2), like=self.volume)
        if self.kept.probability:
            names["probability"] = f"{stem}_probability.nii.gz"
            write_volume(folder / names["probability"], self.probability, like=self.volume)
        if self.kept.report:
            names["report"] = f"{stem}_report.html"
            self.write_report(folder / names["report"], title=stem)
        return names

    def write_report(self, path: Path, *, title: str) -> None:
        """One page about this patient: lesions, slices, a view in 3-D."""
        write_patient_report(
            path,
            volume=self.volume,
            labels=self.labels,
            names=self.classes.written,
            lesions=self.lesions,
            probability=self.probability.max(axis=0),
            uncertainty=self.uncertainty,
            uncertainty_note="It is the entropy of the probabilities: 1 where the network cannot tell the classes apart.",
            regions=self.classes.regions,
            title=title,
            subject="lesion" if self.lesion else "part",
            details={"Model": self.maker[0], "Fovea": self.maker[1]},
        )

    def figure(self) -> Figure:
        """Slices along three planes through the largest part, with contours."""
        return figure(self.volume, self.labels, self.classes.written)

    def preview(self) -> bytes:
        """The same as a PNG of modest size."""
        return encode_png(preview(self.volume, self.labels, self.classes.written))

    def encode(self, media_type: str) -> bytes:
        """The segmentation as gzipped NIfTI, or as DICOM SEG where the volume is a DICOM series."""
        if media_type == NIFTI:
            return encode_labels(self.labels, like=self.volume, suffix=".nii.gz")
        if media_type != DICOM:
            raise UserError(f"{media_type} cannot be made; available: {', '.join(self.media_types)}.")
        if not self._is_dicom:
            raise UserError(f"{self.volume.name}: a DICOM segmentation refers to its DICOM series, and this is none. Ask for {NIFTI}.")
        name, version = self.maker
        maker = SegmentationMaker(name=name, version=version, series_description=f"{', '.join(self.classes.names)} ({name})"[:64])
        return encode_segmentation(self.labels, like=self.volume, segments=self._segments(), maker=maker)

    @property
    def _is_dicom(self) -> bool:
        return self.volume.source is not None and self.volume.source.dicom is not None

    def _segments(self) -> list[Segment]:
        category, kind = (_ABNORMAL, _NEOPLASM) if self.lesion else (_ANATOMY, _TISSUE)
        return [
            Segment(value=value, name=name, category=category, kind=kind, color=_COLORS[number % len(_COLORS)])
            for number, (value, name) in enumerate(self.classes.written.items())
        ]

    def _table(self) -> str:
        text = io.StringIO()
        columns = list(LESION_COLUMNS)
        writer = csv.DictWriter(text, columns + [f"{name.replace(' ', '_')}_ml" for name in self.classes.names], lineterminator="\n")
        writer.writeheader()
        for lesion in self.lesions.lesions:
            parts = dict(_part_volumes(self.classes, lesion.parts_ml))
            writer.writerow({key: f"{value:.6g}" for key, value in {**lesion.row(), **parts}.items()})
        return text.getvalue()


LESION_COLUMNS = (
    "lesion",
    "volume_ml",
    "diameter_mm",
    "axial_diameter_mm",
    "axial_perpendicular_mm",
    "axial_slice",
    "x_mm",
    "y_mm",
    "z_mm",
)


def _part_volumes(classes: Labels, parts_ml: Mapping[int, float]) -> list[tuple[str, float]]:
    """Of each class within one lesion."""
    return [
        (f"{name.replace(' ', '_')}_ml", sum(volume for value, volume in parts_ml.items() if value in values))
        for name, values in classes.task.labels.items()
    ]

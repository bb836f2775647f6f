"""One patient's report: what was found, how large and where, seen in slices and in three dimensions; and what became of it since.

Each report is one HTML file that needs nothing else; see ``shared.reports.html``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.imaging.volumes import Volume
from shared.metrics.growth import Growth
from shared.metrics.lesions import Lesion, LesionMap
from shared.reports.html import Cell, Report
from shared.reports.planes import check_labels
from shared.reports.slices import montage, preview, probability_map
from shared.reports.surface import Surface, render, scene, surfaces
from shared.reports.timepoints import TIME_COLORS, Scan, both_outlines, both_surfaces, same_slices

__all__ = ["Scan", "write_growth_report", "write_patient_report"]

LISTED = 25
"""Lesions with a line of their own."""
CONVENTION = "Radiological convention: the patient's right (R) is at the left."
DIAMETERS = (
    "The diameter is the largest in any direction. The axial ones are the longest line within a slice and the longest one at right angles "
    "to it, as RANO measures them. Volumes count whole voxels."
)
CERTAIN = 0.5
"""Voxels that are less certain than this count as unsure."""


def write_patient_report(
    path: Path | str,
    *,
    volume: Volume,
    labels: ArrayLike,
    names: Mapping[int, str],
    lesions: LesionMap,
    probability: ArrayLike | None = None,
    uncertainty: ArrayLike | None = None,
    uncertainty_note: str = "",
    regions: Mapping[str, Sequence[int]] | None = None,
    title: str = "Segmentation",
    subject: str = "lesion",
    facts: Mapping[str, Cell] | None = None,
    details: Mapping[str, Cell] | None = None,
    channel: int = 0,
) -> Path:
    """Writes what was found in one volume.

    Args:
        path: of the HTML file.
        volume: [X, Y, Z] or [C, X, Y, Z].
        labels: whole numbers [X, Y, Z] on the same voxels.
        names: of the label values.
        lesions: of these labels, from ``find_lesions``; those that it left out as too small are drawn but not counted.
        probability: float [X, Y, Z], 0 to 1, of anything being there; gives each lesion's mean.
        uncertainty: float [X, Y, Z], 0 (sure) to 1.
        uncertainty_note: a sentence on what the uncertainty is made of.
        regions: label values that are also measured together, by name, such as {"whole tumour": (1, 2, 4)}.
        title: the heading.
        subject: what one connected part is called, in the singular.
        facts: more headline figures.
        details: what was run on what, by label.
        channel: which one is shown.

    Returns:
        The path.

    Raises:
        ValueError: if arrays do not fit the volume, values lie outside 0 to 1, or there is no such channel.
        UserError: if the file cannot be written.
    """
    values = check_labels(volume, labels)
    found, plural = lesions.lesions, f"{subject}s"
    report = Report(title, subtitle=_called(volume), details=details)
    largest = max((lesion.diameter.length_mm for lesion in found), default=None)
    report.facts(
        {
            plural[:1].upper() + plural[1:]: len(found),
            "Total volume": f"{lesions.volume_ml:.2f} ml" if found else "none",
            "Largest diameter": None if largest is None else f"{largest:.1f} mm",
            **(facts or {}),
        }
    )
    report.section("Slices")
    middle = f"Slices through the largest {subject}." if (values > 0).any() else f"No {subject} was found; slices through the middle."
    report.figure(preview(volume, values, names, channel=channel), f"{middle} {CONVENTION}")
    if (values > 0).any():
        report.figure(
            montage(volume, values, names, channel=channel, columns=4, height=260),
            f"Axial slices from the lowest to the highest {subject}.",
        )
    if found:
        report.section(plural[:1].upper() + plural[1:])
        _lesion_table(report, lesions, names, _array(volume, probability), _array(volume, uncertainty), subject)
        report.section("Volumes")
        _volume_table(report, values, lesions, names, regions or {}, volume.voxel_ml)
    _scene(report, surfaces(volume, values, names, channel=channel), f"The {plural} in the patient, seen from the front and the left.")
    if uncertainty is not None:
        _uncertainty(report, volume, values, _array(volume, uncertainty), uncertainty_note, channel)
    if volume.notes:
        report.section("How the file was understood")
        report.text("\n".join(f"- {note}" for note in volume.notes))
    report.write(path)
    return Path(path)


def write_growth_report(
    path: Path | str,
    *,
    before: Scan,
    after: Scan,
    growth: Growth,
    names: Mapping[int, str],
    dates: tuple[date, date] | None = None,
    title: str = "Change between two scans",
    subject: str = "lesion",
    details: Mapping[str, Cell] | None = None,
    channel: int = 0,
) -> Path:
    """Writes what became of a patient's lesions.

    Args:
        path: of the HTML file.
        before, after: the scans, in the same world.
        growth: of their lesions, from ``shared.metrics.growth.growth``.
        names: of the label values.
        dates: of the scans, to be shown; the times are those of ``growth``.
        title, subject, details, channel: as ``write_patient_report``.

    Returns:
        The path.

    Raises:
        ValueError: if labels do not fit their volume, or there is no such channel.
        UserError: if the file cannot be written.
    """
    total = growth.total
    days = f"{total.days:,} days" if total.days else None
    when = {"First scan": dates[0].isoformat(), "Second scan": dates[1].isoformat()} if dates else {}
    called = dict.fromkeys([_called(before.volume), _called(after.volume)])
    report = Report(title, subtitle=" and ".join(called), details={**when, **(details or {})})
    report.facts(
        {
            "Volume before": f"{total.before_ml:.2f} ml",
            "Volume after": f"{total.after_ml:.2f} ml",
            "Change": f"{total.change_ml:+.2f} ml" + ("" if total.change_percent is None else f" ({total.change_percent:+.0f} %)"),
            "Between the scans": days,
            "Volume doubles in": _days(total.doubling_days),
        }
    )
    report.section("Slices")
    report.figure(both_outlines(before, after, channel=channel), f"Both outlines on the second scan. {CONVENTION}")
    report.figure(same_slices(before, after, channel=channel), "The first scan above the second, at the same places.")
    unseen = any(change.fate == "out of view" for change in growth.lesions)
    if unseen:
        for scan, name in ((before, "first"), (after, "second")):
            report.figure(preview(scan.volume, scan.labels, names, channel=channel), f"All of the {name} scan, which reaches elsewhere.")
    report.section(f"What became of each {subject}")
    if growth.lesions:
        _fate_table(report, growth, subject)
    else:
        report.text(f"Neither scan shows a {subject}.")
    if unseen:
        report.text(
            f"What is **out of view** lies where the other scan does not reach. Whether that {subject} is still there, or was there "
            "before, cannot be said; it is left out of the total."
        )
    _scene(report, both_surfaces(before, after, channel=channel), "After, and within it before.")
    report.write(path)
    return Path(path)


def _lesion_table(
    report: Report,
    lesions: LesionMap,
    names: Mapping[int, str],
    probability: NDArray[np.float32] | None,
    uncertainty: NDArray[np.float32] | None,
    subject: str,
) -> None:
    parts = [value for value in names if any(value in lesion.parts_ml for lesion in lesions.lesions)]
    parts = parts if len(parts) > 1 else []
    columns = [subject.capitalize(), "ml", *(f"{names[value]} (ml)" for value in parts), "diameter (mm)", "axial (mm)", "centre (mm)"]
    maps = [(name, values) for name, values in (("mean probability", probability), ("mean uncertainty", uncertainty)) if values is not None]
    rows: list[list[Cell]] = []
    for lesion in lesions.lesions[:LISTED]:
        inside = lesions.numbers[lesion.box] == lesion.number
        rows.append(
            [
                str(lesion.number),
                lesion.volume_ml,
                *(lesion.parts_ml.get(value, 0.0) for value in parts),
                f"{lesion.diameter.length_mm:.1f}",
                f"{lesion.axial.longest.length_mm:.1f}\u00a0×\u00a0{lesion.axial.perpendicular.length_mm:.1f}",
                _place(lesion),
                *(float(values[lesion.box][inside].mean()) for _, values in maps),
            ]
        )
    hidden = len(lesions.lesions) - len(rows)
    more = f" The {hidden} smaller ones are left out here." if hidden > 0 else ""
    report.table([*columns, *(name for name, _ in maps)], rows, caption=f"{DIAMETERS}{more}", decimals=2)


def _volume_table(
    report: Report,
    labels: NDArray[Any],
    lesions: LesionMap,
    names: Mapping[int, str],
    regions: Mapping[str, Sequence[int]],
    voxel_ml: float,
) -> None:
    counted = labels[lesions.numbers > 0]
    everything = max(counted.size, 1)
    together = {**{name: (value,) for value, name in names.items()}, **regions}
    rows: list[list[Cell]] = []
    for name, values in together.items():
        voxels = int(np.isin(counted, list(values)).sum())
        rows.append([name, voxels * voxel_ml, f"{100 * voxels / everything:.0f} %"])
    report.table(["Part", "ml", "of all"], rows, caption="Volumes of each part, and of parts together.", decimals=2)


def _fate_table(report: Report, growth: Growth, subject: str) -> None:
    columns = [subject.capitalize(), "fate", "before (ml)", "after (ml)", "change (ml)", "change", "per year (ml)", "doubles in"]
    rows: list[list[Cell]] = []
    for change in growth.lesions[:LISTED]:
        volume, unseen = change.volume, change.fate == "out of view"
        percent = None if volume.change_percent is None or unseen else f"{volume.change_percent:+.0f} %"
        rows.append(
            [
                f"{_numbers(change.before)} → {_numbers(change.after)}",
                change.fate,
                None if unseen and not change.before else volume.before_ml,
                None if unseen and not change.after else volume.after_ml,
                None if unseen else f"{volume.change_ml:+.2f}",
                percent,
                None if unseen or volume.ml_per_year is None else f"{volume.ml_per_year:+.2f}",
                None if unseen else _days(volume.doubling_days),
            ]
        )
    hidden = len(growth.lesions) - len(rows)
    more = f" The {hidden} smaller ones are left out here." if hidden > 0 else ""
    report.table(columns, rows, caption=f"By the numbers in the first and in the second scan, largest first.{more}", decimals=2)


def _scene(report: Report, meshes: Sequence[Surface], caption: str) -> None:
    if not meshes:
        return
    report.section("In three dimensions")
    legend = {mesh.name: TIME_COLORS.get(mesh.name, mesh.color) for mesh in meshes}
    report.scene(scene(meshes), render(meshes, pixels=640), f"{caption} Drag to turn it. Surfaces are smoothed for the eye.", legend=legend)


def _uncertainty(
    report: Report, volume: Volume, labels: NDArray[Any], uncertainty: NDArray[np.float32] | None, note: str, channel: int
) -> None:
    assert uncertainty is not None
    report.section("Uncertainty")
    marked = labels > 0
    if marked.any():
        inside = uncertainty[marked]
        unsure = 100 * float((inside > CERTAIN).mean())
        said = f"Within what was outlined it is {inside.mean():.2f} on average, and above {CERTAIN} in {unsure:.0f} % of the voxels."
    else:
        said = f"Nothing was outlined; the highest value anywhere is {uncertainty.max():.2f}."
    report.text(f"{note} {said}".strip())
    where = labels if marked.any() else None
    picture = probability_map(volume, uncertainty, where, channel=channel, label="Uncertainty")
    report.figure(picture, "Where the model is unsure: look at these borders yourself.")


def _array(volume: Volume, values: ArrayLike | None) -> NDArray[np.float32] | None:
    if values is None:
        return None
    array = np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0.0)
    if array.shape != volume.shape:
        raise ValueError(f"a map is {list(array.shape)}: expected {list(volume.shape)}, as {volume.name}")
    return array


def _place(lesion: Lesion) -> str:
    sides = zip(lesion.centroid_mm, ("RL", "AP", "SI"), strict=True)
    return ", ".join(f"{letters[0] if place >= 0 else letters[1]}\u00a0{abs(place):.0f}" for place, letters in sides)


def _called(volume: Volume) -> str:
    """Its file's name, without the folders of the machine that it was read on."""
    return PurePath(volume.name).name


def _numbers(lesions: Sequence[int]) -> str:
    return ", ".join(map(str, lesions)) or "–"


def _days(days: float | None) -> str | None:
    if days is None:
        return None
    return f"{days:,.0f} days" if days < 730 else f"{days / 365.25:,.1f} years"

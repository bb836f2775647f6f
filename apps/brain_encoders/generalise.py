"""Cross-subject generalisation: encoders of several subjects, each tested on every subject, on the units that all of them have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from apps.brain_encoders.config import GeneraliseConfig
from apps.brain_encoders.data import read_study
from apps.brain_encoders.evaluation import check_unseen, study_ceiling, test_pictures, units_of
from apps.brain_encoders.inference import BrainEncoderPredictor
from apps.brain_encoders.maps import on_tile, write_map_page
from apps.brain_encoders.prediction import brain_picture
from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace
from apps.brain_encoders.study import Study, checked, content_key, keep_units
from apps.brain_encoders.tables import csv_text, list_files, unit_table
from shared.errors import UserError
from shared.files import write_bytes, write_json, write_text
from shared.inference.run import SOME_FAILED
from shared.metrics.encoding import generalisation, noise_normalised
from shared.reports.html import Report
from shared.reports.style import INK, styled_figure, to_png

__all__ = ["Generalisation", "common_units", "generalise"]

AFFINE_MM = 1e-3
"""Affines that differ by less are the same."""

Matrix = NDArray[np.float64]
AnySpace = SurfaceSpace | VolumeSpace | TableSpace


@dataclass(frozen=True, kw_only=True, eq=False)
class Generalisation:
    """Of k subjects, [fitted on, tested on]."""

    subjects: tuple[str, ...]
    images: tuple[int, ...]
    """How many test images of each subject were scored."""
    space: AnySpace
    """Of the V units that all have."""
    correlation: NDArray[np.float64]
    """[k, k, V]"""
    normalised: NDArray[np.float64]
    """[k, k, V]: share of the tested subject's explainable variance; NaN where no ceiling is known."""
    regions: dict[str, NDArray[np.bool_]]
    """Region -> [k, V]: the units that each subject has in it; of regions that at least two subjects have."""
    failures: dict[str, str]
    """Test images that could not be used, with the reason."""

    def matrix(self, values: NDArray[np.float64], region: str | None = None) -> Matrix:
        """[k, k]: the mean over known units; of a region, over those that both subjects have in it. NaN where there is none."""
        count = len(self.subjects)
        found = np.full((count, count), np.nan)
        for fitted, tested in np.ndindex(count, count):
            chosen = values[fitted, tested]
            if region is not None:
                chosen = chosen[self.regions[region][fitted] & self.regions[region][tested]]
            known = chosen[np.isfinite(chosen)]
            if len(known):
                found[fitted, tested] = known.mean()
        return found

    def maps(self) -> dict[str, NDArray[np.float64]]:
        """Name -> [V]: the mean correlation of subjects with their own encoder, and with those of others."""
        own = np.eye(len(self.subjects), dtype=bool)
        return {"own encoder": self.correlation[own].mean(axis=0), "encoders of others": self.correlation[~own].mean(axis=0)}

    def summary(self) -> dict[str, Any]:
        """Numbers for metrics.json."""
        return {
            "subjects": list(self.subjects),
            "images": dict(zip(self.subjects, self.images, strict=True)),
            "common_units": self.correlation.shape[2],
            **{name.replace(" ", "_"): float(values.mean()) for name, values in self.maps().items()},
            "correlation": _plain(self.matrix(self.correlation)),
            "noise_normalised": _plain(self.matrix(self.normalised)),
            "regions": {name: _plain(self.matrix(self.correlation, name)) for name in self.regions},
            "failures": self.failures,
        }


def generalise(config: GeneraliseConfig) -> int:
    """Leaves generalisation.csv, units.csv, metrics.json, generalisation.png, maps and report.html; 3 if some images failed."""
    if len(config.model) != len(config.data) or len(config.model) < 2:
        raise UserError(
            f"{len(config.model)} bundles (--model) and {len(config.data)} studies (--data): give two or more, and to each bundle the "
            "study of its subject, in the same order."
        )
    predictors = [BrainEncoderPredictor.load(path, device=config.device, precision=config.precision) for path in config.model]
    studies = []
    for path, predictor, model in zip(config.data, predictors, config.model, strict=True):
        study = checked(read_study(path), bad_units="drop", allow_repeats=config.allow_repeats)
        studies.append(units_of(study, predictor, model))
    for model, predictor, own in zip(config.model, predictors, studies, strict=True):
        training = {content_key(own.images[index]) for index in own.part(test=False)}
        if predictor.brain.fitted and not predictor.brain.fitted & training:
            raise UserError(f"{model}: was fitted to no training image of {own.root}. Give the studies in the order of their bundles.")
        for study in studies:
            check_unseen(model, predictor.brain.fitted | training, study, allow_repeats=config.allow_repeats)
    found = score_generalisation(predictors, studies)
    _print(found)
    write_text(config.output / "generalisation.csv", _table(found))
    write_text(config.output / "units.csv", unit_table(found.space, {name.replace(" ", "_"): row for name, row in found.maps().items()}))
    write_json(config.output / "metrics.json", found.summary())
    found.space.write(
        np.stack(list(found.maps().values())), config.output, "maps", formats=("gifti", "nifti", "cifti"), maps=list(found.maps())
    )
    print(f"To look at: {_write_report(config.output, found)}")
    for name, reason in found.failures.items():
        print(f"not scored: {name}: {reason}")
    return SOME_FAILED if found.failures else 0


def score_generalisation(predictors: Sequence[BrainEncoderPredictor], studies: Sequence[Study]) -> Generalisation:
    """Every encoder's answers to every study's test images, on common units.

    Args:
        predictors: of each subject.
        studies: of the same subjects and units.

    Raises:
        UserError: if subjects have no units in common, or a study has fewer than three test images.
    """
    names = _subject_names(studies)
    common = common_units({str(study.root): study.space for study in studies})
    columns, normalised, images = [], [], []
    failures: dict[str, str] = {}
    for name, study, units in track(list(zip(names, studies, common, strict=True)), "predicting", transient=True):
        used, pictures, bad = test_pictures(study)
        failures |= bad
        answers: dict[str, dict[str, NDArray[np.float32]]] = {fitted: {} for fitted in names}
        for fitted, predictor, own in zip(names, predictors, common, strict=True):
            answers[fitted][name] = np.concatenate([predictor.responses(predictor.to_input(one)[None])[:, own] for one in pictures])
        columns.append(generalisation({name: study.mean_responses(used)[:, units]}, answers))
        ceiling = study_ceiling(study, used)
        missing = np.full(columns[-1].shape, np.nan)
        normalised.append(missing if ceiling is None else noise_normalised(columns[-1], ceiling[units]))
        images.append(len(pictures))
    kept = np.zeros(studies[0].units, dtype=bool)
    kept[common[0]] = True
    regions = {}
    for region in dict.fromkeys(region for study in studies for region in study.regions):
        nowhere = [np.zeros(study.units, dtype=bool) for study in studies]
        masks = [study.regions.get(region, empty)[units] for study, empty, units in zip(studies, nowhere, common, strict=True)]
        if sum(bool(mask.any()) for mask in masks) > 1:
            regions[region] = np.stack(masks)
    return Generalisation(
        subjects=names,
        images=tuple(images),
        space=keep_units(studies[0], kept).space,
        correlation=np.concatenate(columns, axis=1),
        normalised=np.concatenate(normalised, axis=1),
        regions=regions,
        failures=failures,
    )


def common_units(spaces: Mapping[str, AnySpace]) -> list[NDArray[np.intp]]:
    """Of each subject the numbers of those units that all have, in the same order (that of the first).

    Args:
        spaces: where it comes from -> vertices of one mesh, or voxels of one grid.

    Raises:
        UserError: if two have units that are not comparable, or none in common; names them.
    """
    (first, reference), *others = spaces.items()
    wanted = reference.names()
    for name, space in others:
        _check_comparable(first, reference, name, space)
        present = set(space.names())
        wanted = [unit for unit in wanted if unit in present]
        if not wanted:
            raise UserError(
                f"{name} and {first}: have no unit in common (with those between them). Take studies that keep the same part of the brain."
            )
    places = ({unit: number for number, unit in enumerate(space.names())} for space in spaces.values())
    return [np.array([place[unit] for unit in wanted]) for place in places]


def _check_comparable(first: str, reference: AnySpace, name: str, space: AnySpace) -> None:
    if isinstance(reference, TableSpace) or isinstance(space, TableSpace):
        bare = first if isinstance(reference, TableSpace) else name
        raise UserError(
            f"{first} and {name}: the units of {bare} have names but no place, so that nothing says which correspond. Bring both to one "
            "surface (such as fsaverage5) or one grid of voxels."
        )
    if isinstance(reference, SurfaceSpace) and isinstance(space, SurfaceSpace) and reference.mesh == space.mesh:
        return
    if isinstance(reference, VolumeSpace) and isinstance(space, VolumeSpace):
        if reference.mask.shape == space.mask.shape and np.allclose(reference.affine, space.affine, atol=AFFINE_MM):
            return
        raise UserError(
            f"{first} and {name}: their voxels are on different grids (shape or affine), so that the same index is another place. Resample "
            "both to one, such as that of a template."
        )
    kinds = [each.mesh if isinstance(each, SurfaceSpace) else "a volume" for each in (reference, space)]
    raise UserError(
        f"{first} and {name}: units on {kinds[0]} and on {kinds[1]} do not correspond. Resample both to one surface or one grid of voxels."
    )


def _subject_names(studies: Sequence[Study]) -> tuple[str, ...]:
    """Of the studies; numbered where they are the same."""
    names = [study.name for study in studies]
    return tuple(name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names, start=1))


def _plain(matrix: Matrix) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in matrix]


def _table(found: Generalisation) -> str:
    return csv_text(["fitted_on", "tested_on", "region", "units", "images", "correlation", "noise_normalised"], _rows(found))


def _rows(found: Generalisation) -> Iterator[list[Any]]:
    for region in (None, *found.regions):
        matrices = [found.matrix(values, region) for values in (found.correlation, found.normalised)]
        for fitted, tested in np.ndindex(*matrices[0].shape):
            both = found.correlation.shape[2] if region is None else int((found.regions[region][[fitted, tested]]).all(axis=0).sum())
            pair = [found.subjects[fitted], found.subjects[tested], region or "all", both, found.images[tested]]
            yield [*pair, *(float(matrix[fitted, tested]) for matrix in matrices)]


def _print(found: Generalisation) -> None:
    table = Table(title=f"mean correlation over {found.correlation.shape[2]:,} common units", title_justify="left")
    for column in ("fitted on / tested on", *found.subjects):
        table.add_column(column, no_wrap=True)
    for name, row in zip(found.subjects, found.matrix(found.correlation), strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in row))
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table)
    print("; ".join(f"{name}: {values.mean():.3f}" for name, values in found.maps().items()))


def heat_map(matrices: Mapping[str, Matrix], subjects: Sequence[str]) -> Figure:
    """A panel for each matrix [fitted on, tested on], its values in the cells."""
    side = 1.3 + 0.62 * len(subjects)
    figure, axes = styled_figure(width=(side + 0.9) * len(matrices), height=side + 0.5, columns=len(matrices))
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=True):
        low, high = min(0.0, float(np.nanmin(matrix))), max(float(np.nanmax(matrix)), 0.01)
        axis.imshow(matrix, cmap="Blues", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(matrix):
            dark = np.isfinite(value) and (value - low) / (high - low) > 0.6
            text = f"{value:.2f}" if np.isfinite(value) else "–"
            axis.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else INK)
        axis.set_xticks(range(len(subjects)), subjects, rotation=30, ha="right")
        axis.set_yticks(range(len(subjects)), subjects)
        axis.set(title=title, xlabel="tested on", ylabel="fitted on")
        axis.title.set(fontsize=9, color=INK)
        axis.grid(False)
        axis.spines[:].set_visible(False)
    return figure


def _write_report(folder: Path, found: Generalisation) -> Path:
    report = Report("Cross-subject generalisation", subtitle=f"{', '.join(found.subjects)}: {found.correlation.shape[2]:,} common units")
    report.facts({f"mean correlation, {name}": float(values.mean()) for name, values in found.maps().items()})
    matrices = {"mean correlation": found.matrix(found.correlation)}
    if np.isfinite(found.normalised).any():
        matrices["noise-normalised"] = found.matrix(found.normalised)
    figure = heat_map(matrices, found.subjects)
    write_bytes(folder / "generalisation.png", to_png(figure, dpi=150))
    report.section("Every encoder on every subject")
    report.figure(figure, caption=_MATRIX)
    if found.regions:
        own = np.eye(len(found.subjects), dtype=bool)
        by_region = {region: found.matrix(found.correlation, region) for region in found.regions}
        rows = [[region, *(_mean(matrix[chosen]) for chosen in (own, ~own))] for region, matrix in by_region.items()]
        report.table(["region", *found.maps()], rows, caption="Mean correlation by region, over pairs of subjects that both have it.")
    report.section("Where encoders generalise")
    report.gallery([(on_tile(brain_picture(values, found.space, limit=1.0, height=240)), name) for name, values in found.maps().items()])
    report.text("Correlation, mean over subjects or pairs of subjects, from -1 (blue) to 1 (red).")
    page = write_map_page(folder / "map.html", found.maps()["encoders of others"], found.space, title="encoders of others: correlation")
    if page is not None:
        report.text(f"That of others to turn around: [{page.name}]({page.name}).")
    if found.failures:
        report.table(["image that could not be used", "reason"], list(found.failures.items()), caption="Left out of every score.")
    list_files(report, {"generalisation.csv": "every pair, by region", "units.csv": "every unit", "metrics.json": "all"})
    path = folder / "report.html"
    report.write(path)
    return path


_MATRIX = (
    "Rows: whose responses the encoder was fitted to; columns: whose test images and responses it was scored on. Means over common units. "
    "Columns differ in noise: compare within them, or the noise-normalised scores (max(r, 0) squared over the tested subject's ceiling)."
)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")

"""The table on the terminal and the HTML report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from apps.brain_encoders.maps import write_map_page
from apps.brain_encoders.paper import published_scores
from apps.brain_encoders.prediction import brain_picture
from apps.brain_encoders.tables import list_files
from shared.explain.overlay import heat
from shared.imaging import read_image
from shared.metrics.encoding import RegionScore
from shared.reports.html import Report
from shared.reports.style import PALETTE

if TYPE_CHECKING:
    from apps.brain_encoders.evaluation import ModelScores, StudyScores
    from apps.brain_encoders.inference import BrainEncoderPredictor

__all__ = ["preferred_pictures", "print_table", "region_bars", "write_evaluation_report"]

COLUMNS = ("answer of", "r", "median r", "R2", "noise-normalised", "2V2", "pattern r", "units above chance")
TOP = 6
"""Pictures that are shown for each region."""


def print_table(scores: StudyScores) -> None:
    """Every model, the paper's figures if the study is of its data, and answers that need no network."""
    table = Table(title=f"{scores.study.name}: {len(scores.images)} test images, {scores.study.units:,} units", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, no_wrap=True, overflow="fold")
    for row in _rows(scores):
        table.add_row(*row)
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table)  # a narrow terminal would cut digits off
    for name, value in scores.truth.items():
        print(f"{name.replace('_', ' ')}: {value:.3f}")


def write_evaluation_report(folder: Path, scores: StudyScores, predictor: BrainEncoderPredictor) -> Path:
    """Tables, maps, what each region prefers and where it looks; and for surfaces a page to turn the brain around in."""
    report = Report(f"Evaluation on {scores.study.name}", subtitle=f"{len(scores.images)} test images, {scores.study.units:,} units")
    best = scores.models[-1]
    truth = {name.replace("_", " "): value for name, value in scores.truth.items()}
    report.facts({"mean correlation": float(best.correlation.mean()), "2V2": best.two_v_two, **truth})
    report.section("Scores")
    report.table(list(COLUMNS), [list(row) for row in _rows(scores)], caption=_EXPLANATION)
    masks = [np.ones(scores.study.units, dtype=bool), *scores.study.regions.values()]
    ceilings = [] if scores.ceiling is None else [np.sqrt(np.nanmean(scores.ceiling[mask])) if mask.any() else np.nan for mask in masks]
    report.figure(
        region_bars({model.name: model.regions for model in scores.models}, label="correlation", ceilings=ceilings),
        caption="Correlation by region: mean, and the middle half of its units. Grey: the noise ceiling (as r).",
    )
    report.section("Maps")
    report.figure(
        brain_picture(best.correlation, scores.study.space, limit=1.0, height=240), caption=f"Correlation of {best.name}, -1 to 1."
    )
    if scores.ceiling is not None:
        report.figure(_against_ceiling(best, scores.ceiling), caption="Each unit's correlation against what noise allows.")
    page = write_map_page(folder / "map.html", best.correlation, scores.study.space, title="correlation")
    if page is not None:
        report.text(f"The same map to turn around: [{page.name}]({page.name}).")
    if scores.study.regions:
        report.section("What regions prefer")
        report.text("The test images that each region is predicted to answer most, from the mean over its units.")
        for name, pictures in preferred_pictures(scores).items():
            report.figure(pictures, caption=f"{name}: most, on the left, to less.")
    if predictor.settings.queries:
        report.section("Where regions look")
        picture = read_image(scores.images[0])
        report.gallery([(heat(picture, values), name) for name, values in predictor.routes(picture).items()])
    if scores.failures:
        report.table(["image that could not be used", "reason"], list(scores.failures.items()), caption="Left out of every score.")
    list_files(report, {"units.csv": "every unit", "regions.csv": "every region", "metrics.json": "all"})
    path = folder / "report.html"
    report.write(path)
    return path


def preferred_pictures(scores: StudyScores) -> dict[str, NDArray[np.uint8]]:
    """Region -> its favourite test images side by side, by predicted mean response."""
    found = {}
    for name, mask in scores.study.regions.items():
        order = scores.predicted[:, mask].mean(axis=1).argsort()[::-1][:TOP]
        tiles = []
        for index in order:
            picture = read_image(scores.images[index])
            side = min(picture.shape[:2])
            rows, columns = (np.arange(96) * side // 96 + (extent - side) // 2 for extent in picture.shape[:2])
            tiles.append(picture[rows][:, columns])
        found[name] = np.concatenate(tiles, axis=1)
    return found


_EXPLANATION = (
    "r and R2: means over units. Noise-normalised: max(r, 0) squared over the noise ceiling, at most 1, units without a ceiling left out. "
    "2V2 and pattern r compare whole patterns of units, image by image; they are not to be compared with r. Units above chance: a "
    "permutation test over images, false discovery rate 5 %."
)


def _rows(scores: StudyScores) -> Iterator[tuple[str, ...]]:
    for model in scores.models:
        known = model.normalised[np.isfinite(model.normalised)]
        significant = "" if model.adjusted_p is None else f"{int((model.adjusted_p < 0.05).sum()):,}"
        numbers = (model.correlation.mean(), np.median(model.correlation), model.r2.mean())
        normalised = f"{known.mean():.3f}" if len(known) else ""
        patterns = (f"{model.two_v_two:.3f}", f"{model.pattern_correlation:.3f}")
        yield model.name, *(f"{number:.3f}" for number in numbers), normalised, *patterns, significant
    for answer, value in published_scores(scores.study.name).items():
        yield answer, "", "", "", f"{value:.3f}", "", "", ""
    for answer, value in scores.trivial.items():
        yield f"trivial: {answer}", f"{value:.3f}", "", "", "", "", "", ""


def region_bars(models: Mapping[str, Sequence[RegionScore]], *, label: str, ceilings: Sequence[float] = ()) -> Figure:
    """Beside each other for each region, the models' means and, as lines, the middle half of its units.

    Args:
        models: name -> the same regions' scores.
        label: of the scores.
        ceilings: a grey line for each region.
    """
    names = [row.name for row in next(iter(models.values()))]
    figure = Figure(figsize=(max(6.0, min(9.6, 0.3 * len(names) * len(models) + 2)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=PALETTE)
    width = 0.8 / len(models)
    for order, (model, rows) in enumerate(models.items()):
        places = np.arange(len(names)) + (order - (len(models) - 1) / 2) * width
        means, low, high = (
            np.array([np.nan if getattr(row, value) is None else getattr(row, value) for row in rows]) for value in ("mean", "low", "high")
        )
        axes.bar(places, means, width, label=model)
        axes.vlines(places, low, high, color="black", linewidth=1)
    for place, ceiling in enumerate(ceilings):
        axes.hlines(ceiling, place - 0.45, place + 0.45, color="0.5", linewidth=2)
    axes.set_xticks(np.arange(len(names)), names, rotation=45 if len(names) > 8 else 0, ha="right" if len(names) > 8 else "center")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    if len(models) > 1:
        figure.legend(loc="outside upper left", ncols=min(len(models), 7), frameon=False)
    return figure


def _against_ceiling(model: ModelScores, ceiling: NDArray[np.float64]) -> Figure:
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=1)
    axes.plot(np.sqrt(ceiling), model.correlation, ".", markersize=3, alpha=0.4)
    axes.set_xlabel("noise ceiling (correlation)")
    axes.set_ylabel("correlation")
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    return figure

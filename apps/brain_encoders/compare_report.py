"""The table on the terminal and the HTML report of a comparison of feature spaces."""

from __future__ import annotations

from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from apps.brain_encoders.evaluation_report import region_bars
from apps.brain_encoders.maps import NONE, has_place, on_tile, preference_figure, write_preference_page
from apps.brain_encoders.prediction import brain_picture
from apps.brain_encoders.tables import list_files
from shared.metrics.encoding import region_summary
from shared.reports.html import Cell, Report

if TYPE_CHECKING:
    from apps.brain_encoders.compare import Comparison

__all__ = ["print_comparison", "write_comparison_report"]

COLUMNS = (
    *("space", "features", "published 2V2", "published pattern r", "2V2", "pattern r", "r", "R2"),
    *("noise-normalised", "above chance"),
)


def print_comparison(found: Comparison) -> None:
    """Scores of every space and joined model, and what comes from which space."""
    table = Table(title="published folds, and (all else) each picture in one fold", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for row in found.rows:
        table.add_row(*(_short(value) for value in asdict(row).values()))
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table)
    print(f"in the published folds {found.leaked:,} of {len(found.study.trials):,} presentations show a picture that was also fitted")
    for spaces, share in found.shared.items():
        print(f"held-out R2 of {spaces} alone: {share:.4f}")
    for what, values in (("stacking weight", found.answers.weights), ("share of banded R2", found.answers.shares)):
        if values is not None:
            each = ", ".join(f"{name} {value:.3f}" for name, value in zip(found.spaces, values.mean(axis=1), strict=True))
            print(f"mean {what}: {each}")
    predicted = int((found.preferred != NONE).sum())
    counts = ", ".join(f"{name} {int((found.preferred == index).sum()):,}" for index, name in enumerate(found.spaces))
    print(f"{predicted:,} of {found.study.units:,} units are predicted by some space; what explains most of them: {counts}")


def write_comparison_report(folder: Path, found: Comparison) -> Path:
    """Tables, scores by region, and on the brain what each space explains and which explains most."""
    study = found.study
    report = Report("Feature spaces compared", subtitle=f"{study.name}: {len(study.images):,} pictures, {study.units:,} units")
    report.section("Scores")
    rows = [[row.space, *astuple(row)[4:]] for row in found.rows]
    report.table([COLUMNS[0], *COLUMNS[4:]], rows, caption=_SCORES, best={"r": "highest", "R2": "highest"})
    report.table(
        list(COLUMNS[:4]),
        [list(astuple(row)[:4]) for row in found.rows if row.space in found.spaces],
        caption=_PUBLISHED.format(leaked=found.leaked, samples=len(study.trials)),
    )
    if found.shared:
        report.table(
            ["spaces", "mean R2"], [list(pair) for pair in found.shared.items()], caption="Held-out variance that exactly these share."
        )
    regions = {"all": np.ones(study.units, dtype=bool), **study.regions}
    if len(regions) > 1 or len(found.units) > 1:
        bars = region_bars({name: region_summary(units.r2, regions) for name, units in found.units.items()}, label="held-out R2")
        report.figure(bars, caption="R2 by region: mean, and the middle half of its units.")
    if found.answers.weights is not None or found.answers.shares is not None:
        report.section("What comes from which space")
        for values, caption in ((found.answers.weights, _WEIGHTS), (found.answers.shares, _SHARES)):
            if values is not None:
                means = [[name, *(float(row[mask].mean()) for row in values)] for name, mask in regions.items() if mask.any()]
                report.table(["region", *found.spaces], means, caption=caption)
        if found.answers.shares is not None:
            total = float(found.answers.shares.sum(axis=0).mean())
            report.text(
                f"The shares add up to {total:.4f}, the banded model's R2 about the means of the samples that were fitted; the table of "
                "scores has R2 about the mean of the samples that were predicted."
            )
    if len(found.spaces) > 1:
        _preferences(report, folder, found, regions)
    if has_place(study.space):
        report.section("What each explains")
        limit = max(float(np.percentile(np.stack([units.r2 for units in found.units.values()]), 98)), 0.01)
        report.gallery([(on_tile(brain_picture(units.r2, study.space, limit=limit)), name) for name, units in found.units.items()])
        report.text(f"Held-out R2 from {-limit:.2f} (blue) to {limit:.2f} (red).")
    list_files(report, {"spaces.csv": "every space", "units.csv": "every unit", "regions.csv": "every region", "metrics.json": "all"})
    path = folder / "report.html"
    report.write(path)
    return path


_SCORES = (
    "Each picture in one fold. pattern r is across units, the paper's Pearson; r is across presentations, the mean over units. "
    "Noise-normalised: max(r, 0) squared over the noise ceiling of a single presentation, at most 1. Above chance: units, by a permutation "
    "test over pictures, false discovery rate 5 %."
)
_PUBLISHED = "As published: successive folds of presentations, in which {leaked:,} of {samples:,} show a picture that was also fitted."
_WEIGHTS = "Weights of the stacked predictions, at least 0 and together 1: means over the region's units."
_SHARES = "Shares of the banded model's held-out R2 by the product measure, which may be below 0: means over the region's units."
_PREFERENCE = (
    "The space that explains most of each unit, by {by}, among units that some space alone predicts above chance (permutation test over "
    "pictures, false discovery rate 5 %; without permutations: R2 above 0)."
)


def _short(value: Cell) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _preferences(report: Report, folder: Path, found: Comparison, regions: dict[str, np.ndarray]) -> None:
    """Adds the map, its page and the table."""
    report.section("Which space explains most")
    by = "the product measure of the banded model" if found.answers.shares is not None else "R2 alone"
    report.figure(preference_figure(found.preferred, found.spaces, found.study.space), caption=_PREFERENCE.format(by=by))
    page = write_preference_page(folder / "map.html", found.preferred, found.spaces, found.study.space)
    if page is not None:
        report.text(f"The same map to turn around: [{page.name}]({page.name}).")
    rows: list[list[Cell]] = []
    for name, mask in regions.items():
        inside = found.preferred[mask]
        counts = [int((inside == index).sum()) for index in range(len(found.spaces))]
        rows.append([name, len(inside), sum(counts), *counts])
    columns = ["region", "units", "predicted", *(f"prefer {name}" for name in found.spaces)]
    report.table(columns, rows, caption="How many units prefer which space.")

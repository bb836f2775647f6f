"""Tables as CSV: a row for each unit, a row for each region; and the list of such files in a report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from apps.brain_encoders.space import Space
from shared.metrics.encoding import RegionScore
from shared.reports.html import Link, Report

__all__ = ["csv_text", "list_files", "region_table", "unit_table"]


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers with six decimals; NaN and None are left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def unit_table(space: Space, columns: Mapping[str, Any]) -> str:
    """Where each unit is, and its value of each column [V]."""
    rows = zip(space.names(), *columns.values(), strict=True)
    return csv_text([*space.columns, *columns], ([*name, *values] for name, *values in rows))


def region_table(scores: Iterable[tuple[str, str, Sequence[RegionScore]]]) -> str:
    """Model, which of its scores, and that score's summary for each region."""
    columns = ["model", "score", "region", "units", "scored", "mean", "median", "percentile_25", "percentile_75"]
    rows = (
        [model, kind, row.name, row.voxels, row.scored, row.mean, row.median, row.low, row.high]
        for model, kind, summary in scores
        for row in summary
    )
    return csv_text(columns, rows)


def list_files(report: Report, files: Mapping[str, str]) -> None:
    """File beside the report -> what it holds."""
    report.table(["file", "holds"], [[Link(text=name, path=name), what] for name, what in files.items()], caption="Everything as numbers.")


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return f"{value:.6f}" if np.isfinite(value) else ""
    return "" if value is None else value

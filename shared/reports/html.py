"""A report as one HTML file that a person can mail, print and keep: pictures inside, nothing fetched, no script but for 3-D scenes.

    report = Report("PraNet on Kvasir-SEG", subtitle="20 held-out frames", details={"Model": "runs/kvasir/model"})
    report.facts({"Mean Dice": interval})
    report.section("Failures first")
    report.gallery([(overlay, "frame 12: a flat polyp is missed")])
    report.write("runs/kvasir/report.html")

Every text is escaped: file names come from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any, Literal
from urllib.parse import quote

import jinja2
import numpy as np
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from shared.files import write_text
from shared.imaging import read_image
from shared.metrics.intervals import Interval
from shared.reports.style import to_png

__all__ = ["Cell", "Link", "Picture", "Report"]

Picture = Figure | NDArray[np.uint8] | bytes | Path | str
"""A Matplotlib figure, pixels (uint8 [H, W, 3] RGB or [H, W] grey), the content of an image file, or its path."""

MARKUP_RULES = ["paragraph", "list", "emphasis", "backticks", "link", "escape", "newline", "balance_pairs", "fragments_join"]
FIGURE_PIXELS, GALLERY_PIXELS = 1600, 1000
"""Longest side of an embedded picture; larger ones are reduced."""
JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link to a file beside the report, for tables and facts.

    Args:
        text: what is shown.
        path: relative to the report's folder, as the file system has it.

    Raises:
        ValueError: if ``path`` is absolute or leads out of the folder: the link would break as soon as the folder moves.
    """

    text: str
    path: PurePath | str

    def __post_init__(self) -> None:
        path = PurePath(self.path)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{self.path}: expected a path inside the report's folder, relative to it")

    @property
    def href(self) -> str:
        """The path, encoded for HTML attributes; a leading "./" keeps a colon in the name from being read as a protocol."""
        return "./" + quote(PurePath(self.path).as_posix())


Cell = str | int | float | Interval | Link | None
"""A number is aligned and rounded, an ``Interval`` shows its bounds; None and NaN show a dash."""


class Report:
    """Collects content from top to bottom, then writes it. Methods add to the page in the order of their calls.

    Args:
        title: the heading, and the title of the window.
        subtitle: one line under it.
        details: what was run on what, by label: model, data, settings, version.
        note: one line at the end of every report, such as what it must not be used for.
        created: the date shown; now unless given.
    """

    def __init__(
        self,
        title: str,
        *,
        subtitle: str = "",
        details: Mapping[str, Cell] | None = None,
        note: str = "For research use. Not a medical device; not for diagnosis.",
        created: datetime | None = None,
    ) -> None:
        self.title, self.subtitle, self.note = title, subtitle, note
        self.details = {label: _cell(value, 3) for label, value in (details or {}).items()}
        self.created = created or datetime.now().astimezone()
        self._blocks: list[dict[str, Any]] = []
        self._figures = self._tables = self._sections = 0

    def section(self, title: str) -> None:
        """Starts a section; it is listed in the table of contents."""
        self._sections += 1
        self._add("section", title=title, id=f"section-{self._sections}")

    def text(self, text: str) -> None:
        """Paragraphs, separated by empty lines, with **bold**, *italic*, `code`, lists and [links](beside/the/report.csv).

        Links to anywhere else, pictures, headings and HTML stay as they were typed.
        """
        self._add("text", html=Markup(_markup().render(text)))

    def facts(self, values: Mapping[str, Cell], *, decimals: int = 3) -> None:
        """Headline numbers as tiles, by label."""
        self._add("facts", facts=[(label, _cell(value, decimals)) for label, value in values.items()])

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        caption: str,
        best: Mapping[str, Literal["highest", "lowest"]] | None = None,
        decimals: int = 3,
    ) -> None:
        """A table; the first column names the rows.

        Args:
            columns: headings, with units.
            rows: as many cells each as there are columns.
            caption: a sentence above the table.
            best: columns in which the best number is set in bold, and which end is best.
            decimals: of floats.

        Raises:
            ValueError: if a row has another length, or ``best`` names no column.
        """
        wrong = [len(row) for row in rows if len(row) != len(columns)]
        if wrong:
            raise ValueError(f"a row has {wrong[0]} cells: expected {len(columns)}, one per column")
        unknown = set(best or {}) - set(columns)
        if unknown:
            raise ValueError(f"best names {sorted(unknown)}: expected some of {list(columns)}")
        marked = {(row, columns.index(name)) for name, end in (best or {}).items() for row in _best_rows(rows, columns.index(name), end)}
        self._tables += 1
        self._add(
            "table",
            columns=[(name, any(_is_number(row[index]) for row in rows)) for index, name in enumerate(columns)],
            rows=[[(_cell(cell, decimals), (y, x) in marked) for x, cell in enumerate(row)] for y, row in enumerate(rows)],
            caption=caption,
            number=self._tables,
        )

    def figure(self, picture: Picture, caption: str, *, alt: str | None = None) -> None:
        """A numbered figure across the page. ``alt`` tells those who cannot see it what it shows; the caption unless given.

        Raises:
            InputError: if a path or bytes are not a readable image.
            ValueError: if the array is not uint8 [H, W, 3] or [H, W].
        """
        self._figures += 1
        self._add("figure", image=_embed(picture, FIGURE_PIXELS), caption=caption, alt=alt or caption, number=self._figures)

    def gallery(self, pictures: Sequence[tuple[Picture, str]], *, legend: Mapping[str, tuple[int, int, int]] | None = None) -> None:
        """Small pictures with captions, each of which opens to the size of the window. Errors as ``figure``.

        Args:
            pictures: each with its caption, which is also its alternative text.
            legend: what the colours (RGB, 0 to 255) in the pictures mean.
        """
        items = [{"image": _embed(picture, GALLERY_PIXELS), "caption": caption} for picture, caption in pictures]
        self._add("gallery", items=items, legend=_legend(legend or {}), id=f"gallery-{len(self._blocks)}")

    def scene(
        self, meshes: Mapping[str, Any], still: Picture, caption: str, *, legend: Mapping[str, tuple[int, int, int]], alt: str | None = None
    ) -> None:
        """A 3-D view that turns by itself and by hand; without WebGL, without scripts and on paper, the still picture is there instead.

        Args:
            meshes: from ``shared.reports.surface.scene``.
            still: what the view shows at first. Other errors as ``figure``.
            caption, alt: as ``figure``; both count as a figure.
            legend: name and RGB of each surface, in the order of the meshes. Each can be hidden.

        Raises:
            ValueError: if there are not as many names as surfaces.
        """
        if len(legend) != len(meshes["surfaces"]):
            raise ValueError(f"{len(legend)} names for {len(meshes['surfaces'])} surfaces: expected one each")
        self._figures += 1
        # A "<" could end the element that the data stands in.
        data = Markup(json.dumps(meshes, allow_nan=False).replace("<", "\\u003c"))
        image = _embed(still, GALLERY_PIXELS)
        self._add("scene", data=data, image=image, caption=caption, alt=alt or caption, number=self._figures, legend=_legend(legend))

    def html(self) -> str:
        """The whole page."""
        folder = importlib.resources.files(__package__)
        style = (folder / "report.css").read_text("utf-8")
        script = (folder / "scene.js").read_text("utf-8") if any(block["kind"] == "scene" for block in self._blocks) else ""
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string((folder / "report.html.j2").read_text("utf-8")).render(
            report=self,
            blocks=self._blocks,
            sections=[block for block in self._blocks if block["kind"] == "section"],
            style=Markup(style),
            style_hash=_hash(style),
            script=Markup(script),
            script_hash=_hash(script),
        )

    def write(self, path: Path | str) -> None:
        """Writes the page, whole or not at all.

        Raises:
            UserError: if it cannot be written.
        """
        write_text(path, self.html())

    def _add(self, kind: str, **content: Any) -> None:
        self._blocks.append({"kind": kind, **content})


def _legend(colors: Mapping[str, tuple[int, int, int]]) -> list[tuple[str, str]]:
    return [(label, "#{:02x}{:02x}{:02x}".format(*color)) for label, color in colors.items()]


def _hash(content: str) -> str:
    """What the content security policy knows a style or script by."""
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _markup() -> MarkdownIt:
    """Markdown without HTML, pictures and headings, whose only links are to files beside the report."""
    markdown = MarkdownIt("zero").enable(MARKUP_RULES)
    markdown.validateLink = lambda url: not url.startswith(("/", "\\")) and ":" not in url.split("/")[0] and ".." not in url  # type: ignore[method-assign]
    return markdown


def _cell(value: Cell, decimals: int) -> Markup:
    if isinstance(value, Link):
        return Markup('<a href="{}">{}</a>').format(value.href, value.text)
    if isinstance(value, Interval) and value.low is not None and value.high is not None:
        bounds = f"{value.low:.{decimals}f} to {value.high:.{decimals}f}"
        return Markup('{} <span class="interval">({})</span>').format(_cell(value.estimate, decimals), bounds)
    if isinstance(value, Interval):
        return _cell(value.estimate, decimals)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Markup("–")
    if isinstance(value, float | np.floating):
        return escape(f"{value:.{decimals}f}")
    return escape(f"{value:,}" if _is_number(value) else value)


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float | Interval | np.number) and not isinstance(value, bool)


def _best_rows(rows: Sequence[Sequence[Cell]], column: int, end: Literal["highest", "lowest"]) -> list[int]:
    """The rows whose number is best; several if they are equal, none if there is nothing to choose from."""
    numbers = {}
    for index, row in enumerate(rows):
        cell = row[column]
        number = cell.estimate if isinstance(cell, Interval) else cell
        if isinstance(number, int | float | np.number) and not math.isnan(number):
            numbers[index] = float(number)
    if len(numbers) < 2:
        return []
    target = max(numbers.values()) if end == "highest" else min(numbers.values())
    return [index for index, number in numbers.items() if number == target]


def _embed(picture: Picture, longest: int) -> dict[str, Any]:
    """The picture as a data URL with its size. Files are decoded and encoded anew, so that no metadata (names, places) travels along."""
    pixels = _pixels(picture)
    image = Image.fromarray(pixels)
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    lossless, lossy = io.BytesIO(), io.BytesIO()
    image.save(lossless, format="PNG")
    kind, content = "png", lossless.getvalue()
    if not isinstance(picture, Figure):
        image.save(lossy, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
        if len(lossy.getvalue()) < len(content) / 2:
            kind, content = "jpeg", lossy.getvalue()
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"url": url, "width": image.width, "height": image.height}


def _pixels(picture: Picture) -> NDArray[np.uint8]:
    if isinstance(picture, Figure):
        return read_image(to_png(picture), name="figure")
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3) or not picture.size:
            raise ValueError(f"picture is {picture.dtype} {list(picture.shape)}: expected uint8 [H, W, 3] or [H, W]")
        return np.ascontiguousarray(picture)
    return read_image(picture, name=None if isinstance(picture, Path | str) else "picture")

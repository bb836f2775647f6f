"""The data verbs: list, fetch, verify."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.data.checksums import PROVENANCE, verify
from shared.data.config import FetchConfig, ListConfig, VerifyConfig
from shared.data.fetch import fetch
from shared.data.manifest import list_manifests, load
from shared.errors import UserError

__all__ = ["fetch_data", "list_data", "verify_data"]


def list_data(config: ListConfig) -> None:
    """Prints a table of the data sets.

    Raises:
        UserError: if there is none for this app.
    """
    manifests = list_manifests(config.app)
    if not manifests:
        apps = sorted({app for manifest in list_manifests() for app in manifest.apps})
        raise UserError(f"There are no data sets for the app {config.app!r}. Apps with data sets: {', '.join(apps)}.")
    table = Table(caption="Fetch one with `data fetch NAME`; its terms are shown then.")
    table.add_column("name", no_wrap=True)
    table.add_column("data set")
    table.add_column("pairs", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("download")
    table.add_column("here", justify="center")
    for manifest in manifests:
        by_hand = any(archive.how == "manual" for archive in manifest.archives)
        table.add_row(
            manifest.name,
            f"{escape(manifest.title)}\n[dim]{escape(manifest.modality)}, {escape(manifest.task)}[/dim]",
            f"{manifest.count:,}" if manifest.unit == "pairs" else f"{manifest.count:,} {manifest.unit}",
            "?" if manifest.size_mb is None else f"{manifest.size_mb:,.0f}",
            "by hand" if by_hand else "automatic",
            "yes" if (config.root / manifest.name / PROVENANCE).is_file() else "",
        )
    Console().print(table)


def fetch_data(config: FetchConfig) -> None:
    """Fetches a data set and says where it is and on which terms.

    Raises:
        UserError: as ``shared.data.fetch.fetch``.
    """
    manifest = load(config.name)
    console = Console(highlight=False)
    for label, text in (("", manifest.title), ("terms: ", manifest.terms), ("cite:  ", manifest.citation)):
        console.print(f"{label}{text}", markup=False)
    was_there = (config.root / manifest.name / PROVENANCE).is_file()
    folder = fetch(config.name, root=config.root, archive=config.archive, mirror=config.mirror)
    if was_there:
        console.print(
            f"{folder}: already there. Check it with `data verify {config.name}`; to fetch it anew, delete the folder.", markup=False
        )
    else:
        console.print(f"{folder}: {manifest.count:,} pairs of image and mask. Where they came from: {folder / PROVENANCE}", markup=False)


def verify_data(config: VerifyConfig) -> None:
    """Checks that a fetched data set is whole and unchanged, and says so.

    Raises:
        UserError: if it is not there, or files are missing, changed or extra; names them.
    """
    manifest = load(config.name)
    found = verify(manifest.name, config.root)
    if found.ok:
        Console(highlight=False).print(f"{found.folder}: all {found.listed:,} files are there and unchanged.", markup=False)
        return
    lines = [f"{found.folder}: is not as it was fetched ({found.listed:,} files are listed)."]
    for label, paths in (("missing", found.missing), ("changed", found.changed), ("extra", found.extra)):
        if paths:
            lines.append(f"  {label} {len(paths):,}: {', '.join(paths[:10])}{', ...' if len(paths) > 10 else ''}")
    lines.append(f"Move the folder away and fetch it again: data fetch {config.name} --root {config.root}")
    raise UserError("\n".join(lines))

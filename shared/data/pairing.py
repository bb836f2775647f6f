"""Finds the image-mask pairs among the unpacked files of a data set and brings them into the layout that the apps read."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from shared.data.manifest import Layout, Manifest
from shared.errors import UserError

__all__ = ["Placed", "place"]

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What ``place`` did."""

    pairs: int
    unpaired: list[str]
    """Images without a mask and masks without an image, as paths in the source; they were left out."""


def place(manifest: Manifest, source: Path, folder: Path, *, move: bool) -> Placed:
    """Brings the pairs under ``source`` into ``folder/images`` and ``folder/masks``, or those of ``folder/<split>``.

    An image and its mask get the same stem; the files themselves are not changed.

    Args:
        manifest: says where the pairs are, and how many.
        source: the unpacked archive, or a folder that a person unpacked.
        folder: where they go.
        move: take the files out of ``source`` instead of copying them.

    Raises:
        UserError: if there are no pairs, two files have one key, or the number of pairs is not the manifest's.
    """
    # The source's own name counts, because people pass Kvasir-SEG/ as often as the folder that holds it.
    files = {f"{source.name}/{path.relative_to(source).as_posix()}": path for path in sorted(source.rglob("*")) if path.is_file()}
    for layout in manifest.layouts:
        images = _match(layout.images, files, manifest)
        masks = _match(layout.masks, files, manifest)
        if common := sorted(images.keys() & masks.keys()):
            break
    else:
        raise UserError(
            f"{manifest.name}: no pairs among {len(files):,} files ({_examples(files)}). Expected {_wanted(manifest.layouts)}. "
            "Is it the right archive? If the publisher has changed its layout, mend `layouts` in the manifest."
        )
    _check_counts(manifest, [split for split, _ in common])
    for split, stem in common:
        for kind, found in (("images", images), ("masks", masks)):
            path = files[found[split, stem]]
            target = folder / split / kind / f"{stem}{path.suffix.lower()}"
            target.parent.mkdir(parents=True, exist_ok=True)
            if move:
                os.replace(path, target)
            else:
                shutil.copyfile(path, target)
    odd = [images[key] for key in images.keys() - masks.keys()] + [masks[key] for key in masks.keys() - images.keys()]
    return Placed(pairs=len(common), unpaired=sorted(odd))


def _match(pattern: str, files: dict[str, Path], manifest: Manifest) -> dict[tuple[str, str], str]:
    """The files that fit ``pattern``: (split, stem) -> path; split is "" where the pattern has none."""
    expression = _expression(pattern)
    found: dict[tuple[str, str], str] = {}
    for name in files:
        match = expression.fullmatch(name)
        if match is None or Path(name).suffix.lower() not in _SUFFIXES:
            continue
        groups = match.groupdict()
        # A folder that the manifest does not name would otherwise go unnoticed into the data set.
        split = (
            next((known for known in manifest.splits if known.casefold() == groups["split"].casefold()), None) if "split" in groups else ""
        )
        if split is None:
            continue
        key = (split, groups["stem"])
        if key in found:
            raise UserError(f"{manifest.name}: {found[key]} and {name} would both be called {groups['stem']!r}. Remove one and try again.")
        found[key] = name
    return found


def _expression(pattern: str) -> re.Pattern[str]:
    parts = {"**/": r"(?:[^/]+/)*", "*": r"[^/]*", "{stem}": r"(?P<stem>[^/.][^/]*)", "{split}": r"(?P<split>[^/]+)"}
    pieces = re.split(r"(\*\*/|\*|\{stem\}|\{split\})", pattern)
    return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces), re.IGNORECASE)


def _check_counts(manifest: Manifest, splits: list[str]) -> None:
    expected = manifest.splits or {"": manifest.count}
    for split, count in expected.items():
        if (found := splits.count(split)) != count:
            where = f"{manifest.name}/{split}" if split else manifest.name
            raise UserError(
                f"{where}: {found:,} image-mask pairs, the manifest expects {count:,}. It is another release, or incomplete. "
                "Get the one that the manifest describes; or, to use this one as it is, put its images and masks into folders called "
                "images and masks and give that folder to the app directly."
            )


def _examples(files: dict[str, Path]) -> str:
    shown = list(files)[:3]
    return ", ".join(shown) + (", ..." if len(files) > len(shown) else "")


def _wanted(layouts: list[Layout]) -> str:
    return " or ".join(f"{layout.images} with {layout.masks}" for layout in layouts)

"""Finds the image-mask pairs among the unpacked files of a data set and brings them into the layout that the apps read."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.data.manifest import Layout, Manifest
from shared.errors import UserError
from shared.imaging.sources import suffix_of

__all__ = ["Placed", "place"]

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".mha", ".nii", ".nii.gz", ".nrrd", ".png", ".tif", ".tiff"})


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What ``place`` did."""

    pairs: int
    unpaired: list[str]
    """Images without a mask, masks without an image, and incomplete examinations, as paths in the source; they were left out."""


def place(manifest: Manifest, source: Path, folder: Path, *, move: bool) -> Placed:
    """Brings the pairs under ``source`` into ``folder/images`` and ``folder/masks``, or those of ``folder/<split>``.

    An image and its mask get the same stem; the files themselves are not changed. An examination, which has a file for each sequence,
    becomes a folder by itself, ``folder/<stem>``, in which all its files and its mask (``<stem>_seg``) lie.

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
        images = _match(layout.images, files, manifest, layout.sequences)
        masks = {key: found[""] for key, found in _match(layout.masks, files, manifest).items()}
        whole = {key for key, found in images.items() if len(found) == max(1, len(layout.sequences))}
        if common := sorted(whole & masks.keys()):
            break
    else:
        raise UserError(
            f"{manifest.name}: no pairs among {len(files):,} files ({_examples(files)}). Expected {_wanted(manifest.layouts)}. "
            "Is it the right archive? If the publisher has changed its layout, mend `layouts` in the manifest."
        )
    _check_counts(manifest, [split for split, _ in common])
    for split, stem in common:
        parts = images[split, stem]
        if layout.sequences:
            targets = {f"{stem}/{stem}_{sequence}": name for sequence, name in parts.items()} | {f"{stem}/{stem}_seg": masks[split, stem]}
        else:
            targets = {f"images/{stem}": parts[""], f"masks/{stem}": masks[split, stem]}
        for target, name in targets.items():
            _bring(files[name], folder / split / f"{target}{suffix_of(files[name], _SUFFIXES).lower()}", move=move)
    used = set(common)
    odd = [name for key, found in images.items() if key not in used for name in found.values()]
    odd += [name for key, name in masks.items() if key not in used]
    return Placed(pairs=len(common), unpaired=sorted(odd))


def _bring(path: Path, target: Path, *, move: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if move:
        os.replace(path, target)
    else:
        shutil.copyfile(path, target)


def _match(
    pattern: str, files: dict[str, Path], manifest: Manifest, sequences: Sequence[str] = ()
) -> dict[tuple[str, str], dict[str, str]]:
    """The files that fit ``pattern``: (split, stem) -> sequence -> path; split and sequence are "" where the pattern has none."""
    expression = _expression(pattern, sequences)
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in files:
        match = expression.fullmatch(name)
        if match is None or not suffix_of(Path(name), _SUFFIXES):
            continue
        groups = match.groupdict()
        # A folder that the manifest does not name would otherwise go unnoticed into the data set.
        split = (
            next((known for known in manifest.splits if known.casefold() == groups["split"].casefold()), None) if "split" in groups else ""
        )
        if split is None:
            continue
        parts, sequence = found[split, groups["stem"]], groups.get("sequence", "").lower()
        if sequence in parts:
            raise UserError(
                f"{manifest.name}: {parts[sequence]} and {name} would both be called {groups['stem']!r}. Remove one and try again."
            )
        parts[sequence] = name
    return dict(found)


def _expression(pattern: str, sequences: Sequence[str]) -> re.Pattern[str]:
    parts = {
        "**/": r"(?:[^/]+/)*",
        "*": r"[^/]*",
        "{stem}": r"(?P<stem>[^/.][^/]*)",
        "{split}": r"(?P<split>[^/]+)",
        "{sequence}": rf"(?P<sequence>{'|'.join(map(re.escape, sequences))})",
    }
    pieces = re.split(r"(\*\*/|\*|\{\w+\})", pattern)
    return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces), re.IGNORECASE)


def _check_counts(manifest: Manifest, splits: list[str]) -> None:
    expected = manifest.splits or {"": manifest.count}
    for split, count in expected.items():
        if (found := splits.count(split)) != count:
            where = f"{manifest.name}/{split}" if split else manifest.name
            raise UserError(
                f"{where}: {found:,} image-mask pairs, the manifest expects {count:,}. It is another release, or incomplete. "
                "Get the one that the manifest describes; or, to use this one as it is, put its images and masks into folders called "
                "images and masks (of examinations with several files, each into a folder) and give that folder to the app directly."
            )


def _examples(files: dict[str, Path]) -> str:
    shown = list(files)[:3]
    return ", ".join(shown) + (", ..." if len(files) > len(shown) else "")


def _wanted(layouts: list[Layout]) -> str:
    return " or ".join(f"{layout.images} with {layout.masks}" for layout in layouts)

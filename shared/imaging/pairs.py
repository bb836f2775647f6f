"""Labelled data in two folders: images/ and masks/, paired by stem."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from shared.errors import UserError
from shared.imaging.formats import IMAGE_SUFFIXES
from shared.imaging.sources import files_below, suffix_of

__all__ = ["Dropped", "Pair", "Pairs", "find_pairs"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and its mask."""

    stem: str
    """Path below images/ without suffix, "/" between folders."""
    image: Path
    mask: Path


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A file that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs, sorted by stem, and what was left out, sorted by path."""

    pairs: tuple[Pair, ...]
    dropped: tuple[Dropped, ...]


def find_pairs(folder: Path, *, images: str = "images", masks: str = "masks") -> Pairs:
    """Pairs ``folder/images/a.jpg`` with ``folder/masks/a.png``: by stem, sub-folders included, never by order.

    An image without a mask, a mask without an image, and every file of a stem that occurs twice on one side are dropped, with the reason.

    Raises:
        UserError: if a folder is missing or has no images, or not one pair is found.
    """
    folder = Path(folder)
    sides = {name: _by_stem(folder / name) for name in (images, masks)}
    pairs, dropped = [], []
    for stem in sorted(sides[images].keys() | sides[masks].keys()):
        found = {name: sides[name].get(stem, []) for name in (images, masks)}
        if all(len(files) == 1 for files in found.values()):
            pairs.append(Pair(stem=stem, image=found[images][0], mask=found[masks][0]))
        else:
            reason = _reason(found, stem)
            dropped += [Dropped(path=path, reason=reason) for files in found.values() for path in files]
    if not pairs:
        example, other = (next(iter(sides[name].values()))[0].name for name in (images, masks))
        raise UserError(
            f"{folder}: no image has a mask of the same stem (first image {example}, first mask {other}). "
            f"Name them alike: {images}/frame_1.jpg and {masks}/frame_1.png."
        )
    return Pairs(pairs=tuple(pairs), dropped=tuple(sorted(dropped, key=lambda item: item.path.parts)))


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder. Labelled data are expected as a folder of images and one of masks, with equal stems."
        )
    files: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(folder, suffixes=IMAGE_SUFFIXES):
        below = path.relative_to(folder).as_posix()
        files[below.removesuffix(suffix_of(path, IMAGE_SUFFIXES))].append(path)
    if not files:
        raise UserError(
            f"{folder}: this folder has no images ({', '.join(sorted(IMAGE_SUFFIXES))} were looked for). Check that it is the right one."
        )
    return dict(files)


def _reason(found: dict[str, list[Path]], stem: str) -> str:
    for name, files in found.items():
        if len(files) > 1:
            return f"{len(files)} files in {name} share the stem {stem}: {', '.join(path.name for path in files)}"
    missing = next(name for name, files in found.items() if not files)
    return f"no file in {missing} has the stem {stem}"

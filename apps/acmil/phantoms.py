"""Phantoms to train on: whole slides with the bags of their tiles, and bags with known witnesses."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.progress import track

from apps.acmil.bags import BagFile, write_bag
from apps.acmil.config import PhantomConfig
from apps.acmil.config_pipeline import EncoderConfig, TilingConfig
from apps.acmil.features import Encoder, load_encoder, slide_to_bag
from apps.acmil.witnesses import write_witness_bags
from shared.errors import InputError, UserError
from shared.files import atomic_folder
from shared.imaging.slides import find_slides
from shared.phantoms.slide import write_slides

__all__ = ["bags_of_slides", "make_phantoms", "write_labelled_slides"]

SIDE_PX = 1536
"""Of level 0; small, because it is a demonstration."""
_SMALLEST_SIDE_PX = 640
"""From here on every phantom has a piece of tissue larger than ``TissueConfig.min_area_mm2``."""


def make_phantoms(config: PhantomConfig) -> None:
    """Writes labelled phantoms into a new folder."""
    if config.output.exists() and any(config.output.iterdir()):
        raise UserError(f"{config.output}: is not empty. Name a new folder, so that nothing is lost.")
    if config.kind == "slides" and config.side < _SMALLEST_SIDE_PX:
        raise UserError(f"--side {config.side}: there would be less tissue than is looked for. Take {_SMALLEST_SIDE_PX} or more.")
    if config.kind == "bags":
        with atomic_folder(config.output) as folder:
            write_witness_bags(folder, count=config.count, seed=config.seed)
    else:
        options = {"tiling": config.tiling, "encoder": config.encoder, "side": config.side}
        write_labelled_slides(config.output, count=config.count, seed=config.seed, **options)
    what = "bags with known witnesses" if config.kind == "bags" else "phantom slides and the bags of their tiles"
    print(f"{config.output}: {config.count} {what}. Train: apps.acmil train --data.root {config.output}")


def write_labelled_slides(
    folder: Path, *, count: int, seed: int, tiling: TilingConfig, encoder: EncoderConfig, side: int = SIDE_PX
) -> None:
    """A new folder: slides/, labels.csv, truth/ with the tumours' outlines, and bags/ with the features of the slides' tiles."""
    with atomic_folder(folder) as being_made:
        write_slides(being_made, count=count, seed=seed, width=side, height=side)
    # Afterwards, because a bag notes where its slide is.
    bags_of_slides(folder / "slides", folder / "bags", tiling=tiling, encoder=encoder)


def bags_of_slides(
    slides: Path, bags: Path, *, tiling: TilingConfig, encoder: EncoderConfig, wanted: Collection[str] | None = None
) -> list[BagFile]:
    """The bags of the slides in a folder, made in ``bags`` where they are not there yet; says which slides cannot be used.

    Args:
        slides: searched with its sub-folders.
        bags: where to.
        tiling, encoder: how they are made.
        wanted: names of the slides that are asked for; all by default.

    Raises:
        UserError: if not one slide could be used, or the encoder cannot be had.
    """
    maker: Encoder | None = None
    found = []
    files = [file for file in find_slides([slides]) if wanted is None or Path(file.stem).name in wanted]
    for file in track(files, "features", console=Console(stderr=True), transient=True):
        one = BagFile(slide=Path(file.stem).name, path=bags / f"{Path(file.stem).name}.h5")
        if not one.path.exists():
            maker = maker or load_encoder(encoder)
            try:
                write_bag(one.path, slide_to_bag(file.path, tiling, maker))
            except InputError as error:
                print(f"left out: {error}")
                continue
        found.append(one)
    if not found:
        raise UserError(f"{slides}: not one slide could be used.")
    return found

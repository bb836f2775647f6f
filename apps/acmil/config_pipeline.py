"""The settings from slides to bags: the verbs `tile` and `features`, and what a bundle keeps of them. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from shared.inference.config import ComputeConfig

__all__ = ["EncoderConfig", "FeaturesConfig", "SlidesConfig", "TileConfig", "TilingConfig", "TissueConfig"]


@dataclass(kw_only=True)
class TissueConfig:
    """How tissue is told from glass."""

    preset: Literal["micrometres", "clam", "clam_bwh_biopsy", "clam_bwh_resection", "clam_tcga"] = "micrometres"
    """micrometres: the values below, the same for every scanner. The others are CLAM's own, which count in level-0 pixels: they find no
    tissue in small biopsies."""
    mpp: PositiveFloat = 8.0
    """Micrometres per pixel of the overview in which it is sought."""
    saturation: NonNegativeInt = 15
    """Of 255: what is more colourful is tissue."""
    otsu: bool = False
    """Choose that value for each slide by Otsu's method. It finds tissue in blank slides too."""
    median_px: PositiveInt = 7
    """Side of the median filter, odd."""
    close_px: NonNegativeInt = 4
    """Gaps up to this are closed."""
    min_area_mm2: NonNegativeFloat = 0.02
    """Smaller pieces are dropped."""
    min_hole_mm2: NonNegativeFloat = 0.02
    """Smaller holes are filled."""
    ink: bool = True
    """Leave out blue, green, yellow and black pen marks. Red ink looks like tissue and stays."""


@dataclass(kw_only=True)
class TilingConfig:
    """How slides are cut into tiles."""

    tile_px: PositiveInt = 256
    """Side of a tile, in pixels of the resolution below."""
    mpp: PositiveFloat = 0.5
    """Micrometres per pixel of a tile: 0.5 is called 20x, 0.25 is 40x. A level within 1 % is read as it is."""
    overlap_px: NonNegativeInt = 0
    """By how much neighbours overlap."""
    rule: Literal["share", "four_pt", "four_pt_hard", "center", "basic"] = "share"
    """share: one grid over the slide, and a tile is kept from ``min_tissue`` on. The others are CLAM's: a grid for each piece of tissue,
    and a tile is kept if one of four points, all four, its centre or its corner lies inside."""
    min_tissue: Fraction = 0.25
    """share: which part of a tile must be tissue."""
    max_unreadable: Fraction = 0.02
    """Tiles in damaged parts of a file are left out and counted; if they are more than this part, the slide is refused."""
    tissue: TissueConfig = field(default_factory=TissueConfig)


@dataclass(kw_only=True)
class EncoderConfig:
    """What makes features of tiles."""

    name: str = "texture"
    """texture (colour and texture statistics: no weights, for demonstrations), a foundation model of encoders.yaml such as uni_v1,
    timm/MODEL, torchvision/MODEL, or file (a TorchScript or torch.export program in ``weights``)."""
    weights: Path | None = None
    """The file with its weights (.safetensors, .pth, .bin), or the program itself (.pt, .pt2)."""
    pretrained: bool = False
    """Download the weights instead, from the Hugging Face hub or torchvision; gated models need `hf auth login` first."""
    input_px: PositiveInt | None = None
    """timm, torchvision, file: side of its input; by default the model's own, for a file the tile's."""
    mean: tuple[float, float, float] | None = None
    """timm, torchvision, file: subtracted from RGB in 0 to 1; by default the model's own, for a file ImageNet's."""
    std: tuple[float, float, float] | None = None
    """As mean: what it is then divided by."""


@dataclass(kw_only=True)
class SlidesConfig(ComputeConfig):
    """Which slides, and where to."""

    input: list[Path]
    """Slides, folders (searched with their sub-folders) or quoted globs."""
    output: Path
    """A folder for the results. If it holds some already, only the missing ones are made."""
    mpp: PositiveFloat | None = None
    """Micrometres per pixel of level 0, for slides that do not state it, or state it wrongly."""
    mpp_table: Path | None = None
    """The same for each slide: a CSV with the columns slide (or wsi) and mpp."""
    tiling: TilingConfig = field(default_factory=TilingConfig)
    engine: Literal["local", "ray"] = "local"
    """ray spreads the slides over the machines of a Ray cluster; all must see the same files."""
    workers: NonNegativeInt = 2
    """local: threads that read tiles; ray: processes at work at once."""


@dataclass(kw_only=True)
class TileConfig(SlidesConfig):
    """Find the tissue of slides and cut it into tiles: coordinates (HDF5), outlines for QuPath (GeoJSON) and a picture to check them."""

    @property
    def model(self) -> None:
        """There is none."""


@dataclass(kw_only=True)
class FeaturesConfig(SlidesConfig):
    """Make bags of features of slides: HDF5 in the layout of CLAM and TRIDENT."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    tiles: Path | None = None
    """Take the tiles from this folder, made by `apps.acmil tile`, CLAM or TRIDENT, instead of seeking tissue."""
    batch_size: PositiveInt = 64
    """Tiles computed together."""

    @property
    def model(self) -> EncoderConfig:
        """What ``FeatureExtractor.load`` takes first."""
        return self.encoder

"""From a bundle to predictions: the Predictor, and the verbs that call it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from apps.acmil.bags import BAG_SUFFIXES, Bag, BagFile, read_bag
from apps.acmil.config import ACMILInferConfig, ACMILServeConfig, ModelConfig
from apps.acmil.config_pipeline import EncoderConfig, TilingConfig, TissueConfig
from apps.acmil.data import check_encoder
from apps.acmil.features import Encoder, load_encoder, slide_to_bag
from apps.acmil.networks import NAMES, build
from apps.acmil.prediction import TILE_PX, SlidePrediction, top_tiles
from apps.acmil.report import write_inference_report
from shared.bundle import Bundle, load_bundle, load_weights, save_bundle
from shared.config import plain
from shared.devices import autocast, resolve_device, resolve_precision
from shared.errors import InputError, UserError
from shared.imaging.formats import HEAD_BYTES, describe
from shared.imaging.limits import opened
from shared.imaging.slides import SLIDE_SUFFIXES, find_slides, open_slide
from shared.inference.protocols import Sample
from shared.inference.run import local_engine, run

__all__ = ["ACMILPredictor", "Settings", "SlideInput", "SlidePrediction", "infer", "read_input", "serve"]

APP = "acmil"
OVERVIEW_PX = 1024
"""Longest side of the slide's picture that a prediction keeps."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything besides the weights that decides a prediction; the bundle's config.yaml."""

    model: ModelConfig = field(default_factory=ModelConfig)
    classes: tuple[str, ...]
    """Names, in the order of the network's outputs."""
    features: int
    """Width of the tile features."""
    encoder: str = ""
    """What made them, as bags say it; empty: not known, and bags of any encoder of that width are taken."""
    tiling: TilingConfig | None = None
    """How slides are cut; None if the model was made from bags of which that is not known, and then it reads bags only."""
    encoding: EncoderConfig | None = None
    """What makes features of tiles; None as for ``tiling``."""

    def build(self) -> Any:
        """The network, with fresh weights. Raises UserError if the settings contradict each other."""
        return build(self.model, features=self.features, classes=len(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """As the bundle's config.yaml keeps it: nothing that points outside the bundle."""
        model = dataclasses.replace(self.model, first_stage=None)
        encoding = None if self.encoding is None else dataclasses.replace(self.encoding, weights=None)
        return plain(dataclasses.replace(self, model=model, encoding=encoding))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: Path) -> Settings:
        """The opposite of ``to_dict``; raises UserError, naming ``source``, if it is not one."""
        try:
            tiling, encoding = values["tiling"], values["encoding"]
            nested = {
                "model": ModelConfig(**values["model"]),
                "classes": tuple(values["classes"]),
                "tiling": None if tiling is None else TilingConfig(**{**tiling, "tissue": TissueConfig(**tiling["tissue"])}),
                "encoding": None if encoding is None else EncoderConfig(**encoding),
            }
            return cls(**{**values, **nested})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source / 'config.yaml'}: does not describe a network of this app ({error}). Copy the bundle again."
            ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideInput:
    """What a prediction is made of: a bag, or a slide of which one is to be made."""

    name: str
    """For messages."""
    path: Path
    bag: Bag | None = None
    keeper: Any = None
    """Holds the temporary folder of an upload until the prediction is made."""


class ACMILPredictor:
    """Classifies whole slides, or bags of their features, and says which tiles it looked at.

    Args:
        model: the network, in any mode.
        settings: what it was trained with.
        facts: provenance of the weights, JSON-ready.
        card: the model card, Markdown.
        device, precision: as on the command line.
        top: tiles of each branch that a prediction shows.
        mpp: micrometres per level-0 pixel, for slides that do not state it.
        encoder_weights: the encoder's file, which a bundle does not hold.
    """

    suffixes: ClassVar[frozenset[str]] = frozenset(SLIDE_SUFFIXES) | BAG_SUFFIXES

    def __init__(
        self,
        model: torch.nn.Module,
        settings: Settings,
        *,
        facts: Mapping[str, Any] | None = None,
        card: str | None = None,
        device: str = "cpu",
        precision: str = "auto",
        top: int = 10,
        mpp: float | None = None,
        encoder_weights: Path | None = None,
    ) -> None:
        self.settings = settings
        self.facts = dict(facts or {})
        self.card = card or model_card(settings, self.facts)
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.top, self.mpp, self.encoder_weights = top, mpp, encoder_weights
        self.network = model.eval().requires_grad_(False).to(self.device)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: str = "auto",
        precision: str = "auto",
        top: int = 10,
        mpp: float | None = None,
        encoder_weights: Path | None = None,
    ) -> Self:
        """The predictor of a bundle; arguments as the class. Raises UserError if the bundle is incomplete or another app's."""
        bundle = load_bundle(folder, app=APP)
        settings = Settings.from_dict(bundle.config, source=Path(folder))
        model = settings.build()
        load_weights(model, bundle.state, source=folder)
        known = {"facts": bundle.provenance, "card": bundle.card, "top": top, "mpp": mpp, "encoder_weights": encoder_weights}
        return cls(model, settings, device=device, precision=precision, **known)

    def save_bundle(self, folder: Path | str) -> Path:
        """Writes the model folder. Raises UserError if it cannot be written."""
        state = self.network.state_dict()
        return save_bundle(folder, Bundle(app=APP, config=self.settings.to_dict(), state=state, card=self.card, provenance=self.facts))

    @property
    def about(self) -> dict[str, Any]:
        """Settings, precision and provenance, JSON-ready."""
        computing = {"device": str(self.device), "precision": self.precision, "top": self.top, "mpp": self.mpp}
        name, version = NAMES[self.settings.model.name], importlib.metadata.version("fovea")
        return {"name": name, "version": version, "app": APP, "settings": self.settings.to_dict(), **computing, "provenance": self.facts}

    @cached_property
    def encoder(self) -> Encoder | None:
        """What makes features of tiles, loaded when the first slide comes; None if the bundle does not say which.

        Raises:
            UserError: if its weights are missing.
        """
        if self.settings.encoding is None or self.settings.tiling is None:
            return None
        config = dataclasses.replace(self.settings.encoding, weights=self.encoder_weights)
        return load_encoder(config, device=str(self.device), precision=self.precision)

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        """The one sample of a slide or a bag; raises InputError, naming ``name``, if it is neither."""
        if isinstance(source, bytes):
            keeper = tempfile.TemporaryDirectory(prefix="fovea-acmil-")
            path = Path(keeper.name) / Path(name).name
            path.write_bytes(source)
        else:
            keeper, path = None, source
        yield Sample(id="", read=lambda: read_input(path, name=name, mpp=self.mpp, keeper=keeper))

    def predict(self, source: Path | str | Bag | SlideInput) -> SlidePrediction:
        """The prediction for one slide: a file of it, a bag, or its file. Raises InputError if the file is neither."""
        if isinstance(source, Bag):
            source = SlideInput(name=source.slide, path=Path(source.slide), bag=source)
        elif not isinstance(source, SlideInput):
            source = read_input(Path(source), name=str(source), mpp=self.mpp)
        return self.predict_batch([source])[0]

    def predict_batch(self, sources: Sequence[SlideInput]) -> list[SlidePrediction]:
        """One prediction for each slide, each on its own: bags differ in size."""
        return [self._predict(source) for source in sources]

    @torch.inference_mode()
    def answer(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities of the slide [C] and of each branch [J, C], and the branches' attention [K, N], of features [N, D]."""
        bag = torch.from_numpy(np.ascontiguousarray(features)).to(self.device)
        with autocast(self.precision, self.device):
            answer = self.network(bag)
        slide, branches = (torch.softmax(logits.float(), -1).cpu().numpy() for logits in (answer.logits, answer.branch_logits))
        return slide, branches, answer.attention.float().cpu().numpy()

    def bag_of(self, source: SlideInput) -> Bag:
        """The bag of a slide, made if need be.

        Raises:
            InputError: if no bag can be made of the slide, this model does not know how, or the bag is of another encoder.
        """
        bag = source.bag
        if bag is None:
            encoder, tiling = self.encoder, self.settings.tiling
            if encoder is None or tiling is None:
                raise InputError(
                    f"{source.name}: is a slide, and this model was made from bags of features{_named(self.settings.encoder)}: it does not "
                    "know how slides were cut for them. Make a bag of it with `apps.acmil features`."
                )
            try:
                bag = slide_to_bag(source.path, tiling, encoder, mpp=self.mpp)
            except InputError as error:
                raise InputError(str(error).replace(str(source.path), source.name)) from error
        check_encoder(bag, width=self.settings.features, encoder=self.settings.encoder, name=source.name)
        return bag

    def _predict(self, source: SlideInput) -> SlidePrediction:
        bag = self.bag_of(source)
        slide_path = source.path
        if source.bag is not None:
            # Where a bag says that its slide lies; not where one that was sent by somebody else says so.
            known = bag.slide_path is not None and source.keeper is None and bag.slide_path.is_file()
            slide_path = bag.slide_path if known else None
        probability, branch_probability, attention = self.answer(bag.features)
        overview, tiles = _pictures(slide_path, bag, attention, top=self.top, mpp=self.mpp)
        return SlidePrediction(
            bag=dataclasses.replace(bag, features=bag.features[:, :0].copy()),  # the places stay, the large part goes
            classes=self.settings.classes,
            probability=probability,
            branch_probability=branch_probability,
            attention=attention,
            overview=overview,
            tiles=tiles,
            slide_path=slide_path if overview is not None and source.keeper is None else None,
            top=self.top,
        )


def infer(config: ACMILInferConfig) -> int:
    """Classifies every input and writes the results; the exit code is 3 if some inputs could not be used."""
    options = {"top": config.top, "mpp": config.mpp, "encoder_weights": config.encoder_weights}
    predictor = ACMILPredictor.load(config.model, device=config.device, precision=config.precision, **options)
    maker = {"model": predictor.facts, "settings": predictor.settings.to_dict(), "top": config.top, "mpp": config.mpp}
    if config.engine == "ray":
        from shared.scaling.infer import ray_engine

        engine = ray_engine(ACMILPredictor, config, {"device": config.device, "precision": config.precision, **options})
    else:
        engine = local_engine(predictor, output=config.output, batch_size=config.batch_size, workers=config.workers)
    outcome = run(config, suffixes=predictor.suffixes, engine=engine, maker=maker, find=find_slides)
    report = write_inference_report(outcome, predictor.about)
    counts = {name: sum(row["prediction"] == name for row in outcome.rows) for name in predictor.settings.classes}
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{len(outcome.rows)} slides: {said}. To look at: {report}")
    if outcome.failures:
        print(f"{len(outcome.failures)} inputs could not be used; {config.output / 'failures.csv'} says why.")
    return outcome.exit_code


def serve(config: ACMILServeConfig) -> None:
    """Answers over HTTP until it is told to stop; several replicas under Ray Serve."""
    if config.replicas > 1:
        from shared.scaling.serve import serve as serve_predictor
    else:
        from shared.serving.server import serve as serve_predictor

    def load() -> ACMILPredictor:
        options = {"mpp": config.mpp, "encoder_weights": config.encoder_weights}
        return ACMILPredictor.load(config.model, device=config.device, precision=config.precision, **options)

    serve_predictor(load, config, media_types=SlidePrediction.media_types)


def model_card(settings: Settings, facts: Mapping[str, Any]) -> str:
    """The card that goes into a bundle: what it is, where it comes from, and what it is not for."""
    tiling = settings.tiling
    tiles = "not known" if tiling is None else f"{tiling.tile_px} px at {tiling.mpp:g} micrometres per pixel"
    lines = [
        f"# {NAMES[settings.model.name]}: whole slides as {', '.join(settings.classes)}",
        "",
        "For research. Not a medical device; not validated for patient care. Attention shows what the network used, not where disease is.",
        "",
        f"- Weights: {facts.get('converted_from') or facts.get('data', 'unknown data')}",
        f"- Input: bags of tile features, {settings.features} wide, of {settings.encoder or 'an encoder that is not named'}",
        f"- Tiles: {tiles}",
        "- Paper: Zhang et al., Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification, ECCV 2024",
    ]
    for part in ("metrics", "held_out"):
        lines += [
            f"- {'Validation' if part == 'metrics' else 'Held out'} {key.replace('_', ' ')}: {value:.4f}"
            for key, value in (facts.get(part) or {}).items()
            if isinstance(value, float)
        ]
    return "\n".join(lines) + "\n"


def read_input(path: Path, *, name: str, mpp: float | None = None, keeper: Any = None, group: str = "") -> SlideInput:
    """The bag of a file; of a slide, that it can be opened and its resolution is known.

    Raises:
        InputError: if it is neither, or damaged; names ``name``.
    """
    try:
        if path.suffix.lower() not in BAG_SUFFIXES:
            with open_slide(path, mpp=mpp) as slide:
                slide.mpp  # noqa: B018  (raises where it is not stated)
            return SlideInput(name=name, path=path, keeper=keeper)
        with opened(path, name=name) as file:
            head = file.read(HEAD_BYTES)
        if path.suffix.lower() != ".pt" and not head.startswith(b"\x89HDF"):
            raise InputError(f"{name}: is no bag of features: it holds {describe(head)}. Make one with `apps.acmil features`.")
        return SlideInput(
            name=name, path=path, bag=read_bag(BagFile(slide=group or Path(name).stem, path=path, group=group)), keeper=keeper
        )
    except InputError as error:
        raise InputError(str(error).replace(str(path), name)) from error


def _pictures(
    slide_path: Path | None, bag: Bag, attention: NDArray[np.float32], *, top: int, mpp: float | None
) -> tuple[NDArray[np.uint8] | None, dict[int, NDArray[np.uint8]]]:
    """The slide's overview, and the tiles that a branch or all together look at most; nothing of a bag whose slide is not here."""
    side = bag.tile_px_level0
    if slide_path is None or bag.coordinates is None or side is None:
        return None, {}
    wanted = sorted({int(index) for row in (*attention, attention.mean(0)) for index in top_tiles(row, top)})
    try:
        with open_slide(slide_path, mpp=mpp or bag.mpp) as slide:
            scale = slide.mpp * side / TILE_PX
            tiles = {index: slide.read_region(*map(int, bag.coordinates[index]), TILE_PX, TILE_PX, mpp=scale) for index in wanted}
            return slide.thumbnail(OVERVIEW_PX), tiles
    except InputError:
        if slide_path == bag.slide_path:
            return None, {}  # a bag is complete without its slide
        raise


def _named(encoder: str) -> str:
    return f" of {encoder!r}" if encoder else ""

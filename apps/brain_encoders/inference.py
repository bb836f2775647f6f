"""From a bundle to predictions: the Predictor, and the verbs that call it."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from apps.brain_encoders.config import BrainInferConfig, BrainServeConfig
from apps.brain_encoders.model import BrainEncoder, FactorisedReadout, RoutingTransformer
from apps.brain_encoders.prediction import BrainPrediction
from apps.brain_encoders.preprocessing import padded_side, to_input
from apps.brain_encoders.report import write_inference_report
from apps.brain_encoders.settings import APP, Settings
from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace, space_from_arrays
from shared.attention import record
from shared.bundle import Bundle, load_bundle, load_weights, save_bundle
from shared.devices import autocast, resolve_device, resolve_precision
from shared.errors import UserError
from shared.imaging import DICOM_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_image, samples
from shared.inference.protocols import Sample
from shared.inference.run import local_engine, run

__all__ = ["Brain", "BrainEncoderPredictor", "BrainPrediction", "Settings", "infer", "serve"]

_NAMES = {
    "transformer": "Transformer brain encoder",
    "custom_transformer": "Transformer brain encoder without value projection",
    "factorised": "Factorised brain encoder",
    "linear": "Linear brain encoder",
    "ridge": "Ridge brain encoder",
}


class Brain:
    """Whose responses a bundle predicts: where the units are, in which regions, how well they were predicted in validation, and from what.

    Args:
        space: where the units are.
        regions: region -> bool [V].
        correlation: [V], of validation images; NaN where unknown.
        fitted: the pictures that were fitted or validated on, by ``study.content_key``; none where unknown.
    """

    def __init__(
        self,
        space: SurfaceSpace | VolumeSpace | TableSpace,
        regions: Mapping[str, NDArray[np.bool_]],
        correlation: NDArray[np.floating] | None = None,
        fitted: Collection[str] = (),
    ) -> None:
        self.space, self.regions, self.fitted = space, dict(regions), frozenset(fitted)
        units = sum(space.hemispheres)
        self.correlation = np.full(units, np.nan, np.float32) if correlation is None else np.asarray(correlation, dtype=np.float32)

    def state(self) -> dict[str, Tensor]:
        """As tensors of the bundle."""
        arrays = {f"space.{name}": np.array(array) for name, array in self.space.arrays().items()}
        arrays |= {f"regions.{name}": mask.astype(np.uint8) for name, mask in self.regions.items()}
        keys = np.frombuffer(bytes.fromhex("".join(sorted(self.fitted))), dtype=np.uint8).reshape(-1, 8).copy()
        return {name: torch.from_numpy(array) for name, array in {**arrays, "correlation": self.correlation, "fitted": keys}.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, source: Path | str) -> Brain:
        """The opposite of ``state``."""
        arrays = {name: value.numpy() for name, value in state.items()}
        space = space_from_arrays(
            {name.removeprefix("space."): array for name, array in arrays.items() if name.startswith("space.")}, source=source
        )
        regions = {name.removeprefix("regions."): array > 0 for name, array in arrays.items() if name.startswith("regions.")}
        fitted = [row.tobytes().hex() for row in arrays.get("fitted", np.empty((0, 8), np.uint8))]
        return cls(space, regions, arrays.get("correlation"), fitted)


class BrainEncoderPredictor:
    """Predicts the responses of a brain's units to pictures.

    Args:
        network: backbone and readout.
        settings: what it was made with.
        brain: whose responses.
        facts: provenance of the weights, JSON-ready.
        card: the model card, Markdown.
        device, precision: as on the command line.
        formats: brain files that predictions save.
        routing: also find, and save, which part of the picture each query looked at.
    """

    suffixes: ClassVar[frozenset[str]] = IMAGE_SUFFIXES | VIDEO_SUFFIXES | DICOM_SUFFIXES

    def __init__(
        self,
        network: BrainEncoder,
        settings: Settings,
        brain: Brain,
        *,
        facts: Mapping[str, Any] | None = None,
        card: str | None = None,
        device: str = "cpu",
        precision: str = "auto",
        formats: Sequence[str] = ("gifti", "nifti"),
        routing: bool = False,
    ) -> None:
        self.settings, self.brain = settings, brain
        self.facts = dict(facts or {})
        self.card = card or model_card(settings, brain, self.facts)
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.formats, self.routing = tuple(formats), routing
        self.weights = network.state_dict()
        self.network = copy.deepcopy(network).eval().requires_grad_(False).to(self.device)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: str = "auto",
        precision: str = "auto",
        formats: Sequence[str] = ("gifti", "nifti"),
        routing: bool = False,
    ) -> Self:
        """The predictor of a bundle; arguments as the class. Raises UserError if the bundle is incomplete or another app's."""
        bundle = load_bundle(folder, app=APP)
        settings = Settings.from_dict(bundle.config, source=Path(folder))
        brain_state = {name.removeprefix("brain."): value for name, value in bundle.state.items() if name.startswith("brain.")}
        state = {name: value for name, value in bundle.state.items() if not name.startswith("brain.")}
        network = settings.network(state.get("readout.readout.membership"), weights=False)
        load_weights(network, state, source=folder)
        brain = Brain.from_state(brain_state, source=folder)
        known = {"facts": bundle.provenance, "card": bundle.card, "device": device, "precision": precision}
        return cls(network, settings, brain, **known, formats=formats, routing=routing)

    def save_bundle(self, folder: Path | str) -> Path:
        """Writes the model folder. Raises UserError if it cannot be written."""
        state = {**self.weights, **{f"brain.{name}": value for name, value in self.brain.state().items()}}
        return save_bundle(folder, Bundle(app=APP, config=self.settings.to_dict(), state=state, card=self.card, provenance=self.facts))

    @property
    def about(self) -> dict[str, Any]:
        """Settings, precision and provenance, JSON-ready."""
        computing = {"device": str(self.device), "precision": self.precision, "formats": list(self.formats), "routing": self.routing}
        version = importlib.metadata.version("fovea")
        name = _NAMES[self.settings.model.name]
        return {"name": name, "version": version, "app": APP, "settings": self.settings.to_dict(), **computing, "provenance": self.facts}

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        """The pictures of an image, DICOM or video file; raises InputError, naming ``name``, if it is none."""
        return (Sample(id=frame.id, read=frame.read) for frame in samples(source, name=name))

    def predict(self, source: Path | str | NDArray[np.uint8]) -> BrainPrediction:
        """The prediction for one picture: a file, or RGB uint8 [H, W, 3]. Raises InputError if the file is no image."""
        image = source if isinstance(source, np.ndarray) else read_image(source)
        return self.predict_batch([image])[0]

    def predict_batch(self, sources: Sequence[NDArray[np.uint8]]) -> list[BrainPrediction]:
        """One prediction for each RGB uint8 [H, W, 3]; sizes may differ."""
        predictions = []
        for batch in self._batches(sources):
            responses, maps = self._answers(torch.stack([self.to_input(image) for image in batch]))
            for index, image in enumerate(batch):
                routing = {} if maps is None else self._routing(maps[index], image)
                predictions.append(
                    BrainPrediction(
                        image=image,
                        response=responses[index],
                        space=self.brain.space,
                        regions=self.brain.regions,
                        routing=routing,
                        formats=self.formats,
                        saves_routing=self.routing,
                    )
                )
        return predictions

    def responses(self, inputs: Tensor) -> NDArray[np.float32]:
        """[B, V] of network inputs [B, 3, S, S]."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.network(inputs.to(self.device)).float().cpu().numpy()

    def routes(self, source: Path | str | NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Where in the picture each query looks: query -> [H, W], 0 to 1, the largest value 1.

        Raises:
            UserError: for models without named queries.
        """
        if not self.settings.queries:
            raise UserError("this model has no queries of regions or hemispheres; train one with model.name transformer.")
        image = source if isinstance(source, np.ndarray) else read_image(source)
        _, maps = self._answers(self.to_input(image)[None], routing=True)
        assert maps is not None
        return self._routing(maps[0], image)

    def to_input(self, image: NDArray[np.uint8]) -> Tensor:
        """[3, S, S]."""
        return to_input(image, size=self.settings.backbone.size, multiple=self.settings.backbone.multiple)

    def _batches(self, sources: Sequence[NDArray[np.uint8]]) -> Iterator[Sequence[NDArray[np.uint8]]]:
        """One by one on a CPU, which is no faster with more, and where sums would be rounded otherwise with other pictures beside one."""
        size = 1 if self.device.type == "cpu" else max(len(sources), 1)
        return (sources[start : start + size] for start in range(0, len(sources), size))

    @torch.inference_mode()
    def _answers(self, inputs: Tensor, *, routing: bool | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Responses [B, V], and if asked for the queries' maps [B, Q, h, w]."""
        wanted = (self.routing if routing is None else routing) and bool(self.settings.queries)
        grid = self.settings.features[1:]
        with autocast(self.precision, self.device):
            features = self.network.backbone(inputs.to(self.device))
            readout: Any = self.network.readout
            if not wanted:
                return readout(features).float().cpu().numpy(), None
            if isinstance(readout, FactorisedReadout):
                maps = readout.routing().expand(len(inputs), -1, -1, -1)
                return readout(features).float().cpu().numpy(), maps.float().cpu().numpy()
            assert isinstance(readout, RoutingTransformer)
            with record(readout, where="decoder.*") as found:
                responses = readout(features)
            last = f"decoder.{len(readout.decoder) - 1}.attention"
            return responses.float().cpu().numpy(), found[last].mean().unflatten(2, grid).float().cpu().numpy()

    def _routing(self, maps: NDArray[np.float32], image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Maps [Q, h, w] over the padded square as maps over the picture."""
        backbone = self.settings.backbone
        side = padded_side(backbone.size, backbone.multiple)
        square = F.interpolate(torch.from_numpy(maps)[None], size=(side, side), mode="bilinear", align_corners=False)
        whole = F.interpolate(square[..., : backbone.size, : backbone.size], size=image.shape[:2], mode="bilinear", align_corners=False)[0]
        whole = whole / whole.flatten(1).max(1).values.clamp(min=1e-12)[:, None, None]
        return dict(zip(self.settings.queries, whole.numpy(), strict=True))


def infer(config: BrainInferConfig) -> int:
    """Predicts for every input and writes the results; the exit code is 3 if some inputs could not be used."""
    options = {"device": config.device, "precision": config.precision, "formats": config.formats, "routing": config.routing}
    predictor = BrainEncoderPredictor.load(config.model, **options)
    maker = {"model": predictor.facts, "settings": predictor.settings.to_dict(), "formats": list(config.formats), "routing": config.routing}
    if config.engine == "ray":
        from shared.scaling.infer import ray_engine

        engine = ray_engine(BrainEncoderPredictor, config, options)
    else:
        engine = local_engine(predictor, output=config.output, batch_size=config.batch_size, workers=config.workers)
    outcome = run(config, suffixes=predictor.suffixes, engine=engine, maker=maker)
    report = write_inference_report(outcome, predictor.about, predictor.brain.space)
    print(f"{len(outcome.rows)} pictures. To look at: {report}")
    if outcome.failures:
        print(f"{len(outcome.failures)} inputs could not be used; {config.output / 'failures.csv'} says why.")
    return outcome.exit_code


def serve(config: BrainServeConfig) -> None:
    """Answers over HTTP until it is told to stop; several replicas under Ray Serve."""
    if config.replicas > 1:
        from shared.scaling.serve import serve as serve_predictor
    else:
        from shared.serving.server import serve as serve_predictor

    def load() -> BrainEncoderPredictor:
        return BrainEncoderPredictor.load(config.model, device=config.device, precision=config.precision)

    serve_predictor(load, config, media_types=BrainPrediction.media_types)


def model_card(settings: Settings, brain: Brain, facts: Mapping[str, Any]) -> str:
    """The card that goes into a bundle: what it is, where it comes from, and what it is not for."""
    backbone = settings.backbone
    source = facts.get("converted_from") or facts.get("data", "unknown data")
    what = f"{backbone.source} {backbone.name}, {backbone.layer} ({backbone.part})" if backbone.source != "gabor" else "Gabor pyramid"
    lines = [
        f"# {_NAMES[settings.model.name]}",
        "",
        "For research. Predicts the responses of one person's brain, as measured in one study; not a medical device.",
        "",
        f"- Responses: {source}; {sum(settings.hemispheres):,} units ({brain.space.kind})",
        f"- Features: {what}, {settings.features[0]} x {settings.features[1]} x {settings.features[2]}",
        f"- Input: RGB pictures of any size, resized to {backbone.size} x {backbone.size}",
        "- Paper: Hosseini Adeli, Sun, Kriegeskorte, Transformer brain encoders explain human high-level visual responses, NeurIPS 2025",
    ]
    metrics = facts.get("metrics") or {}
    lines += [f"- Validation {key.replace('_', ' ')}: {value:.4f}" for key, value in metrics.items() if isinstance(value, float)]
    return "\n".join(lines) + "\n"

"""From a bundle to predictions: the Predictor, and the verbs that call it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from apps.pranet.config import ModelConfig, PraNetInferConfig, PraNetServeConfig
from apps.pranet.model import PraNet, UNet
from apps.pranet.prediction import PolypPrediction
from apps.pranet.preprocessing import to_input
from apps.pranet.report import write_inference_report
from shared.bundle import Bundle, load_bundle, load_weights, save_bundle
from shared.config import plain
from shared.devices import autocast, resolve_device, resolve_precision
from shared.errors import UserError
from shared.imaging import DICOM_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_image, samples
from shared.inference.optimise import optimise, prepack
from shared.inference.protocols import Sample
from shared.inference.run import local_engine, run

__all__ = ["PolypPrediction", "PraNetPredictor", "Settings", "infer", "serve"]

APP = "pranet"
_FLIPS = ((), (2,), (3,), (2, 3))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything besides the weights that decides a prediction; the bundle's config.yaml."""

    model: ModelConfig = field(default_factory=ModelConfig)
    size: int = 352
    """Side of the square that frames are resized to."""
    threshold: float = 0.5
    """Probability from which a pixel is polyp."""
    detection_threshold: float | None = None
    """Confidence from which a frame has a polyp; None if it was never fitted."""
    temperature: float = 1.0
    """Logits are divided by it; fitted on validation frames."""

    def build(self) -> PraNet | UNet:
        """The network, with fresh weights.

        Raises:
            UserError: if the backbone cannot be had.
        """
        model = self.model
        try:
            if model.name == "unet":
                return UNet(encoder=model.backbone or "resnet34", pretrained=model.pretrained)
            return PraNet(backbone=model.backbone or "res2net50d", channels=model.channels, pretrained=model.pretrained)
        except (KeyError, ValueError) as error:
            raise UserError(f"model.backbone: {error.args[0] if error.args else error}") from error
        except OSError as error:
            reason = "model.pretrained needs the pretrained weights, and they cannot be downloaded"
            raise UserError(f"{reason} ({error}). Give the file with model.backbone_weights, or set model.pretrained to false.") from error

    def to_dict(self) -> dict[str, Any]:
        """As the bundle's config.yaml keeps it: nothing that points outside the bundle."""
        model = dataclasses.replace(self.model, pretrained=False, backbone_weights=None)
        return plain(dataclasses.replace(self, model=model))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: Path) -> Settings:
        """The opposite of ``to_dict``; raises UserError, naming ``source``, if it is not one."""
        try:
            return cls(**{**values, "model": ModelConfig(**values["model"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{source / 'config.yaml'}: does not describe a PraNet ({error}). Copy the bundle again.") from error


class PraNetPredictor:
    """Segments polyps in colonoscopy frames of any size.

    Args:
        model: the network, in any mode; a faster copy of it is made for predicting.
        settings: what it was trained with.
        facts: provenance of the weights, JSON-ready.
        card: the model card, Markdown.
        device, precision: as on the command line.
        tta: average over flips and give the uncertainty.
        threshold: instead of the one in ``settings``.
    """

    suffixes: ClassVar[frozenset[str]] = IMAGE_SUFFIXES | VIDEO_SUFFIXES | DICOM_SUFFIXES

    def __init__(
        self,
        model: PraNet | UNet,
        settings: Settings,
        *,
        facts: Mapping[str, Any] | None = None,
        card: str | None = None,
        device: str = "cpu",
        precision: str = "auto",
        tta: bool = False,
        threshold: float | None = None,
    ) -> None:
        self.settings = settings
        self.facts = dict(facts or {})
        self.card = card or model_card(settings, self.facts)
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.flips = _FLIPS if tta else _FLIPS[:1]
        self.threshold = settings.threshold if threshold is None else threshold
        self.weights = model.state_dict()
        self.network = optimise(model).to(self.device)
        if self.device.type == "cpu" and self.precision == "fp32":
            prepack(self.network)

    @classmethod
    def load(
        cls, folder: Path | str, *, device: str = "auto", precision: str = "auto", tta: bool = False, threshold: float | None = None
    ) -> Self:
        """The predictor of a bundle; arguments as the class. Raises UserError if the bundle is incomplete or another app's."""
        bundle = load_bundle(folder, app=APP)
        settings = Settings.from_dict(bundle.config, source=Path(folder))
        model = settings.build()
        load_weights(model, bundle.state, source=folder)
        known = {"facts": bundle.provenance, "card": bundle.card}
        return cls(model, settings, **known, device=device, precision=precision, tta=tta, threshold=threshold)

    def save_bundle(self, folder: Path | str) -> Path:
        """Writes the model folder. Raises UserError if it cannot be written."""
        bundle = Bundle(app=APP, config=self.settings.to_dict(), state=self.weights, card=self.card, provenance=self.facts)
        return save_bundle(folder, bundle)

    @property
    def about(self) -> dict[str, Any]:
        """Settings, precision and provenance, JSON-ready."""
        name = {"pranet": "PraNet", "unet": "U-Net baseline for PraNet"}[self.settings.model.name]
        computing = {"device": str(self.device), "precision": self.precision, "tta": len(self.flips) > 1, "threshold": self.threshold}
        version = importlib.metadata.version("fovea")
        return {"name": name, "version": version, "app": APP, "settings": self.settings.to_dict(), **computing, "provenance": self.facts}

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        """The frames of an image, DICOM or video file; raises InputError, naming ``name``, if it is none."""
        return (Sample(id=frame.id, read=frame.read) for frame in samples(source, name=name))

    def predict(self, source: Path | str | NDArray[np.uint8]) -> PolypPrediction:
        """The prediction for one image: a file, or RGB uint8 [H, W, 3]. Raises InputError if the file is no image."""
        image = source if isinstance(source, np.ndarray) else read_image(source)
        return self.predict_batch([image])[0]

    @torch.inference_mode()
    def predict_batch(self, sources: Sequence[NDArray[np.uint8]]) -> list[PolypPrediction]:
        """One prediction for each RGB uint8 [H, W, 3]; sizes may differ."""
        if not sources:
            return []
        batch = torch.stack([to_input(image, size=self.settings.size) for image in sources])
        logits = self.logits(batch)
        return [self._prediction(image, logits[:, index]) for index, image in enumerate(sources)]

    def logits(self, batch: Tensor) -> Tensor:
        """Calibrated logits, [flips, B, 1, size, size] on the CPU, of normalised frames [B, 3, size, size]; one flip without TTA."""
        batch = batch.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), autocast(self.precision, self.device):
            outputs = [self.network(batch.flip(axes)).flip(axes) for axes in self.flips]
        return torch.stack(outputs).float().cpu() / self.settings.temperature

    @torch.inference_mode()
    def attention(self, source: Path | str | NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """What each reverse-attention step was told to look for: [H, W] in the frame's size, 0 to 1, by stage, the coarsest first.

        Raises:
            UserError: for the U-Net baseline, which has none.
        """
        if not isinstance(self.network, PraNet):
            raise UserError("the U-Net baseline has no reverse attention; load a bundle with model.name pranet.")
        image = source if isinstance(source, np.ndarray) else read_image(source)
        batch = to_input(image, size=self.settings.size)[None].to(self.device, memory_format=torch.channels_last)
        stages = self.network.stages(batch)
        steps = {"stride 32": stages.coarse, "stride 16": stages.stride32, "stride 8": stages.stride16}
        return {name: _to_frame(torch.sigmoid(-coarse.float().cpu()), image)[0, 0].numpy() for name, coarse in steps.items()}

    def _prediction(self, image: NDArray[np.uint8], logits: Tensor) -> PolypPrediction:
        """image: [H, W, 3]; logits: [flips, 1, size, size]."""
        probabilities = torch.sigmoid(_to_frame(logits, image))[:, 0]
        # The mean of single passes, because the detection threshold was fitted on single passes.
        confidence = sum(frame_confidence(torch.sigmoid(one)) for one in logits) / len(logits)
        return PolypPrediction(
            image=image,
            probability=probabilities.mean(dim=0).numpy(),
            uncertainty=probabilities.std(dim=0, correction=0).numpy() if len(self.flips) > 1 else None,
            confidence=confidence,
            threshold=self.threshold,
            detection_threshold=self.settings.detection_threshold,
        )


def frame_confidence(probability: Tensor) -> float:
    """The mean of the highest 0.5 % of a probability map of any shape: high if some part of the frame is surely polyp."""
    values = probability.flatten()
    return float(values.topk(max(1, values.numel() // 200)).values.mean())


def infer(config: PraNetInferConfig) -> int:
    """Segments every input and writes the results; the exit code is 3 if some inputs could not be used."""
    predictor = PraNetPredictor.load(
        config.model, device=config.device, precision=config.precision, tta=config.tta, threshold=config.threshold
    )
    maker = {"model": predictor.facts, "settings": predictor.settings.to_dict(), "tta": config.tta, "threshold": predictor.threshold}
    if config.engine == "ray":
        from shared.scaling.infer import ray_engine

        options = {"device": config.device, "precision": config.precision, "tta": config.tta, "threshold": config.threshold}
        engine = ray_engine(PraNetPredictor, config, options)
    else:
        engine = local_engine(predictor, output=config.output, batch_size=config.batch_size, workers=config.workers)
    outcome = run(config, suffixes=predictor.suffixes, engine=engine, maker=maker)
    report = write_inference_report(outcome, predictor.about)
    found = sum(row["polyp"] for row in outcome.rows)
    print(f"{len(outcome.rows)} frames: {found} with a polyp, {len(outcome.rows) - found} without. To look at: {report}")
    if outcome.failures:
        print(f"{len(outcome.failures)} inputs could not be used; {config.output / 'failures.csv'} says why.")
    return outcome.exit_code


def serve(config: PraNetServeConfig) -> None:
    """Answers over HTTP until it is told to stop; several replicas under Ray Serve."""
    if config.replicas > 1:
        from shared.scaling.serve import serve as serve_predictor
    else:
        from shared.serving.server import serve as serve_predictor

    def load() -> PraNetPredictor:
        return PraNetPredictor.load(config.model, device=config.device, precision=config.precision)

    serve_predictor(load, config, media_types=PolypPrediction.media_types)


def model_card(settings: Settings, facts: Mapping[str, Any]) -> str:
    """The card that goes into a bundle: what it is, where it comes from, and what it is not for."""
    name = {"pranet": "PraNet", "unet": "U-Net (baseline of PraNet)"}[settings.model.name]
    source = facts.get("converted_from") or facts.get("data", "unknown data")
    fitted = settings.detection_threshold
    detection = "not fitted: any pixel above the threshold counts" if fitted is None else f"{fitted:.3f}"
    lines = [
        f"# {name}: polyps in colonoscopy frames",
        "",
        "For research. Not a medical device; not validated for patient care.",
        "",
        f"- Weights: {source}",
        f"- Input: RGB frames of any size, resized to {settings.size} x {settings.size}",
        f"- Pixel threshold: {settings.threshold:.3f}; frame detection threshold: {detection}; temperature: {settings.temperature:.3f}",
        "- Paper: Fan et al., PraNet: Parallel Reverse Attention Network for Polyp Segmentation, MICCAI 2020",
    ]
    metrics = facts.get("metrics") or {}
    lines += [f"- Validation {key.replace('_', ' ')}: {value:.4f}" for key, value in metrics.items() if isinstance(value, float)]
    return "\n".join(lines) + "\n"


def _to_frame(maps: Tensor, image: NDArray[np.uint8]) -> Tensor:
    """maps: [N, 1, h, w], as [N, 1, H, W] of the frame."""
    return F.interpolate(maps, size=image.shape[:2], mode="bilinear", align_corners=False)

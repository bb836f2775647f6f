"""A network ready to segment volumes. An app's Predictor is this class with its name, its settings and its way to build the network."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from shared.bundle import Bundle, load_bundle, load_weights, save_bundle
from shared.config import plain
from shared.devices import autocast, resolve_device, resolve_precision
from shared.errors import InputError, UserError
from shared.imaging.volumes import DICOM_SERIES_SUFFIXES, VOLUME_SUFFIXES, Volume
from shared.inference.optimise import optimise
from shared.inference.protocols import Sample
from shared.inference.sliding import sliding_window, with_flips
from shared.metrics.lesions import remove_small_lesions
from shared.segmentation.cases import read_image
from shared.segmentation.config import PreprocessingConfig, TaskConfig, WindowConfig
from shared.segmentation.labels import Labels
from shared.segmentation.prediction import Kept, VolumePrediction
from shared.segmentation.preparation import NativePreparation, Prepare

__all__ = ["Options", "SegmentationSettings", "VolumePredictor"]


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """Everything besides network and weights that decides a segmentation; a part of the bundle's config.yaml."""

    task: TaskConfig = field(default_factory=TaskConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    flip_axes: tuple[int, ...] = (0, 1, 2)
    """Of test-time augmentation: those that the network was trained with."""
    threshold: float = 0.5
    """Probability from which a voxel is labelled."""
    minimum_ml: float = 0.0
    """Lesions smaller than this are dropped."""
    lesion: bool = True
    """Whether the classes are parts of lesions, or anatomy."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SegmentationSettings:
        """The opposite of ``shared.config.plain``; raises KeyError, TypeError or ValueError if it is none."""
        preprocessing = dict(values["preprocessing"])
        if preprocessing["spacing_mm"] is not None:
            preprocessing["spacing_mm"] = tuple(preprocessing["spacing_mm"])
        window = dict(values["window"])
        return cls(
            **{
                **values,
                "task": TaskConfig(**values["task"]),
                "preprocessing": PreprocessingConfig(**preprocessing),
                "window": WindowConfig(**{**window, "size": tuple(window["size"])}),
                "flip_axes": tuple(values["flip_axes"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a bundle is used; everything here can differ from one use to the next."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 4
    """Windows computed together."""
    tta: bool = False
    """Average over mirror images."""
    threshold: float | None = None
    """Instead of the bundle's own."""
    minimum_ml: float | None = None
    """Instead of the bundle's own."""
    kept: Kept = field(default_factory=Kept)
    """What is written of each prediction."""


class VolumePredictor(ABC):
    """Segments volumes of any size, orientation and spacing.

    Args:
        network: [B, C, *window] to logits [B, K, *window], in any mode; a faster copy of it is made for predicting.
        model: the settings that ``build`` makes such a network of, JSON-ready.
        settings: what it was trained with.
        facts: provenance of the weights, JSON-ready.
        card: the model card, Markdown.
        options: how it is used.
    """

    app: ClassVar[str]
    suffixes: ClassVar[frozenset[str]] = VOLUME_SUFFIXES | DICOM_SERIES_SUFFIXES

    def __init__(
        self,
        network: nn.Module,
        *,
        model: Mapping[str, Any],
        settings: SegmentationSettings,
        facts: Mapping[str, Any] | None = None,
        card: str | None = None,
        options: Options | None = None,
    ) -> None:
        self.model, self.settings, self.facts = dict(model), settings, dict(facts or {})
        self.options = options or Options(device="cpu")
        self.classes = Labels(settings.task)
        self.card = card or self.write_card()
        self.device = resolve_device(self.options.device)
        self.precision = resolve_precision(self.options.precision, self.device)
        self.threshold = settings.threshold if self.options.threshold is None else self.options.threshold
        self.minimum_ml = settings.minimum_ml if self.options.minimum_ml is None else self.options.minimum_ml
        self.weights = network.state_dict()
        self.network = optimise(network).to(self.device)
        self.prepare = self.preparation()

    @classmethod
    @abstractmethod
    def build(cls, model: Mapping[str, Any], labels: Labels) -> nn.Module:
        """The network, with fresh weights, of ``model`` as the bundle has it. Raises UserError, TypeError or ValueError if it is none."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the model, for people."""

    @abstractmethod
    def write_card(self) -> str:
        """The card that goes into a bundle."""

    def preparation(self) -> Prepare:
        """The way to the network's input."""
        return NativePreparation(self.settings.preprocessing)

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto", precision: str = "auto", options: Options | None = None) -> Self:
        """The predictor of a bundle.

        Args:
            device, precision: as on the command line.
            options: further ones; its device and precision do not count.

        Raises:
            UserError: if the bundle is incomplete or another app's.
        """
        bundle = load_bundle(folder, app=cls.app)
        try:
            settings = SegmentationSettings.from_dict(bundle.config["segmentation"])
            network = cls.build(bundle.config["model"], Labels(settings.task))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{Path(folder) / 'config.yaml'}: does not describe a model of {cls.app} ({error}). Copy it again.") from error
        load_weights(network, bundle.state, source=folder)
        return cls(
            network,
            model=bundle.config["model"],
            settings=settings,
            facts=bundle.provenance,
            card=bundle.card,
            options=replace(options or Options(), device=device, precision=precision),
        )

    def save_bundle(self, folder: Path | str) -> Path:
        """Writes the model folder. Raises UserError if it cannot be written."""
        config = {"model": plain(self.model), "segmentation": plain(self.settings)}
        return save_bundle(folder, Bundle(app=self.app, config=config, state=self.weights, card=self.card, provenance=self.facts))

    @property
    def about(self) -> dict[str, Any]:
        """Settings, precision and provenance, JSON-ready."""
        computing = {"device": str(self.device), "precision": self.precision, "tta": self.options.tta, "threshold": self.threshold}
        return {
            "name": self.name,
            "version": importlib.metadata.version("fovea"),
            "app": self.app,
            "settings": {"model": plain(self.model), **plain(self.settings)},
            **computing,
            "minimum_ml": self.minimum_ml,
            "provenance": self.facts,
        }

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        """The one volume of a file, a folder with a series or a case, a zip archive, or the content of a file."""
        yield Sample(id="", read=lambda: self.read(source, name=name))

    def read(self, source: Path | bytes, *, name: str | None = None) -> Volume:
        """A channel for each modality, [C, X, Y, Z]. Raises InputError if it cannot be read or a modality is missing."""
        return read_image(source, self.settings.task, name=name)

    def predict(self, source: Path | str | Volume) -> VolumePrediction:
        """The segmentation of one volume: a file, a folder, or what ``read`` returns."""
        return self.predict_batch([source if isinstance(source, Volume) else self.read(Path(source))])[0]

    def predict_batch(self, sources: Sequence[Volume]) -> list[VolumePrediction]:
        """One for each volume, one after the other: what is batched are their windows."""
        return [self._predict(volume) for volume in sources]

    def _predict(self, volume: Volume) -> VolumePrediction:
        wanted = len(self.settings.task.modalities)
        if (len(volume.values) if volume.values.ndim == 4 else 1) != wanted:
            raise InputError(f"{volume.name}: {wanted} channels were expected ({', '.join(self.settings.task.modalities)}).")
        prepared = self.prepare(volume)
        probability = self.probability(torch.from_numpy(prepared.image)).cpu().numpy()
        restored = np.clip(prepared.restore(probability, self.classes.outside), 0, 1)
        labels = self.classes.decode(restored, threshold=self.threshold)
        if self.minimum_ml:
            labels = remove_small_lesions(labels, volume.affine, minimum_ml=self.minimum_ml)
        return VolumePrediction(
            volume=volume,
            classes=self.classes,
            probability=np.ascontiguousarray(self.classes.classes(restored)),
            labels=labels,
            uncertainty=self.classes.entropy(restored),
            maker=(self.name, str(importlib.metadata.version("fovea"))),
            lesion=self.settings.lesion,
            kept=self.options.kept,
        )

    def probability(self, image: Tensor) -> Tensor:
        """Probabilities [K, X, Y, Z] of a prepared volume [C, X, Y, Z], with the background where classes exclude each other."""

        def answer(windows: Tensor) -> Tensor:
            with autocast(self.precision, self.device):
                logits = self.network(windows)
            return self.classes.activate(logits)

        asked = with_flips(answer, axes=self.settings.flip_axes) if self.options.tta else answer
        window = self.settings.window
        with torch.inference_mode():
            return sliding_window(
                image, asked, window=window.size, batch_size=self.options.batch_size, overlap=window.overlap, device=self.device
            )

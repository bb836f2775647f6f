"""What every app's Predictor and Prediction answer. Command line, service, notebooks and Ray all call these and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Prediction", "Predictor", "Sample"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One thing to predict: an image, one frame of a video, one volume, one slide. Nothing is read before ``read`` is called."""

    id: str
    """Unique within its input and fit for a file name: "" for the only sample of an input, "frame_000012" for one of many."""
    read: Callable[[], Any]
    """Returns what ``Predictor.predict_batch`` takes; raises InputError if this sample cannot be decoded."""


class Prediction(Protocol):
    """One answer, in the input's own geometry."""

    media_types: ClassVar[tuple[str, ...]]
    """What ``encode`` can make, the preferred one first, such as ("image/png",)."""

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """Writes every result file atomically, making the folder if need be. Returns kind -> file name, such as {"mask": "a_mask.png"}."""

    def figure(self) -> Figure:
        """A picture for a person."""

    def summary(self) -> dict[str, Any]:
        """The measurements, with units in the names; JSON-ready, so without NaN or infinity."""

    def encode(self, media_type: str) -> bytes:
        """The main result as one file of this type."""

    def preview(self) -> bytes:
        """A PNG for a person to look at: the input with the result over it, in the input's size."""


P = TypeVar("P", bound=Prediction)


class Predictor(Protocol[P]):
    """A bundle, ready to answer."""

    suffixes: ClassVar[frozenset[str]]
    """File name endings that ``samples`` reads, lower case with the dot."""

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto", precision: str = "auto") -> Self:
        """Raises UserError if the bundle is incomplete or another app's."""

    @property
    def card(self) -> str:
        """The model card, Markdown."""

    @property
    def about(self) -> dict[str, Any]:
        """What is at work, JSON-ready: "name" and "version", and whatever else tells it from another (settings, provenance)."""

    def samples(self, source: Path | bytes, *, name: str) -> Iterator[Sample]:
        """The samples of one input: a path (of a file; for volumes also of a folder), or the content of a file.

        Raises InputError, naming ``name``, if it is not one.
        """

    def predict_batch(self, sources: Sequence[Any]) -> list[P]:
        """One prediction for each source that ``Sample.read`` returned, in order."""

    def predict(self, source: Any) -> P:
        """The prediction for one source: a path with a single sample, or what ``Sample.read`` returns."""

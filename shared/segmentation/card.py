"""The card that goes into a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared.segmentation.predictor import SegmentationSettings

__all__ = ["volume_card"]


def volume_card(name: str, settings: SegmentationSettings, facts: Mapping[str, Any], *, paper: str, notes: Sequence[str] = ()) -> str:
    """What the model is, where it comes from, and what it is not for; Markdown.

    Args:
        name: of the model.
        settings: of the bundle.
        facts: its provenance.
        paper: to cite.
        notes: what whoever uses it must be told.
    """
    task, preparation = settings.task, settings.preprocessing
    source = facts.get("converted_from") or facts.get("data", "unknown data")
    spacing = "the volume's own" if preparation.spacing_mm is None else " x ".join(f"{each:g}" for each in preparation.spacing_mm) + " mm"
    classes = "; ".join(f"{values[0]}: {what}" for what, values in task.labels.items())
    lines = [
        f"# {name}: {', '.join(task.labels)}",
        "",
        "For research. Not a medical device; not validated for patient care.",
        "",
        f"- Weights: {source}",
        f"- Input: {', '.join(task.modalities)}; any orientation and spacing; computed at {spacing} spacing in windows of "
        f"{' x '.join(map(str, settings.window.size))} voxels",
        f"- Output: label map on the input's own voxels ({classes}; 0: background), probabilities, and their entropy as uncertainty",
        f"- Threshold: {settings.threshold:g}; lesions below {settings.minimum_ml:g} ml are dropped",
        f"- Paper: {paper}",
    ]
    lines += [f"- {note}" for note in notes]
    dice = (facts.get("metrics") or {}).get("dice") or {}
    lines += [f"- Validation Dice, {what}: {value:.4f}" for what, value in dice.items()]
    return "\n".join(lines) + "\n"

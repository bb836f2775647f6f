"""Figures of slides and their attention that the reports and the notebook share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from apps.acmil.prediction import concentration
from shared.errors import UserError
from shared.reports.style import INK, styled_figure, styled_legend

if TYPE_CHECKING:
    from apps.acmil.evaluation import Case

__all__ = ["concentration_curves", "confusion_matrix", "instance_layout", "instance_map"]

LARGEST_K = 50


def concentration_curves(attention: Mapping[str, Sequence[NDArray[np.float32]]], *, largest: int = LARGEST_K) -> Figure:
    """The paper's cumulative top-K curve: which share of a slide's attention its K highest tiles have, mean over slides.

    Args:
        attention: by name of the model, one array [N] for each slide; N may differ.
        largest: the last K.
    """
    figure, (axis,) = styled_figure(height=3.4)
    counts = list(range(1, largest + 1))
    for name, slides in attention.items():
        axis.plot(counts, np.mean([concentration(one, counts) for one in slides], axis=0), label=name, linewidth=1.8)
    sizes = [len(one) for slides in attention.values() for one in slides]
    even = np.mean([np.minimum(np.array(counts) / size, 1) for size in sizes], axis=0)
    axis.plot(counts, even, label="every tile alike", linewidth=1.0, linestyle="--")
    axis.set(xlabel="K, tiles with the highest attention", ylabel="Share of the attention", xlim=(1, largest), ylim=(0, 1.02))
    styled_legend(axis, location="lower right")
    return figure


def confusion_matrix(cases: Sequence[Case], classes: Sequence[str]) -> Figure:
    """How many slides of each class (rows) are taken for each (columns)."""
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for case in cases:
        counts[case.slide.label, int(np.argmax(case.probability))] += 1
    figure, (axis,) = styled_figure(width=1.6 + 0.9 * len(classes), height=1.2 + 0.7 * len(classes))
    axis.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        dark = count > 0.5 * counts[row].sum()
        axis.text(column, row, str(count), ha="center", va="center", color="white" if dark else INK)
    axis.set_xticks(range(len(classes)), classes, parse_math=False)
    axis.set_yticks(range(len(classes)), classes, parse_math=False)
    axis.set(xlabel="Answer", ylabel="Label")
    axis.grid(False)
    return figure


def instance_layout(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Tiles in a plane, in which neighbours look alike to the encoder: UMAP, as in the paper, always the same for the same tiles.

    Args:
        features: [N, D], at least three.

    Returns:
        [N, 2].

    Raises:
        UserError: if UMAP is not installed.
    """
    try:
        from umap import UMAP  # its first import compiles, for many seconds
    except ModuleNotFoundError as error:
        raise UserError(f'the layout of tiles needs UMAP ({error.name} is not installed): pip install "fovea[notebook]"') from error
    layout = UMAP(n_neighbors=min(15, len(features) - 1), random_state=0, n_jobs=1)
    return np.asarray(layout.fit_transform(features), dtype=np.float32)


def instance_map(places: NDArray[np.floating], values: Mapping[str, NDArray[np.floating]]) -> Figure:
    """Tiles in a plane, once for each entry of ``values``, coloured by it; the highest are drawn last.

    Args:
        places: [N, 2], as ``instance_layout`` gives them.
        values: title -> [N].
    """
    figure, axes = styled_figure(width=3.3 * len(values), height=3.1, columns=len(values))
    for axis, (title, value) in zip(axes, values.items(), strict=True):
        order = np.argsort(value, kind="stable")
        top = max(float(np.quantile(value, 0.99)), 1e-12)
        axis.scatter(*places[order].T, c=np.clip(value[order] / top, 0, 1), s=6, cmap="viridis", linewidths=0)
        axis.set_title(title, fontsize=9, color=INK, parse_math=False)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
    return figure

"""Measured dissimilarities of pictures beside simple models: what of them is categories, what is pixels, colour or contours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from apps.brain_encoders.config import SimilarityConfig
from shared.arrays import load_npz
from shared.errors import InputError, UserError
from shared.files import write_bytes, write_json
from shared.imaging import read_image
from shared.metrics.rdm import Agreement, RdmCeiling, category_rdm, rdm, rdm_ceiling, rdm_test
from shared.reports.html import Report
from shared.reports.style import INK, MUTED, PALETTE, styled_figure, to_png

__all__ = ["agreement_figure", "compare_similarity", "picture_models"]

SUFFIXES = (".png", ".jpg", ".jpeg")
SIDE = 64
"""Pictures are brought to this size."""


def compare_similarity(config: SimilarityConfig) -> None:
    """Leaves metrics.json, agreement.png and report.html."""
    subjects = _subjects(config.rdms)
    paths = sorted(path for path in config.stimuli.iterdir() if path.suffix.lower() in SUFFIXES) if config.stimuli.is_dir() else []
    if len(paths) != subjects.shape[1]:
        raise UserError(
            f"{config.stimuli}: {len(paths)} pictures, but {config.rdms}: RDMs of {subjects.shape[1]}. Both must be of the same."
        )
    models = picture_models(paths) | (_label_models(config.labels, len(paths)) if config.labels else {})
    tested = rdm_test(models, subjects, similarity=config.similarity, permutations=config.permutations, seed=config.seed)
    ceiling = rdm_ceiling(subjects, similarity=config.similarity) if len(subjects) > 1 else None
    figure = agreement_figure(tested, ceiling, similarity=config.similarity.replace("_", " "))
    write_bytes(config.output / "agreement.png", to_png(figure, dpi=130))
    facts = {
        "stimuli": len(paths),
        "subjects": len(subjects),
        "similarity": config.similarity,
        "ceiling": None if ceiling is None else [ceiling.lower, ceiling.upper],
        "models": {name: {"mean": found.mean, "each": list(found.each), "p": found.p} for name, found in tested.items()},
    }
    write_json(config.output / "metrics.json", facts)
    report = Report("Representational similarity", subtitle=config.rdms.name)
    bounds = {} if ceiling is None else {"lower noise ceiling": ceiling.lower, "upper noise ceiling": ceiling.upper}
    report.facts({"stimuli": len(paths), "subjects": len(subjects), **bounds})
    report.figure(figure, caption="Mean agreement with subjects; points: each subject; grey: the noise ceiling; filled bars: p < 0.05.")
    report.write(config.output / "report.html")
    for name, found in tested.items():
        print(f"{name:<20} {found.mean:6.3f}  p {found.p:.4f}")
    print(f"noise ceiling        {ceiling.lower:6.3f} to {ceiling.upper:.3f}" if ceiling else "noise ceiling: needs two subjects")
    print(f"To look at: {config.output / 'report.html'}")


def picture_models(paths: list[Path]) -> dict[str, NDArray[np.float64]]:
    """RDMs of grey pixels, of mean colours in a 4 x 4 grid, and of contours (orientations of gradients in an 8 x 8 grid)."""
    pictures = np.stack([_square(path) for path in paths])
    grey = pictures.mean(axis=3)
    patches = pictures.reshape(len(paths), 4, SIDE // 4, 4, SIDE // 4, 3).mean(axis=(2, 4))
    down, across = np.gradient(grey, axis=(1, 2))
    strength, orientation = np.hypot(down, across), np.arctan2(down, across) % np.pi
    bins = np.stack([strength * (np.floor(orientation / np.pi * 8) == index) for index in range(8)], axis=-1)
    contours = bins.reshape(len(paths), 8, SIDE // 8, 8, SIDE // 8, 8).sum(axis=(2, 4))
    return {
        "pixels": rdm(grey.reshape(len(paths), -1)),
        "colours": rdm(patches.reshape(len(paths), -1), distance="euclidean"),
        "contours": rdm(np.sqrt(contours.reshape(len(paths), -1))),
    }


def agreement_figure(tested: dict[str, Agreement], ceiling: RdmCeiling | None, *, similarity: str) -> Figure:
    """A bar per model, best first, with its subjects as points, and the noise ceiling, if there is one, as a band."""
    order = sorted(tested, key=lambda name: tested[name].mean, reverse=True)
    figure, (axis,) = styled_figure(height=0.9 + 0.32 * len(order))
    if ceiling is not None:
        axis.axvspan(ceiling.lower, ceiling.upper, color="#e4e7eb", zorder=0)
    for row, name in enumerate(order):
        found = tested[name]
        sure = found.p < 0.05
        axis.barh(row, found.mean, height=0.62, color=PALETTE[0] if sure else "white", edgecolor=PALETTE[0], linewidth=1)
        axis.plot(found.each, np.full(len(found.each), row), ".", color=INK, markersize=4, alpha=0.7)
    axis.set_yticks(range(len(order)), order, color=INK)
    axis.invert_yaxis()
    axis.axvline(0, color=MUTED, linewidth=0.6)
    axis.grid(False, axis="y")
    axis.set_xlabel(f"agreement with the measured RDMs ({similarity})")
    return figure


def _subjects(path: Path) -> NDArray[np.float64]:
    arrays = load_npz(path, what="an .npz with one array of RDMs", advice="Write it with numpy.savez.")
    if len(arrays) != 1:
        raise InputError(f"{path}: holds {len(arrays)} arrays ({', '.join(arrays)}). Write one, [subjects, n, n], with numpy.savez.")
    found = next(iter(arrays.values())).astype(np.float64)
    if found.ndim == 2:
        found = found[None]
    if found.ndim == 4:
        found = found.mean(axis=1)
    if found.ndim != 3 or not len(found) or found.shape[1] != found.shape[2] or found.shape[1] < 3 or not np.isfinite(found).all():
        raise InputError(f"{path}: RDMs [subjects, n, n] of at least three stimuli, without NaN, are needed; found {found.shape}.")
    return found


def _label_models(path: Path, count: int) -> dict[str, NDArray[np.float64]]:
    try:
        rows = json.loads(path.read_text())
        keys = [key for key in rows[0] if key != "file"]
        columns = {key: [json.dumps(row[key]) for row in rows] for key in keys}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a JSON list of objects with the same keys ({error}).") from error
    if len(rows) != count:
        raise InputError(f"{path}: labels of {len(rows)} pictures; {count} are needed.")
    return {key: category_rdm(values) for key, values in columns.items() if len(set(values)) > 1}


def _square(path: Path) -> NDArray[np.float64]:
    """[SIDE, SIDE, 3], 0 to 1."""
    return np.asarray(Image.fromarray(np.asarray(read_image(path))).resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64) / 255
